"""The plan of a sampling run: everything that is known before the first model call, as one table.

It is built on the host in float64. Every sampler is rows of coefficients for the op ``reverse_step``, which turns
the model's output into x_0 (clipped if so configured) and updates

    x' = x x + x0 x_0 + h1 h_1 + std z,

where x, x0, h1 and std are columns of the table (``fastdiff.ops.reverse_step.COLUMNS``).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastdiff.diffusion.process import Process
from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.ops.reverse_step.table import make_table


class History(enum.Enum):
    """The meaning of a row's h_1."""

    NONE = enum.auto()
    PREVIOUS_X0 = enum.auto()  # the previous call's estimate of x_0, after clipping
    PREVIOUS_X = enum.auto()  # the state that the previous call started from


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
    std: float = 0.0
    # log-variances that a learned variance mixes
    log_min: float = 0.0
    log_max: float = 0.0
    # the standard deviation comes from the model's variance channels instead of ``std``
    noise_on: bool = False


@dataclass(frozen=True)
class Plan:
    """S model calls: times [S] and table [S, 12] (its columns are ``COLUMNS``), float64 on the host."""

    times: Tensor
    table: Tensor
    history: tuple[History, ...]
    variance: Literal["none", "learned", "learned_range"]  # how ``reverse_step`` finds the std
    levels: Tensor  # [S, 2], signal and noise of the state that each call is given
    levels_after: Tensor  # [S, 2], of the state that it leads to; the last one is taken to be the clean image
    is_reverse_chain: bool = False  # steps draw from p(x_{t-1} | x_t), whose moments can be conditioned
    # The first state is ``start`` times the noise that a run is given, its result ``end`` times the last state.
    start: float = 1.0
    end: float = 1.0

    @property
    def calls(self) -> int:
        """Number of model calls, S."""
        return len(self.history)

    def repeated(self, count: int) -> Plan:
        """The plan with each step made ``count`` times; in between, the loop noises the state back to its level.

        Only for steps without history.
        """
        assert set(self.history) == {History.NONE}
        return replace(
            self,
            times=self.times.repeat_interleave(count),
            table=self.table.repeat_interleave(count, 0),
            history=self.history * count,
            levels=self.levels.repeat_interleave(count, 0),
            levels_after=self.levels_after.repeat_interleave(count, 0),
        )

    def table_like(self, x: Tensor) -> Tensor:
        """The table where x is, in the precision of a run that starts from x."""
        return self.table.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)

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
        history=tuple(row.history for row in rows),
        variance=process.config.variance if learned else "none",  # pyright: ignore[reportArgumentType]
        levels=levels[:-1],
        levels_after=levels[1:],
    )
