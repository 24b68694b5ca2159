"""Weights of the squared error at each time: min-SNR-gamma and P2, for every kind of prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from fastdiff.choices import LossWeights
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.diffusion.process import Process


@dataclass(frozen=True)
class LossWeighting:
    r"""The factor w_t of the squared error at time t, from SNR_t = signal^2 / noise^2.

    ========= =============================== ========================== ===========================
    kind      epsilon                         x0                         v
    ========= =============================== ========================== ===========================
    none      1                               1                          1
    min-snr   min(SNR, gamma) / SNR           min(SNR, gamma)            min(SNR, gamma) / (SNR + 1)
    p2        1 / (k + SNR)^gamma             SNR / (k + SNR)^gamma      SNR / (SNR + 1) / (k + SNR)^gamma
    ========= =============================== ========================== ===========================

    The columns of a row are one and the same loss: an error e of epsilon is an error of e / sqrt(SNR) of x0, and one of
    e sqrt(1 + 1 / SNR) of v. Where the model predicts something else, as EDM's and flows do, the weight is that of x0
    times the squared error of x0 over that of the output.

    Source: Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", section 3.4; Choi et al.
    2022, "Perception prioritized training of diffusion models", equation 8, which weights the error of epsilon.

    Args:
        kind: "none", "min-snr" or "p2".
        min_snr_gamma: gamma of min-snr, above 0.
        p2_gamma: gamma of P2, at least 0; 0 is the plain squared error of epsilon.
        p2_k: k of P2, above 0.

    Raises:
        FastdiffError: an unknown kind, or a number outside its range.
    """

    kind: LossWeights = "none"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(LossWeights):
            raise FastdiffError(
                f"unknown loss weighting {self.kind!r}; known: {', '.join(get_args(LossWeights))}"
            )
        for name in ("min_snr_gamma", "p2_k"):
            if not 0 < getattr(self, name) < float("inf"):
                raise FastdiffError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.p2_gamma < float("inf"):
            raise FastdiffError(f"p2_gamma must be at least 0, got {self.p2_gamma}")

    def __call__(self, process: Process, t: Tensor, like: Tensor) -> Tensor:
        """w_t [N], on the device of ``like`` [N,C,*] and in its precision, for t [N]."""
        snr = process.snr(t, like).flatten()
        if self.kind == "min-snr":
            weight = snr.clamp(max=self.min_snr_gamma)
        elif self.kind == "p2":
            weight = snr * (self.p2_k + snr) ** -self.p2_gamma
        else:
            return snr.new_ones(len(t))
        return weight * process.error_factor(t, like).flatten()
