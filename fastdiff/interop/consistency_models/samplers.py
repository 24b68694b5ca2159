"""consistency_models' samplers, on y = x_0 + sigma z: each draws from its generator when the original does.

A denoiser is D(y, sigma [N]); sigmas [S+1] end in 0. Sources: Karras et al. 2022, algorithms 1 and 2; Song et al. 2023,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = "cpu"
) -> Tensor:
    """[n+1] float32: from sigma_max to sigma_min, evenly in sigma^(1/rho), then 0."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + torch.linspace(0, 1, n) * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device)


def get_ancestral_step(sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
    """(sigma_down, sigma_up): the level of the deterministic part of a step, and the noise added after it."""
    up = (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    return (sigma_to**2 - up**2) ** 0.5, up


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dy/dsigma = (y - D) / sigma."""
    return (x - denoised) / sigma


@torch.no_grad()
def sample_euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any,
    progress: bool = False,
    callback: Any = None,
) -> Tensor:
    """Euler's steps."""
    for i, sigma, after in _steps(sigmas, progress):
        denoised = _denoise(denoiser, x, sigma)
        _tell(callback, x=x, i=i, sigma=sigma, denoised=denoised)
        x = x + to_d(x, sigma, denoised) * (after - sigma)
    return x


@torch.no_grad()
def sample_progdist(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any = None,
    progress: bool = False,
    callback: Any = None,
) -> Tensor:
    """Euler's steps without the last one, to 0: of progressive distillation."""
    return sample_euler(denoiser, x, sigmas[:-1], generator, progress, callback)


@torch.no_grad()
def sample_euler_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, generator: Any, progress: bool = False, callback: Any = None
) -> Tensor:
    """Euler's steps down to sigma_down, then noise."""
    for i, sigma, after in _steps(sigmas, progress):
        denoised = _denoise(model, x, sigma)
        down, up = get_ancestral_step(sigma, after)
        _tell(callback, x=x, i=i, sigma=sigma, sigma_hat=sigma, denoised=denoised)
        x = x + to_d(x, sigma, denoised) * (down - sigma)
        x = x + generator.randn_like(x) * up
    return x


@torch.no_grad()
def sample_heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any,
    progress: bool = False,
    callback: Any = None,
    **churn: float,
) -> Tensor:
    """Heun's steps, Euler's to 0; ``churn``: s_churn, s_tmin, s_tmax, s_noise."""
    for i, sigma, after in _steps(sigmas, progress):
        x, sigma_hat = _churned(x, sigma, len(sigmas) - 1, generator, **churn)
        denoised = _denoise(denoiser, x, sigma_hat)
        _tell(callback, x=x, i=i, sigma=sigma, sigma_hat=sigma_hat, denoised=denoised)
        slope, step = to_d(x, sigma_hat, denoised), after - sigma_hat
        if after > 0:
            predicted = x + slope * step
            slope = (slope + to_d(predicted, after, _denoise(denoiser, predicted, after))) / 2
        x = x + slope * step
    return x


@torch.no_grad()
def sample_dpm(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any,
    progress: bool = False,
    callback: Any = None,
    **churn: float,
) -> Tensor:
    """Midpoint steps, the midpoint in sigma^(1/3); ``churn`` as of :func:`sample_heun`."""
    for i, sigma, after in _steps(sigmas, progress):
        x, sigma_hat = _churned(x, sigma, len(sigmas) - 1, generator, **churn)
        denoised = _denoise(denoiser, x, sigma_hat)
        _tell(callback, x=x, i=i, sigma=sigma, sigma_hat=sigma_hat, denoised=denoised)
        middle = ((sigma_hat ** (1 / 3) + after ** (1 / 3)) / 2) ** 3
        halfway = x + to_d(x, sigma_hat, denoised) * (middle - sigma_hat)
        x = x + to_d(halfway, middle, _denoise(denoiser, halfway, middle)) * (after - sigma_hat)
    return x


@torch.no_grad()
def sample_onestep(
    distiller: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any = None,
    progress: bool = False,
    callback: Any = None,
) -> Tensor:
    """D at the first sigma."""
    return _denoise(distiller, x, sigmas[0])


@torch.no_grad()
def stochastic_iterative_sampler(
    distiller: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: Any,
    ts: Sequence[int],
    progress: bool = False,
    callback: Any = None,
    t_min: float = 0.002,
    t_max: float = 80.0,
    rho: float = 7.0,
    steps: int = 40,
) -> Tensor:
    """Consistency models' multistep sampling: D, then noise up to the next of the points ``ts`` of Karras's grid."""
    low, high = t_min ** (1 / rho), t_max ** (1 / rho)
    grid = [(high + point / (steps - 1) * (low - high)) ** rho for point in ts]
    for sigma, after in zip(grid, grid[1:], strict=False):
        denoised = _denoise(distiller, x, sigma)
        after = min(max(after, t_min), t_max)
        x = denoised + generator.randn_like(x) * (after**2 - t_min**2) ** 0.5
    return x


def _steps(sigmas: Tensor, progress: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
    numbers: Any = range(len(sigmas) - 1)
    if progress:
        from tqdm.auto import tqdm

        numbers = tqdm(numbers)
    return ((i, sigmas[i], sigmas[i + 1]) for i in numbers)


def _denoise(denoiser: Denoiser, x: Tensor, sigma: Any) -> Tensor:
    return denoiser(x, sigma * x.new_ones(len(x)))


def _churned(
    x: Tensor,
    sigma: Tensor,
    steps: int,
    generator: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(y, sigma_hat) after new noise up to sigma_hat = (1 + gamma) sigma, gamma = min(s_churn / steps, sqrt(2) - 1)."""
    gamma = min(s_churn / steps, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
    noise = generator.randn_like(x) * s_noise  # drawn in any case, as there
    higher = sigma * (gamma + 1)
    return (x + noise * (higher**2 - sigma**2) ** 0.5 if gamma > 0 else x), higher


def _tell(callback: Any, **about: Any) -> None:
    if callback is not None:
        callback(about)
