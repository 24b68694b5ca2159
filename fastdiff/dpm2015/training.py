"""Maximising K by stochastic gradient ascent, over the network and, if wanted, over the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion
from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import NATS, entropies, step_kl
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.dpm2015.run import Run

M = TypeVar("M", bound=nn.Module)
Data = Callable[[int, torch.Generator], Tensor]  # data(n, generator) -> [n,*]
Validate = Callable[[nn.Module, DiffusionKernels], tuple[float, float]]  # K and its standard error


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


class Training:
    """A network in training by Adam on -K, and all that changes from one iteration to the next.

    The noise of an iteration is drawn first, so that x_t is a function of the schedule.

    Args:
        diffusion, network, data, recipe, schedule: see :func:`train`.

    Attributes:
        iteration: number of iterations made.
        running: running mean of the divergences' sum in training, in bits per element.
        held: K and its standard error on held-out data, when they were last estimated.

    Raises:
        FastdiffError: data that the diffusion cannot start from.
    """

    def __init__(
        self,
        diffusion: DiffusionKernels,
        network: nn.Module,
        data: Data,
        recipe: Recipe,
        schedule: LearnedSchedule | None = None,
    ) -> None:
        self.recipe, self.iteration, self.running = recipe, 0, math.nan
        self.held: tuple[float, float] | None = None
        self._start, self._network, self._data, self._schedule = diffusion, network, data, schedule
        self._generator = torch.Generator().manual_seed(recipe.seed)
        diffusion.check_data(data(1, self._generator))
        self._average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self._trained = [*network.parameters(), *(schedule.parameters() if schedule else ())]
        self._optimiser = torch.optim.Adam(self._trained, betas=(0.9, 0.99))
        self._weights = step_weights(diffusion.steps, recipe.early)

    @property
    def network(self) -> nn.Module:
        """The network with averaged weights."""
        return self._average.module

    @property
    def diffusion(self) -> DiffusionKernels:
        """The process, with the betas as learned so far."""
        if self._schedule is None:
            return self._start
        return DiagonalGaussianDiffusion(betas=self._schedule().detach())

    def update(self) -> None:
        """Make one iteration.

        Raises:
            FastdiffError: NaN or Inf in the divergences.
        """
        recipe, generator = self.recipe, self._generator
        diffusion = self._start
        if self._schedule is not None:
            diffusion = DiagonalGaussianDiffusion(betas=self._schedule())
        t = stratified(self._weights, recipe.batch, generator)
        x_0 = self._data(recipe.batch, generator)
        kl = step_kl(diffusion, self._network, x_0, t, diffusion.noise(x_0, generator))
        divergence = (kl / self._weights[t].to(kl.dtype)).mean()
        loss = divergence
        if self._schedule is not None:
            first, last, prior, _ = entropies(diffusion, x_0)
            loss = divergence + first - last + prior
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.lr * _rate(self.iteration, recipe.iterations)
        self._optimiser.zero_grad(set_to_none=True)
        (loss / x_0[0].numel()).backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimiser.step()
        self._average.update_parameters(self._network)
        bits = float(divergence.detach()) / x_0[0].numel() / NATS
        if not math.isfinite(bits):
            raise FastdiffError(
                f"the divergences are {bits} at iteration {self.iteration + 1}: training stopped; try a smaller lr"
            )
        self.running = bits if math.isnan(self.running) else 0.98 * self.running + 0.02 * bits
        self.iteration += 1

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state: weights, averages, schedule, moments, the generator's state."""
        found = {"generator": self._generator.get_state()}
        for kind, module in self._modules().items():
            found |= {f"{kind}.{name}": value for name, value in module.state_dict().items()}
        for i, parameter in enumerate(self._trained):
            found |= {f"adam.{i}.{name}": value for name, value in self._optimiser.state[parameter].items()}
        return {name: value.contiguous() for name, value in found.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the state to that of :meth:`tensors`.

        Raises:
            KeyError, RuntimeError: tensors of another training.
        """
        self._generator.set_state(tensors["generator"])
        for kind, module in self._modules().items():
            module.load_state_dict(_below(f"{kind}.", tensors))
        for i, parameter in enumerate(self._trained):
            self._optimiser.state[parameter] = _below(f"adam.{i}.", tensors)

    def _modules(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"network": self._network, "average": self._average}
        return found if self._schedule is None else {**found, "schedule": self._schedule}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def train(
    diffusion: DiffusionKernels,
    network: M,
    data: Data,
    recipe: Recipe,
    *,
    schedule: LearnedSchedule | None = None,
    progress: Callable[[Training], None] = lambda training: None,
    run: Run | None = None,
    validate: Validate | None = None,
) -> tuple[M, DiffusionKernels]:
    """Train ``network`` by Adam on -K.

    Args:
        diffusion: the process; with a ``schedule`` (Gaussian only) its betas are replaced by the learned ones.
        network: called as network(x_t, t).
        data: draws n samples of x_0.
        progress: called before the first iteration and after each.
        run: the folder that training continues from and is recorded in; its results are those of training without.
        validate: estimates K and its standard error on held-out data, every so often, for the run's log.

    Returns:
        The network with averaged weights, without gradients, and the diffusion (the learned one).

    Raises:
        FastdiffError: data that the diffusion cannot start from; a folder that holds another run.
        Stopped: Ctrl-C during a run, which the folder continues from.
    """
    training = Training(diffusion, network, data, recipe, schedule)
    with nullcontext(lambda: None) if run is None else run.recorded(training, validate) as record:
        progress(training)
        while training.iteration < recipe.iterations:
            training.update()
            record()
            progress(training)
    return training.network.requires_grad_(False), training.diffusion  # pyright: ignore[reportReturnType]


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
