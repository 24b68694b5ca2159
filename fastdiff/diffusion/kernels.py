"""The interface of every diffusion of Sohl-Dickstein et al. 2015, whatever its noise: the paper's Table App.1.

A diffusion is a Markov chain q whose kernel T_pi(x_t | x_{t-1}; beta_t) has pi as its fixed point. Steps are the
paper's, t = 1 .. T; x_0 is data, x_T nearly pi. Kernels are ``torch.distributions`` over single elements, so that
means, samples, entropies and Kullback-Leibler divergences are PyTorch's own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastdiff.errors import FastdiffError


class DiffusionKernels(Protocol):
    """Forward, cumulative, posterior and reverse kernels of one process, and its prior.

    In all methods x is [N,*], t is [N] int64 in 1 .. T and the result is a distribution over each element of x,
    in x's dtype. Entropies (nats) are ``kernel.entropy()``: H_q(X_t|X_0) = ``cumulative(x_0, t).entropy()``.
    """

    @property
    def steps(self) -> int:
        """T."""
        ...

    def forward(self, x_prev: Tensor, t: Tensor) -> Distribution:
        """q(x_t | x_{t-1}) = T_pi(x_t | x_{t-1}; beta_t)."""
        ...

    def cumulative(self, x_0: Tensor, t: Tensor) -> Distribution:
        """q(x_t | x_0)."""
        ...

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Distribution:
        """q(x_{t-1} | x_t, x_0), exact."""
        ...

    def reverse(self, output: Any, x_t: Tensor, t: Tensor) -> Distribution:
        """p(x_{t-1} | x_t), from a network's output."""
        ...

    def prior(self, x: Tensor) -> Distribution:
        """pi for elements like those of x, p(x_T)."""
        ...

    def noise(self, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The random numbers that :meth:`diffuse` needs; with these fixed, x_t is a function of the schedule."""
        ...

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t distributed as q(x_t | x_0)."""
        ...

    def check_data(self, x_0: Tensor) -> None:
        """Raise FastdiffError for data that this process cannot start from."""
        ...


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] of a table with entries 0 .. T, shaped [N,1,...,1] and in the dtype of ``like``.

    Raises:
        FastdiffError: t is not one whole number per sample, within 0 .. T.
    """
    if t.shape != like.shape[:1] or t.is_floating_point():
        raise FastdiffError(
            f"t must be whole numbers, one per sample, [{like.shape[0]}], got {t.dtype} {list(t.shape)}"
        )
    if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < len(table):
        raise FastdiffError(
            f"steps t must lie within 1 .. {len(table) - 1}, got {int(t.min())} .. {int(t.max())}"
        )
    return table.to(like.dtype)[t].reshape(-1, *[1] * (like.ndim - 1))


def fixed_betas(steps: int) -> Tensor:
    """beta_t = 1 / (T - t + 1), [T] float64: each step erases the same share 1/T of the data (section 2.4.1).

    Hence abar_t = (T - t) / T and beta_T = 1. By footnote 2 of the paper it is also used for Gaussian diffusion.

    Raises:
        FastdiffError: fewer than two steps.
    """
    if steps < 2:
        raise FastdiffError(f"a diffusion needs at least 2 steps, got {steps}")
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def check_betas(betas: Tensor) -> None:
    """Raises FastdiffError unless betas is a [T] tensor, T >= 2, with values in (0, 1]."""
    rates = betas.detach()
    if rates.ndim != 1 or len(rates) < 2 or not bool(((rates > 0) & (rates <= 1)).all()):
        raise FastdiffError("betas must be a list of at least two rates above 0 and at most 1")


def check_values(x_0: Tensor) -> None:
    """Raises FastdiffError for data [N,*] that are empty, not floating point, or not finite."""
    if x_0.ndim < 2 or not x_0.numel():
        raise FastdiffError(f"data must be [N, ...] with at least one sample, got {list(x_0.shape)}")
    if not x_0.is_floating_point():
        raise FastdiffError(f"data must be floating point, got {x_0.dtype}")
    if not bool(torch.isfinite(x_0).all()):
        raise FastdiffError("data hold NaN or infinite values; clean them first")
