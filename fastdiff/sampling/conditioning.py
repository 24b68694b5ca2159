"""Applying a condition in the sampling loop: to the model's output before ``reverse_step``, to the state after it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import normal
from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.sampling.conditions import BACK_STREAM, Condition
from fastdiff.sampling.plan import Plan

_OUT_M, _STD, _LOG_MIN, _LOG_MAX, _NOISE_ON = (
    COLUMNS.index(name) for name in ("out_m", "std", "log_min", "log_max", "noise_on")
)


class Conditioner:
    """A condition bound to a plan and a batch: only step and state remain.

    If the condition changes the mean and variance of p(x_{t-1} | x_t), ``draws_noise`` is True: ``reverse_step``
    computes the mean only, and the noise is added here, with the numbers that the kernel would have drawn. Otherwise
    the kernel does the whole step.

    Args:
        condition: with a row for each sample of the batch, on its device.
        plan: of the run, as :func:`adapt_plan` made it.
        x: x_T, for its device and dtype.
        seeds: [N] int64.
    """

    def __init__(self, condition: Condition, plan: Plan, x: Tensor, seeds: Tensor) -> None:
        self._condition, self._plan, self._seeds = condition, plan, seeds
        self._table = table = plan.table_like(x)
        self.draws_noise = condition.changes_moments and plan.is_reverse_chain
        whole = bool((plan.times == plan.times.round()).all())
        self._times = plan.times.to(table.device, torch.int64 if whole else table.dtype)
        self._after: list[list[float]] = plan.levels_after.tolist()
        self._levels: list[list[float]] = [*plan.levels.tolist(), self._after[-1]]

    def initial(self, x: Tensor) -> Tensor:
        """x_T with its known part replaced."""
        return self._with_known(x, 0)

    def output(
        self, step: int, x: Tensor, output: Tensor, uncond: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The model's outputs at x, shifted to shift the estimate of x_0 by noise^2 / signal grad log r."""
        gradient = None if self.draws_noise else self._condition.score(x, self._times[step].expand(len(x)))
        if gradient is None:
            return output, uncond
        signal, noise = self._levels[step]
        shift = noise**2 / signal / float(self._plan.table[step, _OUT_M]) * gradient
        # Guidance mixes the two outputs with weights that sum to 1, so shifting both shifts the mixture as much.
        return _shifted(output, shift), None if uncond is None else _shifted(uncond, shift)

    def state(self, step: int, x: Tensor, output: Tensor) -> Tensor:
        """The state after the step, from the result of ``reverse_step``, which is the mean if ``draws_noise``."""
        if self.draws_noise and bool(self._plan.table[step, [_STD, _NOISE_ON]].any()):
            x = self._drawn(step, x, output)  # a step without noise has no variance, so r does not change it
        (signal, noise), (signal_after, noise_after) = self._levels[step], self._after[step]
        if self._levels[step + 1] != self._after[step]:  # the step is made once more
            drawn = normal(self._seeds, x.shape[1:], step=step, stream=BACK_STREAM, dtype=x.dtype)
            ratio = signal / signal_after
            x = ratio * x + (noise**2 - (ratio * noise_after) ** 2) ** 0.5 * drawn
        return self._with_known(x, step + 1)

    def _drawn(self, step: int, mean: Tensor, output: Tensor) -> Tensor:
        t = self._times[min(step + 1, self._plan.calls - 1)].expand(len(mean))
        progress = (step + 1) / self._plan.calls
        mean, variance = self._condition.moments(mean, self._variance(step, mean, output), t, progress)
        noise = normal(self._seeds, mean.shape[1:], step=step, dtype=mean.dtype)
        return mean + variance.sqrt() * noise

    def _variance(self, step: int, mean: Tensor, output: Tensor) -> Tensor:
        """Variance of p(x_{t-1} | x_t) as ``reverse_step`` defines it: a scalar, or of the mean's shape if learned."""
        row = self._table[step]
        if self._plan.variance == "none":
            return row[_STD] ** 2
        log_variance = output[:, mean.shape[1] :].to(mean.dtype)
        if self._plan.variance == "learned_range":
            fraction = (log_variance + 1) / 2
            log_variance = fraction * row[_LOG_MAX] + (1 - fraction) * row[_LOG_MIN]
        return row[_NOISE_ON] ** 2 * log_variance.exp()

    def _with_known(self, x: Tensor, counter: int) -> Tensor:
        # Without noise in the steps the state follows one path, so the known pixels keep one noise, too.
        stochastic = self._plan.is_stochastic
        return self._condition.state(x, self._levels[counter], self._seeds, counter if stochastic else 0)


def adapt_plan(plan: Plan, condition: Condition) -> Plan:
    """The plan as the condition needs it: with its steps repeated, if it repeats them.

    Raises:
        FastdiffError: the plan's sampler cannot be used with the condition.
    """
    if condition.needs_reverse_chain and not plan.is_reverse_chain:
        raise FastdiffError(
            f"{type(condition).__name__} needs the steps of the reverse chain"
            f"{' to repeat them' * (condition.step_count > 1)}: use sampler 'ancestral', or 'ddim' with eta 1"
        )
    return plan.repeated(condition.step_count) if condition.step_count > 1 else plan


def _shifted(output: Tensor, shift: Tensor) -> Tensor:
    """output [N,C or 2C,*], at least float32, with shift [N,C,*] added to its first C channels."""
    result = output.to(torch.promote_types(output.dtype, torch.float32), copy=True)
    result[:, : shift.shape[1]] += shift
    return result
