"""How a model does on images that it is not trained on."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from fastdiff.training.batches import Batches
from fastdiff.training.tasks import Task
from fastdiff.training.timesteps import UniformTimes


class Validation:
    """The task's measures on batches that are always the same: images, noise and times.

    Args:
        task: what is measured.
        batches: of the validation data.
        count: how many of them.
        times: number of the process's times; all are as likely.
    """

    def __init__(self, task: Task, batches: Batches, count: int, times: int) -> None:
        self._task, self._batches, self._count = task, batches, count
        self._times = UniformTimes(times)

    @torch.no_grad()
    def measure(
        self, model: nn.Module, device: torch.device, autocast: contextlib.AbstractContextManager
    ) -> torch.Tensor:
        """Means of the measures, [len(task.measures)] float32 on the device."""
        sums = torch.zeros(len(self._task.measures), device=device)
        with autocast:
            for step in range(self._count):
                batch = self._batches.draw(step, self._times).to(device)
                sums += self._task.losses(model, batch).mean(dim=0)
        return sums / self._count
