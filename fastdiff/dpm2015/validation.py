"""K on held-out data, estimated from so few samples that training can afford it every so often."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import NATS, Network, entropies, step_kl
from fastdiff.dpm2015.training import step_weights, stratified


def quick_k(
    diffusion: DiffusionKernels,
    network: Network,
    x_0: Tensor,
    *,
    samples: int = 256,
    early: float = 0.7,
    batch: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    """K (equation 14) and its standard error, bits per sample, from ``samples`` draws of (x_0, t, x_t); no gradients.

        sum_{t=2..T} KL_t = E[KL_t / w_t],  t ~ w

    This is unbiased however few of the T steps are visited; :func:`fastdiff.dpm2015.bound` visits all. The t are
    stratified over w = :func:`step_weights`, and the error is that of neighbouring strata's differences, which is at
    least the true one. The draws depend on the seed alone: during training only the network changes between estimates.

    Args:
        x_0: [M,*] data, of which samples are drawn; the entropies average over all of them.
        early: share of the draws with t distributed as 1/t, see :class:`Recipe`.
        batch: samples that the network sees at once.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = step_weights(diffusion.steps, early)
    t = stratified(weights, samples, generator)
    x = x_0[torch.randint(len(x_0), (samples,), generator=generator)]
    noise = diffusion.noise(x, generator)
    with torch.no_grad():
        parts = [
            step_kl(diffusion, network, *part)
            for part in zip(x.split(batch), t.split(batch), noise.split(batch), strict=True)
        ]
        terms = torch.cat(parts).double() / weights[t] / NATS
        first, last, prior, _ = (float(e) / NATS for e in entropies(diffusion, x_0.double()))
    error = math.sqrt(float(terms.diff().square().mean()) / 2 / samples) if samples > 1 else math.nan
    return -float(terms.mean()) + last - first - prior, error
