"""The plan of a sampling run: everything that is known before the first model call, as one table.

It is built on the host in float64. Every sampler is rows of coefficients for the op ``reverse_step``, which turns
the model's output into x_0 (clipped if so configured) and updates

    x' = x x + x0 x_0 + h1 h_1 + h2 h_2 + std z,

where x, x0, h1, h2 and std are columns of the table (``fastdiff.ops.reverse_step.COLUMNS``). A method that looks back
further than two tensors keeps one after each call and mixes those it has into one, by the same op:

    kept = keep_x x + keep_x0 x_0,    mix = mix_0 kept + mix_1 kept_1 + mix_2 kept_2        one and two calls ago

which a later row reads as its h_1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastdiff.diffusion.process import Process
from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.ops.reverse_step.table import make_table
from fastdiff.sampling.levels import Levels


class History(enum.Enum):
    """The meaning of a row's h_1 or h_2. An older one stands before the newer one that it is made of."""

    NONE = enum.auto()
    EARLIER_X0 = enum.auto()  # the estimate of x_0 of two calls ago, after clipping
    PREVIOUS_X0 = enum.auto()  # that of the previous call
    EARLIER_X = enum.auto()  # the state that the call before the previous one started from
    PREVIOUS_X = enum.auto()  # the state that the previous call started from
    EARLIER_KEPT = enum.auto()  # what the last row but one that keeps has kept: for mixes only
    KEPT = enum.auto()  # what the last row that keeps has kept: for mixes only
    MIX = enum.auto()  # the mix that it made


# What a history was one call before.
NEWER = {
    History.EARLIER_X0: History.PREVIOUS_X0,
    History.EARLIER_X: History.PREVIOUS_X,
    History.EARLIER_KEPT: History.KEPT,
}


class Launches(NamedTuple):
    """What of a row decides which kernels run, and what they read."""

    h1: History = History.NONE
    h2: History = History.NONE
    keeps: bool = False


@dataclass(frozen=True)
class Row:
    """One model call and the update that follows it."""

    time: float  # the time that the model is given
    signal: float  # the x it is given is signal x_0 + noise z
    noise: float
    x: float = 0.0
    x0: float = 0.0
    h1: float = 0.0
    history: History = History.NONE
    h2: float = 0.0
    history2: History = History.NONE
    std: float = 0.0
    # log-variances that a learned variance mixes
    log_min: float = 0.0
    log_max: float = 0.0
    # the standard deviation comes from the model's variance channels instead of ``std``
    noise_on: bool = False
    # (keep_x, keep_x0) of what is kept, and (mix_0, mix_1, mix_2) of the mix that is made of it; None: neither is.
    keep: tuple[float, float] | None = None
    mix: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def launches(self) -> Launches:
        return Launches(self.history, self.history2, self.keep is not None)


@dataclass(frozen=True)
class Adaptive:
    """A run whose steps are chosen while it goes on; the plan is then that of ``dpm_fast``, for what it may cost."""

    process: Process
    levels: Levels  # from the first to the last noisy one, and the clean image
    order: int
    rtol: float
    atol: float
    guidance_scale: float | None
    finish: Callable[[Plan], Plan] = lambda plan: plan  # brings the times into the model's convention


@dataclass(frozen=True)
class Plan:
    """S model calls: times [S] and table [S, 12] (its columns are ``COLUMNS``), float64 on the host."""

    times: Tensor
    table: Tensor
    launches: tuple[Launches, ...]
    variance: Literal["none", "learned", "learned_range"]  # how ``reverse_step`` finds the std
    levels: Tensor  # [S, 2], signal and noise of the state that each call is given
    levels_after: Tensor  # [S, 2], of the state that it leads to; the last one is taken to be the clean image
    mixing: Tensor | None = None  # [S, 12], the table of kept tensors and mixes; None: no row keeps one
    overshoots: bool = False  # the last step extrapolates: its result may lie outside of [-1, 1]
    is_reverse_chain: bool = False  # steps draw from p(x_{t-1} | x_t), whose moments can be conditioned
    adaptive: Adaptive | None = None
    # The first state is ``start`` times the noise that a run is given, its result ``end`` times the last state.
    start: float = 1.0
    end: float = 1.0

    @property
    def calls(self) -> int:
        """Number of model calls, S."""
        return len(self.launches)

    @property
    def remembered(self) -> tuple[History, ...]:
        """The histories that have to be there between two calls, older ones first."""
        used = {kind for row in self.launches for kind in (row.h1, row.h2)} - {History.NONE}
        if self.mixing is not None:
            used |= {History.EARLIER_KEPT, History.KEPT, History.MIX}
        used |= {NEWER[kind] for kind in used if kind in NEWER}
        return tuple(kind for kind in History if kind in used)

    def repeated(self, count: int) -> Plan:
        """The plan with each step made ``count`` times; in between, the loop noises the state back to its level.

        Only for steps without history.
        """
        assert set(self.launches) == {Launches()}
        return replace(
            self,
            times=self.times.repeat_interleave(count),
            table=self.table.repeat_interleave(count, 0),
            launches=self.launches * count,
            levels=self.levels.repeat_interleave(count, 0),
            levels_after=self.levels_after.repeat_interleave(count, 0),
        )

    def table_like(self, x: Tensor) -> Tensor:
        """The table where x is, in the precision of a run that starts from x."""
        return _like(self.table, x)

    def mixing_like(self, x: Tensor) -> Tensor | None:
        """The table of mixes where x is, in the same precision."""
        return None if self.mixing is None else _like(self.mixing, x)

    @property
    def is_stochastic(self) -> bool:
        """True if any step adds noise."""
        return bool(self.table[:, [COLUMNS.index("std"), COLUMNS.index("noise_on")]].any())


def make_plan(
    rows: Sequence[Row],
    process: Process,
    guidance_scale: float | None = None,
) -> Plan:
    """The table for a sampler's rows and a model of ``process``.

    Args:
        guidance_scale: w of uncond + w (cond - uncond); None without guidance.
    """
    out_x, out_m = zip(*(process.to_x0(row.signal, row.noise) for row in rows), strict=True)
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS if hasattr(Row, name)}
    guidance = 1.0 if guidance_scale is None else guidance_scale
    table = make_table(len(rows), out_x=out_x, out_m=out_m, **columns, guidance=guidance)
    levels = torch.tensor([*((row.signal, row.noise) for row in rows), (1.0, 0.0)], dtype=torch.float64)
    learned = any(row.noise_on for row in rows) and process.config.learns_variance
    return Plan(
        times=torch.tensor([row.time for row in rows], dtype=torch.float64),
        table=torch.from_numpy(table),
        launches=tuple(row.launches for row in rows),
        variance=process.config.variance if learned else "none",  # pyright: ignore[reportArgumentType]
        levels=levels[:-1],
        levels_after=levels[1:],
        mixing=_mixing(rows),
    )


def _mixing(rows: Sequence[Row]) -> Tensor | None:
    """The table for a ``reverse_step`` from x and x_0 that returns the mix and, as its x_0, what is kept."""
    if all(row.keep is None for row in rows):
        return None
    out_x, out_m = zip(*(row.keep or (0.0, 0.0) for row in rows), strict=True)
    x0, h1, h2 = zip(*(row.mix for row in rows), strict=True)
    return torch.from_numpy(make_table(len(rows), out_x=out_x, out_m=out_m, x0=x0, h1=h1, h2=h2))


def _like(table: Tensor, x: Tensor) -> Tensor:
    return table.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
