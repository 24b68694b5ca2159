"""Distributions of the diffusion times in training, with the weights that keep the loss unbiased.

The time of a process in discrete steps is its step, that of one in continuous time sigma.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.training.config import TrainConfig

HISTORY = 10  # number of losses kept for each time
CONSISTENCY = -1.1, 2.0  # mean and standard deviation of ln sigma
UNIFORM_SHARE = 0.001  # share of uniform sampling, so that every time stays possible
EDGE = 1e-6  # the least distance of a flow's time from 0 and 1


class Times(NamedTuple):
    """Times [N], int64 steps or float64 sigmas, and the weights [N] float32 of their losses."""

    t: Tensor
    weight: Tensor


class TimeSampler:
    """A distribution of t: of the step of a process in discrete steps, else of sigma. This one learns nothing."""

    def draw(self, n: int, generator: torch.Generator) -> Times:
        """n times."""
        raise NotImplementedError

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the unweighted losses [N] of times t [N]."""

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what was learned."""


class UniformTimes(TimeSampler):
    """Every time with the same probability, all weights 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, n: int, generator: torch.Generator) -> Times:
        return Times(torch.randint(self.count, (n,), generator=generator), torch.ones(n))


class LogNormalTimes(TimeSampler):
    r"""ln sigma ~ N(mean, std^2), at the level of the process that is nearest; all weights 1.

    For a flow, whose ln sigma is the logit of its time, these are logit-normal times.

    Source: Karras et al. 2022, table 1; for flows Esser et al. 2024, section 3.1; in consistency training
    Song & Dhariwal 2023, section 3.4.
    """

    def __init__(self, process: Process, mean: float, std: float) -> None:
        self._process, self._mean, self._std = process, mean, std

    def draw(self, n: int, generator: torch.Generator) -> Times:
        low, high = self._process.sigma_range
        drawn = torch.randn(n, generator=generator, dtype=torch.float64)
        sigma = torch.exp(self._mean + self._std * drawn).clamp(low, high)
        return Times(self._process.nearest(sigma), torch.ones(n))


class UniformFlowTimes(TimeSampler):
    """Sigmas t / (1 - t) of times t that are uniform in (0, 1), all weights 1 (Liu et al. 2022)."""

    def draw(self, n: int, generator: torch.Generator) -> Times:
        t = torch.rand(n, generator=generator, dtype=torch.float64).clamp(EDGE, 1 - EDGE)
        return Times(t / (1 - t), torch.ones(n))


class LossSecondMomentTimes(TimeSampler):
    r"""Importance sampling: p_t proportional to sqrt(E[L_t^2]), weight 1 / (T p_t) (IDDPM, equation 17).

    E[L_t^2] is the mean over the last ten losses of time t; until every time has ten, p is uniform.
    A share of 0.001 stays uniform.
    """

    def __init__(self, count: int, *, history: int = HISTORY, uniform_share: float = UNIFORM_SHARE) -> None:
        self.count, self.history, self.uniform_share = count, history, uniform_share
        self._losses = torch.zeros(count, history, dtype=torch.float64)
        self._seen = torch.zeros(count, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """p [T] float64, summing to 1."""
        uniform = torch.full((self.count,), 1 / self.count, dtype=torch.float64)
        if (self._seen < self.history).any():
            return uniform
        moment = self._losses.square().mean(dim=1).sqrt()
        if not moment.sum() > 0:
            return uniform
        return (1 - self.uniform_share) * moment / moment.sum() + self.uniform_share * uniform

    def draw(self, n: int, generator: torch.Generator) -> Times:
        p = self.probabilities()
        t = torch.multinomial(p, n, replacement=True, generator=generator)
        return Times(t, (1 / (self.count * p[t])).float())

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the unweighted losses [N] of times t [N]; the last ten of each time are kept."""
        for time, value in zip(t.tolist(), loss.tolist(), strict=True):
            self._losses[time, self._seen[time] % self.history] = value
            self._seen[time] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._seen.copy_(state["seen"])


def make_times(config: TrainConfig, process: Process) -> TimeSampler:
    """The distribution of times of a run.

    Raises:
        FastdiffError: options of a process in discrete steps for one in continuous time, or the reverse.
    """
    steps, kind = process.most_steps, process.config.parametrisation
    mean, std = config.noise_mean, config.noise_std
    told = {"noise_mean": mean is not None, "noise_std": std is not None}
    if steps != float("inf") and any(told.values()) and config.task != "consistency":
        name = next(name for name, given in told.items() if given)
        raise FastdiffError(f"{name} is of parametrisations edm and flow; this model has discrete steps")
    if steps == float("inf") and config.timesteps != "uniform":
        raise FastdiffError(
            f"timesteps {config.timesteps!r} are of models in discrete steps, and this one is of kind {kind!r}; "
            "leave them out"
        )
    usual = CONSISTENCY if config.task == "consistency" else process.training_noise
    if usual or any(told.values()):
        default_mean, default_std = usual or (0.0, 1.0)
        return LogNormalTimes(
            process, default_mean if mean is None else mean, default_std if std is None else std
        )
    if steps == float("inf"):
        return UniformFlowTimes()
    return (LossSecondMomentTimes if config.timesteps == "loss-second-moment" else UniformTimes)(int(steps))
