"""guided-diffusion's ``resample``: how timesteps are drawn for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastdiff.training.timesteps import LossSecondMomentTimes


def create_named_schedule_sampler(name: str, diffusion: Any) -> ScheduleSampler:
    """ "uniform" or "loss-second-moment"."""
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise NotImplementedError(f"unknown schedule sampler: {name}")


class ScheduleSampler(ABC):
    """A distribution over timesteps that keeps the objective's mean what it is, by weights."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """[T] positive weights, not normalised."""

    def sample(self, batch_size: int, device: Any) -> tuple[Tensor, Tensor]:
        """-> timesteps [N] int64 and weights [N] float32. Drawn by NumPy's global generator, as there."""
        p = self.weights() / np.sum(self.weights())
        t = np.random.choice(len(p), size=(batch_size,), p=p)
        weights = 1 / (len(p) * p[t])
        return torch.from_numpy(t).long().to(device), torch.from_numpy(weights).float().to(device)


class UniformSampler(ScheduleSampler):
    """Every timestep alike."""

    def __init__(self, diffusion: Any) -> None:
        self.diffusion = diffusion
        self._weights = np.ones(diffusion.num_timesteps)

    def weights(self) -> np.ndarray:
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """A sampler that learns from losses, those of all processes."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Timesteps and losses [N] of this process; sizes may differ between processes."""
        pairs: list[Any] = [(local_ts.tolist(), local_losses.tolist())]
        if dist.is_available() and dist.is_initialized():
            pairs = [None] * dist.get_world_size()
            dist.all_gather_object(pairs, (local_ts.tolist(), local_losses.tolist()))
        self.update_with_all_losses(
            [t for ts, _ in pairs for t in ts], [value for _, losses in pairs for value in losses]
        )

    @abstractmethod
    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Timesteps and losses of all processes, in the order of ranks."""


class LossSecondMomentResampler(LossAwareSampler):
    """Importance sampling by the root of each timestep's mean squared loss (IDDPM, equation 17)."""

    def __init__(self, diffusion: Any, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        self.diffusion = diffusion
        self.history_per_term, self.uniform_prob = history_per_term, uniform_prob
        self._times = LossSecondMomentTimes(
            diffusion.num_timesteps, history=history_per_term, uniform_share=uniform_prob
        )

    def weights(self) -> np.ndarray:
        return self._times.probabilities().numpy()

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        self._times.update(torch.tensor(ts, dtype=torch.int64), torch.tensor(losses, dtype=torch.float64))
