"""Consistency training: pairs of noise levels on one path, and how far apart the model's images of them are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.choices import Distance, Pairs
from fastdiff.diffusion.likelihood import mean_flat
from fastdiff.diffusion.process import Model, Process
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError

FEWEST, MOST = 10, 1280  # levels of improved consistency training's first and last grid
HALVINGS = 8  # stages of consistency tuning
HUBER = 0.00054  # c of the pseudo-Huber distance of means
STEADY = 0.1  # c of the continuous form's tangents
KINDS: tuple[Pairs, ...] = ("halving", "doubling", "grid")
Metric = Callable[[Tensor, Tensor], Tensor]  # of two batches of images, [N]


@dataclass(frozen=True)
class LevelPairs:
    r"""For each level sigma the lower one, sigma', whose image the model is to give at sigma, too.

    ========= =============================================================================================
    halving   sigma' = sigma max(0, 1 - n / 2^s), n = 1 + 8 / (1 + exp(sigma)), stages s = 1 .. 8 of equal
              length: from the clean image (plain diffusion training) towards sigma
    doubling  neighbours on Karras's grid of N levels, N = 11, 21, 41, ... 1281 in stages of equal length
    grid      neighbours on Karras's grid of ``levels`` levels
    ========= =============================================================================================

    Source: halving: Geng et al. 2024 ("Consistency models made easy"), section 3 with q = 2, k = 8, b = 1; doubling:
    Song & Dhariwal 2023, equation 12; grid: Song et al. 2023, section 6, with 40 levels for ImageNet-64.

    Args:
        kind: a name of the table.
        sigma_min, sigma_max, rho: ends and exponent of the grids.
        levels: number of levels of "grid", at least 2.

    Raises:
        FastdiffError: an unknown kind, or fewer than 2 levels.
    """

    kind: Pairs
    sigma_min: float
    sigma_max: float
    rho: float = 7.0
    levels: int = 40

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FastdiffError(f"unknown pairs {self.kind!r}; known: {', '.join(KINDS)}")
        if self.levels < 2:
            raise FastdiffError(f"a grid of consistency training has at least 2 levels, got {self.levels}")

    def __call__(self, sigma: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """(sigma, sigma') [N] float64 of each pair, sigma on the grid if there is one; sigma' = 0 is the clean image.

        Args:
            sigma: [N], drawn at random.
            progress: share of the run that is done, from 0 to below 1.
        """
        sigma = sigma.double().clamp(self.sigma_min, self.sigma_max)
        if self.kind == "halving":
            stage = 1 + math.floor(HALVINGS * progress)
            n = 1 + 8 * torch.sigmoid(-sigma)
            return sigma, (sigma * (1 - n / 2**stage)).clamp(min=0)
        grid = _rising(self.grid_size(progress), self.sigma_min, self.sigma_max, self.rho, sigma.device)
        above = torch.searchsorted(grid, sigma).clamp(1, len(grid) - 1)
        return grid[above], grid[above - 1]

    def grid_size(self, progress: float) -> int:
        """Number of levels of the grid at this time of the run."""
        if self.kind == "grid":
            return self.levels
        stages = int(math.log2(MOST // FEWEST)) + 1
        return min(FEWEST * 2 ** math.floor(stages * progress), MOST) + 1


@functools.lru_cache(maxsize=4)
def _rising(points: int, low: float, high: float, rho: float, device: torch.device) -> Tensor:
    """Karras's grid from the lowest level up, on a device; kept, since a stage of a run asks for it at each step."""
    return torch.from_numpy(karras_sigmas(points, low, high, rho)[::-1].copy()).to(device)


def consistency_losses(
    process: Process,
    model: Model,
    x0: Tensor,
    pair: tuple[Tensor, Tensor],
    *,
    noise: Tensor,
    teacher: tuple[Process, Model] | None = None,
    target: Model | None = None,
    distance: Distance | Metric = "pseudo-huber",
    **cond: Any,
) -> Tensor:
    r"""Losses of one batch, [N]: how far apart the images are that the model gives for two levels of one path.

    .. math::
        \frac{1}{\sigma - \sigma'}\, d\big(D(x, \sigma),\, D^-(x', \sigma')\big), \qquad D(x, 0) = x

    D is the model's estimate of x_0; D^- has the same weights (or those of ``target``) and dropped units, and no
    gradient. x = signal x_0 + noise z; x' has the same z (consistency training), or is where a Heun step of the teacher
    leads from x (distillation). d is the mean over elements of the absolute difference (l1), of its square (l2), or
    sqrt(mean square + c^2) - c with c = 0.00054 (pseudo-Huber).

    Args:
        process: of the model, which is called twice as ``model(x, time, **cond)``.
        x0: [N,C,*] data in [-1, 1]. noise: z, like x0.
        pair: (sigma, sigma') [N], see :class:`LevelPairs`; a process in discrete steps takes its levels next to them.
        teacher: a denoiser with its process, whose levels and times are those of ``process``.
        target: the network of D^-, such as an average of the model's weights; None: the model itself.
        distance: a name, or a function of two batches of images that returns [N].

    Source: Song et al. 2023, algorithms 2 and 3; weight and pseudo-Huber distance: Song & Dhariwal 2023, section 3.
    """
    t, lower, clean = _named(process, *pair)
    x = process.q_sample(x0, t, noise)
    devices = [x0.device] if x0.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # so that D drops the units that D^- has dropped
        if teacher is None:
            x_lower = torch.where(_column(clean, x0), x0, process.q_sample(x0, lower, noise))
        else:
            x_lower = _heun(*teacher, x, (t, lower, clean), cond)
        below = _denoised(process, target or model, x_lower, lower, cond)
        below = torch.where(_column(clean, x0), x_lower, below)
    found = _denoised(process, model, x, t, cond)
    gap = process.sigmas(t) - torch.where(clean, 0.0, process.sigmas(lower))
    return _distance(found, below, distance) / gap.to(x0.device, found.dtype)


def continuous_losses(
    process: Process,
    model: Model,
    x0: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor,
    teacher: tuple[Process, Model] | None = None,
    steady: float | None = STEADY,
    **cond: Any,
) -> Tensor:
    r"""Losses of one batch in the limit of no gap between the levels, [N].

    .. math::
        \mathrm{mean}\Big(D(x, \sigma) - D^-(x, \sigma) + \frac{g}{\mathrm{rms}(g) + c}\Big)^2, \qquad
        g = \frac{d D^-(x, \sigma)}{d \ln \sigma}

    The derivative is the one along a path of x, and is made in forward mode, in the model's own call: of x_0 + sigma z
    with this z (consistency training), or along the slope that the teacher gives (distillation). Without the
    denominator the gradient is sigma times the limit of that of :func:`consistency_losses` with the distance l2.

    Args:
        sigma: [N] levels of a process in continuous time. The others are as in :func:`consistency_losses`.
        steady: c, which keeps large tangents from unsettling the training; None: g as it is.

    Source: Song et al. 2023, theorem 6; tangent normalisation: Lu & Song 2024 (sCM), without their warm-up.
    """
    devices = [x0.device] if x0.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        if teacher is not None:
            x0, noise = _teachers_path(*teacher, process.q_sample(x0, sigma, noise), sigma, cond)

        def image(level: Tensor) -> Tensor:
            return _denoised(process, model, process.q_sample(x0, level, noise), level, cond)

        still, tangent = torch.func.jvp(image, (sigma,), (sigma,))[:2]
        if steady is not None:
            tangent = tangent / (_column(mean_flat(tangent**2).sqrt(), tangent) + steady)
        target = still - tangent
    found = _denoised(process, model, process.q_sample(x0, sigma, noise), sigma, cond)
    return mean_flat((found - target) ** 2)


def _teachers_path(
    process: Process, model: Model, x: Tensor, sigma: Tensor, cond: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(x_0, z) of the line x_0 + sigma z through x / signal, whose slope is the teacher's there."""
    ones = torch.ones_like(x[:, :1])
    y = x / process.q_sample(ones, sigma, torch.zeros_like(ones))
    clean = _denoised(process, model, x, sigma, cond)
    return clean, (y - clean) / _column(sigma.to(x), x)


def _named(process: Process, sigma: Tensor, sigma_lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The process's names of two levels, the lower one below the other, and where that one is the clean image."""
    t, clean = process.nearest(sigma), sigma_lower <= 0
    lower = process.nearest(torch.where(clean, sigma, sigma_lower))
    if not t.is_floating_point():  # the same step is nearest to both
        lower = torch.minimum(lower, t - 1)
        clean = clean | (lower < 0)
    return t, lower.clamp(min=0), clean


def _denoised(process: Process, model: Model, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    """The model's estimate of x_0, at least float32."""
    prediction, _ = process.split(model(x, process.model_time(t), **cond), x)
    return process.predict_x0(prediction, x, t)


def _heun(
    process: Process,
    model: Model,
    x: Tensor,
    levels: tuple[Tensor, Tensor, Tensor],
    cond: dict[str, Any],
) -> Tensor:
    """One step of dy/dsigma = (y - x_0) / sigma, y = x / signal, from x to the lower level: Heun's, or Euler's to 0."""
    t, lower, clean = levels
    ones = torch.ones_like(x[:, :1])
    signal, signal_lower = (process.q_sample(ones, name, torch.zeros_like(ones)) for name in (t, lower))
    sigma, sigma_lower = (_column(process.sigmas(name).to(x), x) for name in (t, lower))
    step = torch.where(_column(clean, x), -sigma, sigma_lower - sigma)
    y = x / signal
    slope = (y - _denoised(process, model, x, t, cond)) / sigma
    euler = y + step * slope
    at_end = (euler - _denoised(process, model, euler * signal_lower, lower, cond)) / sigma_lower
    heun = signal_lower * (y + step * (slope + at_end) / 2)
    return torch.where(_column(clean, x), euler, heun)


def _distance(found: Tensor, target: Tensor, distance: Distance | Metric) -> Tensor:
    if callable(distance):
        return distance(found, target)
    difference = found - target
    if distance == "l1":
        return mean_flat(difference.abs())
    if distance == "l2":
        return mean_flat(difference**2)
    if distance == "pseudo-huber":
        return torch.sqrt(mean_flat(difference**2) + HUBER**2) - HUBER
    raise FastdiffError(f"distance {distance!r} is none of pseudo-huber, l2 and l1, nor a function")


def _column(values: Tensor, like: Tensor) -> Tensor:
    """[N] as [N,1,...,1]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
