"""One step: the gradient of the batch's mean loss, part by part, then weights and averages in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.training.batches import Batch, Batches, seeded
from fastdiff.training.config import TrainConfig
from fastdiff.training.distributed import Processes
from fastdiff.training.optimizer import LossScale, autocast, clip_factor, warmed_up
from fastdiff.training.parallel import Parallel
from fastdiff.training.state import TrainState
from fastdiff.training.tasks import Task
from fastdiff.training.timesteps import LossSecondMomentTimes


@dataclass(frozen=True)
class Update:
    """A training step: calling it makes the next step.

    Attributes:
        batches: batches of this process's rows.
        parallel: the model, as all processes compute it.
        device: device of this process.
    """

    config: TrainConfig
    task: Task
    batches: Batches
    parallel: Parallel
    processes: Processes
    state: TrainState
    device: torch.device

    def __call__(self) -> Tensor:
        """Make the next step.

        Returns:
            [measures ..., gradient norm, skipped] over all processes, float32: the weighted means of the measures, and
            1 if float16 overflowed and the step was skipped. The tensor stays on the device, because reading it would
            stall a GPU. (With float16 the norm is read, and with loss-second-moment times the losses are.)

        Raises:
            FastdiffError: the loss scale of float16 collapsed.
        """
        state = self.state
        batch = self.batches.draw(state.step, state.times).to(self.device)
        state.optimizer.zero_grad(set_to_none=True)
        measures = self._backward(batch)
        norm = self.parallel.gradient_norm()
        skipped = False
        if state.scale is not None:
            norm = norm / state.scale.scale
            skipped = not bool(norm.isfinite())
        if not skipped:
            self._step(norm)
            self._tell_times(batch.t, measures[:, 0])
        state.step += 1
        if state.scale is not None:
            state.scale.update(finite=not skipped)
            self._check(state.scale)
        means = self.processes.mean((measures * batch.weight[:, None]).mean(dim=0))
        return torch.cat([means, torch.stack([norm, torch.full_like(norm, skipped)])])

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean of this process's weighted losses, times the loss scale. Returns the measures [N,M]."""
        config, state, found = self.config, self.state, []
        size = config.microbatch or len(batch)
        factor = (1.0 if state.scale is None else state.scale.scale) / len(batch)
        first = self.processes.rows(config.batch_size).start
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            # Dropout takes no generator. Its mask depends on where the part begins in the batch, not on the process.
            torch.manual_seed(seeded(config.seed, "dropout", state.step, first + start).initial_seed())
            with self.parallel.accumulate(last=start + size >= len(batch)):
                with autocast(self.device, config.precision):
                    measures = self.task.losses(self.parallel.forward, part)
                (measures[:, 0] * part.weight * factor).sum().backward()
            found.append(measures.detach())
        return torch.cat(found)

    def _step(self, norm: Tensor) -> None:
        """Update weights, moments and averages.

        Args:
            norm: norm of the gradient, without the loss scale.
        """
        config, state = self.config, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate(state.step)
            # The target's average begins with weights that are trained, or follows closely: it is not warmed up.
            saved = (warmed_up(decay, state.step) for decay in config.ema)
            group["ema_rates"] = (*saved, *config.averages[len(config.ema) :])
        factor = clip_factor(norm, config.clip_norm) if config.clip_norm else None
        if state.scale is not None:
            factor = (torch.ones_like(norm) if factor is None else factor) / state.scale.scale
        state.optimizer.step(grad_factor=factor)

    def _tell_times(self, t: Tensor, loss: Tensor) -> None:
        """Record the losses of all processes for importance sampling of times, so that all draw the same times."""
        if isinstance(self.state.times, LossSecondMomentTimes):
            t, loss = self.processes.gather(torch.stack([t.double(), loss.double()], dim=1)).unbind(1)
            self.state.times.update(t.long(), loss)

    def _check(self, scale: LossScale) -> None:
        if scale.collapsed:
            raise FastdiffError(
                f"the loss scale of float16 fell below 1 at step {self.state.step}: loss or gradient are not finite "
                "at any scale; train in bfloat16 or float32, or with a smaller lr"
            )
