"""When, and on which side, a walk with drift leaves an interval.

What comes out is random and mostly all or nothing, so that rounding errors say little: the op has no cases.py and is
tested by its distributions and its bits, in tests/decision.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastdiff.backend import Backend, forced
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.decision import reference
from fastdiff.ops.decision.reference import Arguments
from fastdiff.ops.philox import check_seeds

METHODS = ("exact", "bridge", "euler")  # csrc/common/decision.h: Method
PARAMETERS = ("v", "a", "z", "t0", "s", "sv", "sz", "st0")
MAX_STEPS = 1 << 30
_RANGE = 16384  # trials that a thread takes at once: csrc/cpu/decision.cpp: kRange

# Strides over many steps end that many of their own standard deviations before a boundary. Euler: what could happen
# inside is left out, at a probability of 6e-7. Bridge: only a crossing of both boundaries is, at less than 2e-8.
REACH = {"exact": 0.0, "bridge": 2.0, "euler": 5.0}


class Passage(NamedTuple):
    """The end of each walk."""

    rt: Tensor  # [N] seconds; infinite where the walk was still under way
    choice: Tensor  # [N] int8: 1 upper boundary, 0 lower, -1 neither
    position: Tensor  # [N] 0, a, or where the walk was when time ran out (NaN for "exact")


def first_passage(
    seeds: Tensor, v: Tensor, a: Tensor, z: Tensor, t0: Tensor, s: Tensor, sv: Tensor, sz: Tensor, st0: Tensor, *,
    method: Literal["exact", "bridge", "euler"] = "exact",
    dt: float = 0.001,
    t_max: float = math.inf,
    every_step: bool = False,
    table: Tensor | None = None,
    leak: float = 0.0,
) -> Passage:  # fmt: skip
    r"""First passage of a Wiener process with drift through 0 or a, one for each seed.

    .. math::
        \mathrm{d}x = v_i\,\mathrm{d}t + s\,\mathrm{d}W, \quad x(0) = z_i, \quad
        T = \min\{t : x(t) \notin (0, a)\}, \quad \mathrm{rt} = T + t_{0,i}

    with, trial by trial, v_i ~ N(v, sv), z_i ~ U(z - sz/2, z + sz/2), t0_i ~ U(t0, t0 + st0). Noise is Philox4x32-10:
    key = the trial's seed; counter = (block, 0, stream, 0), stream 0 for the walk, 1 for the three draws above. A
    trial depends on its own seed and parameters only.

    Args:
        seeds: [N] int64.
        v, a, z, t0, s, sv, sz, st0: [N] each, one dtype; expanded tensors are not copied. z is absolute, t0 the lower
            edge. Lengths: a, z, sz; lengths per second: v, sv; per root of a second: s; seconds: t0, st0.
        method: "exact" has no time step; "bridge" and "euler" walk on a grid of width dt, "bridge" knows the
            probability and time of crossings between its points, "euler" sees a crossing at the next point only.
        dt: seconds, ignored by "exact".
        t_max: walks longer than that (rounded up to whole steps) end with choice -1 and rt infinite.
        every_step: draw every step of the grid. Otherwise m^2 steps far from the boundaries are drawn as one.
        table: [steps + 1, 2] float32, a row for each point of the grid of "bridge" or "euler": the share of the
            separation that is left, symmetrically around a / 2, and what is added to the drift in the step that begins
            there. Every step is drawn; "bridge" takes the boundaries to move evenly within a step.
        leak: per second: the drift is v - leak (x - a / 2); with a table only.

    Returns:
        Passage(rt [N], choice [N] int8, position [N]); the positions 0 and a stand for the boundaries, wherever they
        are. A trial that cannot begin (NaN, z_i on or outside the boundaries) has rt and position NaN and choice -1.

    Every walk ends, and no rounding error stops one half way. "exact": where the drift dominates (|v| times the
    distance to the nearer boundary above 1024 s^2, or |v| x above 2^23 s^2, in float64 2^52 s^2), the rest of the walk
    is a single draw of the time to the boundary that the drift points to; the probability of the other one is 0 in
    floating point. On a grid: a walk whose largest possible step is below half a unit in the last place of x cannot
    move and ends as one that has run out of time, and every walk ends after 2^30 steps.

    Raises:
        FastdiffError: seeds, shapes, dtypes, method, dt or t_max out of the above.

    Source: Drugowitsch 2016, "Fast and accurate Monte Carlo sampling of first-passage times from Wiener diffusion
    models"; Devroye 2009, "On exact simulation algorithms for some distributions related to Jacobi theta functions".
    """
    if method not in METHODS:
        raise FastdiffError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    how = (
        *(METHODS.index(method), float(dt), step_count(dt, t_max), float(t_max)),
        0.0 if every_step or table is not None else REACH[method],
        *(table, float(leak)),
    )
    trials = seeds, v, a, z, t0, s, sv, sz, st0
    return _in_parts(trials, how) or Passage(*decision_op(*trials, *how))


def _in_parts(trials: tuple[Tensor, ...], how: tuple[int | float | Tensor | None, ...]) -> Passage | None:
    """Run many trials in parts on the CPU's kernels, so that Ctrl-C takes effect in between.

    None if the operator has to run them as one: there are few, or other kernels or a tracer are used.
    """
    seeds, size = trials[0], 16 * _RANGE * torch.get_num_threads()
    if seeds.numel() <= size or seeds.device.type != "cpu" or _is_looked_at():
        return None
    if forced() not in (None, Backend.EAGER, Backend.CPU) or decision_op.why_not(Backend.CPU, *trials, *how):
        return None
    n = len(seeds)
    rt, position = (torch.empty(n, dtype=torch.float32, device="cpu") for _ in range(2))
    ends = Passage(rt, torch.empty(n, dtype=torch.int8, device="cpu"), position)
    for first in range(0, n, size):
        part = slice(first, first + size)
        torch.ops.fastdiff._decision_part(*(x[part] for x in (*ends, *trials)), *how)
    return ends


def _is_looked_at() -> bool:
    """True if a compiler, a tracer or a transform needs to see the operator."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _check(given: Arguments) -> None:
    seeds, v = given.seeds, given.v
    check_seeds("first_passage", seeds)
    for name, value in given.parameters().items():
        if value.shape != seeds.shape or value.dtype not in (torch.float32, torch.float64):
            raise FastdiffError(
                f"first_passage: {name} must be float32 or float64 {list(seeds.shape)} like the seeds, "
                f"got {value.dtype} {list(value.shape)}"
            )
        if value.dtype != v.dtype:
            raise FastdiffError(f"first_passage: {name} is {value.dtype}, v is {v.dtype}; give one dtype")
        if value.device != seeds.device:
            raise FastdiffError(
                f"first_passage: {name} is on {value.device}, the seeds are on {seeds.device}"
            )
    method, max_steps, reach = given.method, given.max_steps, given.reach
    if not (0 <= method < len(METHODS) and 1 <= max_steps <= MAX_STEPS and reach >= 0):
        raise FastdiffError(
            f"first_passage: method {method}, max_steps {max_steps} and reach {reach} are not all in range"
        )
    step_count(given.dt, given.max_time)
    _check_table(given)


