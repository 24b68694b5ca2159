"""Steps of chosen length: DPM-Solver-12 and 23 (Lu et al. 2022, appendix C; k-diffusion's ``dpm_adaptive``).

The one sampler with a loop of its own. Each sample has its own steps, and so is the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastdiff.diffusion.process import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.plan import Adaptive, History, Plan, Row, make_plan
from fastdiff.sampling.progress import OnStep
from fastdiff.sampling.samplers.dpm_solver import solver_rows, stage
from fastdiff.sampling.samplers.points import Point, euler_step, point_at, points
from fastdiff.sampling.step import make_step

FIRST = 0.05  # the first step, in log sigma
ACCEPTED = 0.81  # the least factor of the next step with which this one stands
_LEAST = 1e-8  # no step is shorter, in log sigma
_TINY = 1e-5  # in log sigma: what is left of the way is nothing


def run_adaptive(
    plan: Plan,
    model: Model,
    x: Tensor,
    cond: Mapping[str, Tensor],
    null_class: int | None,
    clip: bool,
    check: Callable[[Tensor, Plan, int], None],
    on_step: OnStep | None,
) -> Tensor:
    """x [N,C,*] from the first level to the clean image, sample by sample.

    A step in log sigma is made with two orders. Where they differ by e = |y_low - y_high| / max(atol, rtol |y|), root
    mean square, the next step is 1 + atan(e^(-1/order) - 1) times as long; below 0.81 the step is made again.

    Args:
        check: called with the flags [1, 1], the plan and the number of the sample after each model call.
    """
    assert plan.adaptive is not None
    ends = []
    for i in range(len(x)):
        walk = _Walk(plan.adaptive, model, {n: v[i : i + 1] for n, v in cond.items()}, null_class, clip)
        walk.check = lambda bad, plan, i=i: check(bad, plan, i)
        walk.on_step = on_step
        ends.append(walk.all_the_way(x[i : i + 1]))
    return torch.cat(ends) if ends else x


class _Walk:
    def __init__(
        self, asked: Adaptive, model: Model, cond: Mapping[str, Tensor], null_class: int | None, clip: bool
    ) -> None:
        self._asked, self._model, self._cond = asked, model, cond
        self._null_class, self._clip = null_class, clip
        self.check: Callable[[Tensor, Plan], object] = lambda bad, plan: None
        self.on_step: OnStep | None = None

    def all_the_way(self, x: Tensor) -> Tensor:
        asked = self._asked
        now, *others = points(asked.levels)
        last, clean = [now, *others][-2:]
        y_before, step = x / now.signal, FIRST
        while math.log(now.sigma / last.sigma) > _TINY:
            end = max(now.sigma * math.exp(-step), last.sigma)
            after = last if end == last.sigma else point_at(asked.levels, end)
            low, high = self._both(x, now, after)
            y_low, y_high = low / after.signal, high / after.signal
            scale = (asked.rtol * torch.maximum(y_low.abs(), y_before.abs())).clamp(min=asked.atol)
            error = float(((y_low - y_high) / scale).norm()) / x.numel() ** 0.5
            factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / asked.order) - 1)
            step *= factor
            if not step > _LEAST:
                raise FastdiffError(
                    f"no step at sigma {now.sigma:g} is exact enough; give a larger rtol or atol"
                    f" (got {asked.rtol:g} and {asked.atol:g})"
                )
            if factor >= ACCEPTED:
                x, y_before, now = high, y_low, after
        return self._calls(x, [euler_step(now, clean.sigma, clean)])[-1][1]

    def _both(self, x: Tensor, now: Point, after: Point) -> tuple[Tensor, Tensor]:
        """The state at ``after`` by the lower and by the higher order, from the same model calls."""
        asked, end = self._asked, after.sigma
        rows = solver_rows(asked.levels, now, end, after, asked.order)
        made = self._calls(x, rows)
        if asked.order == 2:
            row, (state, _, x0), memory = euler_step(now, end, after), made[0], {}
        else:
            first = point_at(asked.levels, now.sigma * (end / now.sigma) ** (1 / 3))
            row, (state, _, x0) = stage(now, first, end, after, (now.sigma - end) * 1.5), made[1]
            memory = {History.PREVIOUS_X: x, History.PREVIOUS_X0: made[0][2]}
        low = row.x * state + row.x0 * x0
        for kind, coefficient in ((row.history, row.h1), (row.history2, row.h2)):
            if kind is not History.NONE:
                low = low + coefficient * memory[kind]
        return low, made[-1][1]

    def _calls(self, x: Tensor, rows: list[Row]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(state, next state, x_0) of each row, beginning at x."""
        plan = self._asked.finish(make_plan(rows, self._asked.process, self._asked.guidance_scale))
        step = make_step(plan, self._model, x, self._cond, null_class=self._null_class, clip=self._clip)
        index = torch.arange(plan.calls, device=x.device)
        memory, result = {}, []
        for number, row in enumerate(plan.launches):
            h1, h2 = memory.get(row.h1), memory.get(row.h2)
            after, x0, bad = step.update(index[number], x, *step.denoiser(index[number], x), h1, h2)
            self.check(bad[None], plan)
            if self.on_step:
                self.on_step(after, x0)
            memory = step.remember(index[number], x, x0, memory, row.keeps)
            result.append((x, after, x0))
            x = after
        return result
