"""How a model does on images that it is not trained on."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import nn

from fastdiff.data.images import ImageData
from fastdiff.training.batches import Batches
from fastdiff.training.config import TrainConfig
from fastdiff.training.distributed import Processes
from fastdiff.training.precision import autocast
from fastdiff.training.tasks import Task
from fastdiff.training.timesteps import UniformTimes


class Validation:
    """The task's measures on batches that are always the same: images, noise and times.

    Args:
        config: the run's; nothing is mirrored and no label dropped.
        task: what is measured.
        data: the images.
        times: number of the process's times; all are as likely.
        processes: those that share the work.
    """

    def __init__(
        self, config: TrainConfig, task: Task, data: ImageData, times: int, processes: Processes
    ) -> None:
        self._config, self._task, self._processes = config, task, processes
        rows = processes.rows(config.batch_size)
        self._batches = Batches(data, replace(config, flip=False), null_class=None, rows=rows)
        self._times = UniformTimes(times)

    @torch.no_grad()
    def measure(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Means of the measures, as val_<name>."""
        count, means = self._config.val_batches, torch.zeros(len(self._task.measures), device=device)
        # Workers that decode images are not kept until the next time.
        with autocast(device, self._config.precision), contextlib.closing(self._batches):
            for step in range(count):
                batch = self._batches.draw(step, self._times).to(device)
                means += self._task.losses(model, batch).mean(dim=0) / count
        values = self._processes.mean(means).tolist()
        return {f"val_{name}": value for name, value in zip(self._task.measures, values, strict=True)}