def _check_table(given: Arguments) -> None:
    table = given.table
    if table is None:
        if given.leak:
            raise FastdiffError("first_passage: leak needs a table")
        return
    if METHODS[given.method] == "exact" or given.reach:
        raise FastdiffError("first_passage: a table is for every step of the bridge and euler methods")
    if table.dtype != torch.float32 or table.dim() != 2 or table.shape[1] != 2 or not table.is_contiguous():
        raise FastdiffError(
            f"first_passage: the table must be contiguous float32 [steps + 1, 2], got {table.dtype} {list(table.shape)}"
        )
    if len(table) <= given.max_steps:
        raise FastdiffError(
            f"first_passage: the table has {len(table)} rows, {given.max_steps} steps need one more than that;"
            " give a smaller t_max"
        )
    if table.device != given.seeds.device:
        raise FastdiffError(
            f"first_passage: the table is on {table.device}, the seeds on {given.seeds.device}"
        )


def step_count(dt: float, t_max: float) -> int:
    """Whole steps of dt up to t_max, at most 2^30.

    Raises:
        FastdiffError: dt not positive and finite, or t_max not positive.
    """
    if not 0 < dt < math.inf:
        raise FastdiffError(f"dt must be a positive number of seconds, got {dt}")
    if not t_max > 0:
        raise FastdiffError(f"t_max must be a positive number of seconds, got {t_max}")
    return max(1, min(MAX_STEPS, math.ceil(t_max / dt * (1 - 1e-12)))) if t_max < math.inf else MAX_STEPS


def _fake(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    v, n = given.v, given.seeds.shape[0]
    return v.new_empty(n), v.new_empty(n, dtype=torch.int8), v.new_empty(n)


decision_op = FusedOp(
    "decision",
    Arguments,
    "(Tensor, Tensor, Tensor)",
    reference=reference.first_passage,
    fake=_fake,
    check=_check,
)
