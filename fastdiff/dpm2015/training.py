"""Maximising K by stochastic gradient ascent, over the network and, if wanted, over the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion
from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import NATS, entropies, step_kl
from fastdiff.errors import FastdiffError

M = TypeVar("M", bound=nn.Module)
Data = Callable[[int, torch.Generator], Tensor]  # data(n, generator) -> [n,*]


@dataclass(frozen=True)
class Recipe:
    """Options of training: iterations, batch, learning rate, averaging, sampling of steps."""

    iterations: int
    batch: int
    """Samples of (x_0, t) an iteration; t is stratified, so that T or more visit every step."""
    lr: float = 1e-3
    """Adam's, after a warm-up over 2 % of the iterations and before a cosine decay to 0."""
    ema: float = 0.99
    """Decay of the averaged weights that are kept."""
    early: float = 0.0
    """Share of the samples with t distributed as 1/t rather than evenly: most of images' divergence is there."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises FastdiffError: nothing to train, or rates out of range."""
        if self.iterations < 1 or self.batch < 1:
            raise FastdiffError(
                f"iterations and batch must be at least 1, got {self.iterations} and {self.batch}"
            )
        if not self.lr > 0 or not 0 <= self.early < 1 or not 0 <= self.ema < 1:
            raise FastdiffError(
                f"lr must be above 0, early and ema in [0, 1), got {self.lr}, {self.early}, {self.ema}"
            )


class LearnedSchedule(nn.Module):
    """beta_2 .. beta_T as free parameters in (0, 1); beta_1 stays fixed, against overfitting (section 2.4.1).

    It starts with 1 - abar_t growing geometrically from beta_1 to nearly 1.
    """

    def __init__(self, steps: int, first_beta: float) -> None:
        """Raises FastdiffError: fewer than two steps, or a first beta outside (0, 1)."""
        super().__init__()
        if steps < 2 or not 0 < first_beta < 1:
            raise FastdiffError(
                f"the schedule needs at least 2 steps and a first beta in (0, 1), got {steps}, {first_beta}"
            )
        self.first_beta = first_beta
        odds = torch.linspace(_logit(first_beta), _logit(0.999), steps, dtype=torch.float64)
        abar = torch.sigmoid(-odds)
        self.logits = nn.Parameter(torch.logit(1 - abar[1:] / abar[:-1]))

    def forward(self) -> Tensor:
        """[T] float64."""
        return torch.cat([self.logits.new_tensor([self.first_beta]), torch.sigmoid(self.logits)])


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def train(
    diffusion: DiffusionKernels,
    network: M,
    data: Data,
    recipe: Recipe,
    *,
    schedule: LearnedSchedule | None = None,
    progress: Callable[[int, float], None] = lambda iteration, bits: None,
) -> tuple[M, DiffusionKernels]:
    """Train ``network`` by Adam on -K; the noise is drawn first, so that x_t is a function of the schedule.

    Args:
        diffusion: the process; with a ``schedule`` (Gaussian only) its betas are replaced by the learned ones.
        network: called as network(x_t, t).
        data: draws n samples of x_0.
        progress: called after each iteration with its number and a running estimate of the divergences' sum, in
            bits per element.

    Returns:
        The network with averaged weights, without gradients, and the diffusion (the learned one).

    Raises:
        FastdiffError: data that the diffusion cannot start from.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    diffusion.check_data(data(1, generator))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    groups = [{"params": list(network.parameters()), "lr": recipe.lr}]
    if schedule is not None:
        groups.append({"params": list(schedule.parameters()), "lr": recipe.lr})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _rate(i, recipe.iterations))
    weights = step_weights(diffusion.steps, recipe.early)
    running = math.nan
    for iteration in range(1, recipe.iterations + 1):
        if schedule is not None:
            diffusion = DiagonalGaussianDiffusion(betas=schedule())
        t = stratified(weights, recipe.batch, generator)
        x_0 = data(recipe.batch, generator)
        kl = step_kl(diffusion, network, x_0, t, diffusion.noise(x_0, generator))
        divergence = (kl / weights[t].to(kl.dtype)).mean()
        loss = divergence
        if schedule is not None:
            first, last, prior, _ = entropies(diffusion, x_0)
            loss = divergence + first - last + prior
        optimiser.zero_grad(set_to_none=True)
        (loss / x_0[0].numel()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        averaged.update_parameters(network)
        bits = float(divergence.detach()) / x_0[0].numel() / NATS
        running = bits if math.isnan(running) else 0.98 * running + 0.02 * bits
        progress(iteration, running)
    if schedule is not None:
        diffusion = DiagonalGaussianDiffusion(betas=schedule().detach())
    return averaged.module.requires_grad_(False), diffusion  # pyright: ignore[reportReturnType]


def _rate(iteration: int, iterations: int) -> float:
    warm = max(1, iterations // 50)
    return min(1.0, (iteration + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / iterations)))


def step_weights(steps: int, early: float) -> Tensor:
    """Probability of each t, [T + 1] float64, 0 for t < 2: a share ``early`` as 1/t, the rest evenly."""
    t = torch.arange(2, steps + 1, dtype=torch.float64)
    mixed = early * (1 / t) / (1 / t).sum() + (1 - early) / (steps - 1)
    return torch.cat([torch.zeros(2, dtype=torch.float64), mixed])


def stratified(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n steps with these probabilities, one from each of n equal shares of them; [n] int64, ascending."""
    u = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    return torch.searchsorted(torch.cumsum(weights, 0), u).clamp_(2, len(weights) - 1)
