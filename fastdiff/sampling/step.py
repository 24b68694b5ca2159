"""One step of a plan, the model and the update: as a function of the state, or in place on static buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import Model
from fastdiff.ops.reverse_step import reverse_step
from fastdiff.sampling.denoiser import Denoiser
from fastdiff.sampling.plan import NEWER, History, Launches, Plan


@dataclass(frozen=True)
class Step:
    """(number, state) -> (next state, x_0, nonfinite): see :func:`fastdiff.ops.reverse_step`.

    The number of the step is a tensor on the device.
    """

    denoiser: Denoiser
    table: Tensor  # [S, 12]
    seeds: Tensor | None  # [N] int64; None: the step draws no noise
    variance: str
    clip: bool
    mixing: Tensor | None = None  # [S, 12]

    def __call__(
        self, index: Tensor, x: Tensor, h1: Tensor | None = None, h2: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.update(index, x, *self.denoiser(index, x), h1, h2)

    def update(
        self,
        index: Tensor,
        x: Tensor,
        output: Tensor,
        uncond: Tensor | None,
        h1: Tensor | None = None,
        h2: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The update, given the model's output at x."""
        return reverse_step(
            x,
            output,
            self.table,
            index,
            uncond=uncond,
            h1=h1,
            h2=h2,
            noise=noise,
            seeds=self.seeds,
            clip=self.clip,
            variance=self.variance,
        )

    def remember(
        self, index: Tensor, x: Tensor, x0: Tensor, memory: Mapping[History, Tensor | None], keeps: bool
    ) -> dict[History, Tensor | None]:
        """The histories after a call at x, from those before it; kept tensors and their mix if the row ``keeps``."""
        now = {older: memory.get(newer) for older, newer in NEWER.items()}
        now |= {History.PREVIOUS_X0: x0, History.PREVIOUS_X: x}
        if keeps:
            assert self.mixing is not None
            kept, earlier = memory.get(History.KEPT), memory.get(History.EARLIER_KEPT)
            now[History.MIX], now[History.KEPT], _ = reverse_step(
                x, x0, self.mixing, index, h1=kept, h2=earlier
            )
        else:
            now |= {kind: memory.get(kind) for kind in (History.EARLIER_KEPT, History.KEPT, History.MIX)}
        return now

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything a call reads besides the state and the model, by name."""
        optional = {"the seeds": self.seeds, "the mixes": self.mixing}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"the table": self.table, **given, **self.denoiser.tensors}

    def clone(self) -> Step:
        """A copy of the step with its own tensors."""
        seeds, mixing = (None if t is None else t.clone() for t in (self.seeds, self.mixing))
        return replace(
            self, denoiser=self.denoiser.clone(), table=self.table.clone(), seeds=seeds, mixing=mixing
        )


def make_step(
    plan: Plan,
    model: Model,
    x: Tensor,
    cond: Mapping[str, Tensor],
    *,
    null_class: int | None = None,
    seeds: Tensor | None = None,
    clip: bool = True,
) -> Step:
    """The step of ``plan`` for a batch like x; the arguments are those of :func:`fastdiff.sampling.loop.run`."""
    drawn = seeds if plan.is_stochastic else None
    denoiser = Denoiser(model, plan, x, cond, null_class)
    return Step(denoiser, plan.table_like(x), drawn, plan.variance, clip, plan.mixing_like(x))


class StaticStep:
    """A step on static buffers: their addresses never change, and no value from the host enters.

    x, the history and the step's number are updated in place; ``flags`` [S, N] gets a row of nonfinite. The launches
    of such a step depend only on the row's ``Launches``, so it is recorded once for each kind in the plan, a few at
    most, and replayed. (Always reading the history, with a coefficient of 0, would need one recording only, but cost a
    read of memory at each step, a NaN where a history is not finite, and the sign of zeros.)

    Args:
        step, x: a batch like those to come; :meth:`load` copies one in.
    """

    def __init__(self, step: Step, plan: Plan, x: Tensor) -> None:
        self._step = step.clone()
        self._inputs = self._step.tensors
        self.index = torch.zeros((), dtype=torch.int64, device=x.device)
        self.x = x.clone()
        self.flags = torch.zeros(plan.calls, len(x), dtype=torch.int32, device=x.device)
        self._rows = torch.arange(plan.calls, device=x.device)[:, None]
        self.memory = {kind: torch.zeros_like(x) for kind in plan.remembered}

    def buffers(self) -> dict[str, Tensor]:
        """Every tensor that the step reads or writes, by name."""
        own = {"x": self.x, "index": self.index, "flags": self.flags, "rows": self._rows}
        return {**own, **{kind.name: t for kind, t in self.memory.items()}, **self._inputs}

    def load(self, step: Step, x: Tensor) -> None:
        """Begin at step 0 with another batch of the same shapes."""
        for name, value in step.tensors.items():
            self._inputs[name].copy_(value)
        self.x.copy_(x)
        self.index.zero_()
        self.flags.zero_()
        for kind in (History.EARLIER_KEPT, History.KEPT):  # which mixes read from the first row on, times 0
            if kind in self.memory:
                self.memory[kind].zero_()

    def __call__(self, row: Launches) -> None:
        """Make one step of the kind of this row."""
        h1, h2 = self.memory.get(row.h1), self.memory.get(row.h2)
        x_next, x0, nonfinite = self._step(self.index, self.x, h1, h2)
        torch.where(self._rows == self.index, nonfinite, self.flags, out=self.flags)
        now = self._step.remember(self.index, self.x, x0, self.memory, row.keeps)
        for kind, buffer in self.memory.items():  # older ones first
            value = now[kind]
            if value is not None and value is not buffer:
                buffer.copy_(value)
        self.x.copy_(x_next)
        self.index.add_(1)
