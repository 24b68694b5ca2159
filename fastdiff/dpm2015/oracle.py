"""The best factorised reverse kernels for the heartbeat, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion.binomial import BinomialDiffusion
from fastdiff.dpm2015.data import heartbeat_sequences


@dataclass(frozen=True)
class HeartbeatOracle:
    """The exact log-odds of the bits of x_0 given x_t, in place of a network.

        P(x_0,i = 1 | x_t) = P(phase = i mod 5 | x_t),   P(phase | x_t) proportional to prod_i q(x_t,i | x_0,i(phase))

    With it ``diffusion.reverse`` gives p_i = sum over phases of P(phase | x_t) q(x_{t-1,i} = 1 | x_t, x_0(phase)), the
    factorised kernel of least divergence, and :func:`fastdiff.dpm2015.bound.bound` gives K*, which no model of the
    paper's kind can exceed.
    """

    diffusion: BinomialDiffusion

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """[N,20] to [N,20]."""
        sequences = heartbeat_sequences().to(x_t.dtype)
        # Up to a common factor.
        log_phase = torch.log_softmax(self.diffusion.evidence(x_t, t) @ sequences.T, 1)
        chance = torch.exp(log_phase) @ sequences
        return torch.logit(chance)
