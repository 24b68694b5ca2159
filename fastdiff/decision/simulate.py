"""Response times and choices from the model, each trial with its own noise and its own parameters."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.moving import Closing
from fastdiff.decision.parameters import Parameters, T0Mode, ZMode, as_tensor, parameters
from fastdiff.errors import FastdiffError
from fastdiff.ops.decision import METHODS, first_passage, reference, step_count
from fastdiff.ops.philox import MAX_SEED, sample_seeds

Method = Literal["exact", "bridge", "euler"]
# Trials between two updates of the progress bar.
_CHUNK = {"exact": 1 << 20, "bridge": 1 << 17, "euler": 1 << 17}
_LONGEST = 1000.0  # seconds for which boundaries may take to meet
_MAX_PATH_NUMBERS = 1 << 28  # 1 GB of float32


class _Trials(NamedTuple):
    rt: Tensor  # [n] float64, seconds; infinite where there was no response in time
    choice: Tensor  # [n] int8: 1 upper boundary, 0 lower, -1 no response in time


class _TrialsWithPaths(NamedTuple):
    rt: Tensor
    choice: Tensor
    paths: Tensor  # [n, steps + 1] float32: x at 0, dt, 2 dt, ...; NaN after the end


class Trials(_Trials):
    """The data of an experiment: rt, choice; ``seed`` is the seed that makes the same trials again."""

    seed: int


class TrialsWithPaths(_TrialsWithPaths):
    """And what goes on in between: rt, choice, paths."""

    seed: int


@overload
def simulate(v: Any, a: Any, *args: Any, return_paths: Literal[True], **options: Any) -> TrialsWithPaths: ...


@overload
def simulate(v: Any, a: Any, *args: Any, **options: Any) -> Trials: ...


def simulate(v: Any, a: Any, z: Any = 0.5, t0: Any = 0.0, s: Any = 1.0, sv: Any = 0.0, sz: Any = 0.0,
             st0: Any = 0.0, *, n: int | None = None, seed: int | None = None, method: Method | None = None,
             dt: float = 0.001, t_max: float = math.inf, deadline: Any = None, return_paths: bool = False,
             every_step: bool = False, closing: Closing | None = None, leak: float = 0.0,
             z_mode: ZMode = "relative", t0_mode: T0Mode = "lower",
             progress: bool = False):  # fmt: skip
    """Simulate n trials of the diffusion decision model.

        dx = v_i dt + s dW  from z_i until x <= 0 (choice 0) or x >= a (choice 1);  rt = time + t0_i

    With ``closing``, ``leak`` or a drift that changes in time, as in :func:`fastdiff.decision.moving_density`,

        dx = (v_i(t) - leak (x - a / 2)) dt + s dW  until x leaves the interval that is left between the boundaries

    Args:
        v, a, z, t0, s, sv, sz, st0, z_mode, t0_mode: see :func:`fastdiff.decision.parameters`; each a number or one
            value for each trial. v may also be a function of an array of seconds.
        n: number of trials; left out, as many as the parameters have values.
        seed: of the run, 0 to 2^32 - 1. Trial i depends on (seed, i) and its own parameters only: not on n, threads
            or the instruction set. So two subjects of one seed share their noise, and with it most of their responses:
            left out, every call draws a fresh seed, which the result has as ``seed``.
        method: "exact" draws from the model's own distribution without any time step. "bridge" walks in steps of dt
            and corrects for crossings between them; "euler" does not, and so sees them late, by 0.58 s sqrt(dt) of
            a length: use it to reproduce simulators that work this way. Default: "exact", or "bridge" if the
            boundaries close, the walk leaks, or the drift changes in time, for which there is no exact method.
        dt: seconds, for "bridge" and "euler". 0.01 is enough for "bridge".
        t_max: seconds; decisions that take longer (without t0) have choice -1 and rt infinite.
        deadline: seconds, one or [n]; responses that come later (rt, t0 included) have choice -1 and rt infinite.
        return_paths: also return where x was at each step ("bridge" and "euler"; for pictures, not for speed).
        every_step: draw every step, as return_paths does. Otherwise walkers far from both boundaries take m^2 steps
            at once; the distribution is the same to 1e-6, the trials of one seed are not the same.
        closing: a :class:`fastdiff.decision.Closing`: boundaries that close. Without a t_max walks then end where they
            meet. The bridge between two steps takes them to move evenly: the error falls with dt squared.
        leak: 1 / seconds; negative for self-excitation.
        progress: show a progress bar.

    Returns:
        Trials(rt [n], choice [n]), or TrialsWithPaths(rt, choice, paths [n, steps + 1]); times are float64, with
        single precision in the decision's part of them.

    Raises:
        FastdiffError: bad parameters, n, seed, method, dt or t_max; paths of "exact", or too many of them; "exact" with
            what it cannot do; no t_max where nothing else ends a walk whose boundaries or drift move.

    Source: Ratcliff 1978, "A theory of memory retrieval"; of the methods, see docs/decision.md.
    """
    moving = closing is not None or leak != 0 or callable(v)
    push, v = (v, 0.0) if callable(v) else (None, v)
    method = method or ("bridge" if moving else "exact")
    p = parameters(v, a, z, t0, s, sv, sz, st0, z_mode=z_mode, t0_mode=t0_mode)
    n = _count(p, n)
    seed = secrets.randbelow(MAX_SEED) if seed is None else seed
    seeds = sample_seeds(n, seed)
    limit = None if deadline is None else as_tensor("deadline", deadline).expand(n)
    if method not in METHODS:
        raise FastdiffError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    steps, table = step_count(dt, t_max), None
    if moving:
        if method == "exact":
            raise FastdiffError(
                "the exact method has fixed boundaries, drift and no leak; give 'bridge' or 'euler'"
            )
        steps, table = _table(closing, push, dt, t_max)
        t_max = steps * dt
    columns = {name: x.detach().float().expand(n) for name, x in vars(p).items()}
    # The kernel works in float32; t0 is added after it, so that it keeps its digits.
    columns["t0"], t0 = torch.zeros(()).expand(n), p.t0.detach()
    if return_paths:
        rt, choice, paths = _with_paths(seeds, columns, method, dt, steps, t_max, table, leak)
        rt, choice = _observed(rt.double() + t0, choice, limit)
        walked = TrialsWithPaths(rt, choice, paths)
        walked.seed = seed
        return walked
    rt, choice = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.int8)
    starts = range(0, n, _CHUNK[method] if progress else max(n, 1))
    for start in _shown(starts, progress):
        part = slice(start, start + starts.step)
        ended = first_passage(
            seeds[part],
            **{name: column[part] for name, column in columns.items()},
            method=method,
            dt=dt,
            t_max=t_max,
            every_step=every_step,
            table=table,
            leak=leak,
        )
        rt[part], choice[part] = ended.rt, ended.choice
    trials = Trials(*_observed(rt.double() + t0, choice, limit))
    trials.seed = seed
    return trials


def _table(
    closing: Closing | None, push: Callable[[np.ndarray], Any] | None, dt: float, t_max: float
) -> tuple[int, Tensor]:
    """Number of steps, and the table of :func:`fastdiff.ops.decision.first_passage`."""
    steps = step_count(dt, min(t_max, _LONGEST))
    t = np.arange(steps + 1) * dt
    opened = np.ones_like(t) if closing is None else (1 - closing.at(t)[0]).clip(0)
    if len(met := np.flatnonzero(opened < 1e-6)):
        steps = max(1, int(met[0]))
        t, opened = t[: steps + 1], opened[: steps + 1]
    elif t_max == math.inf:
        raise FastdiffError(
            "give t_max: where the boundaries do not meet, nothing else is sure to end a walk"
        )
    drift = np.zeros_like(t) if push is None else np.asarray(push(t + dt / 2), dtype=float) * np.ones_like(t)
    if not np.isfinite(drift).all():
        raise FastdiffError("the drift must be finite at all times")
    return steps, torch.from_numpy(np.stack([opened, drift], axis=1)).float().contiguous()


def _observed(rt: Tensor, choice: Tensor, deadline: Tensor | None) -> tuple[Tensor, Tensor]:
    if deadline is None:
        return rt, choice
    late = rt > deadline
    return torch.where(late, math.inf, rt), torch.where(late, -1, choice).to(torch.int8)


def _shown(starts: range, progress: bool) -> Any:
    if not progress:
        return starts
    from tqdm import tqdm

    return tqdm(starts, desc="simulating", unit="chunk", leave=False)


def _count(p: Parameters, n: int | None) -> int:
    shape = p.shape
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise FastdiffError(f"n must be a whole number of at least 1, got {n!r}")
    if len(shape) > 1 or (n is not None and shape not in ((), (1,), (n,))):
        wanted = "one value for all trials or one for each" if n is None else f"one value or n = {n}"
        raise FastdiffError(f"each parameter must have {wanted}, got shape {list(shape)}")
    count = shape.numel() if n is None else n
    if count < 1:
        raise FastdiffError("there are no trials to simulate: a parameter is empty")
    return count


def _with_paths(
    seeds: Tensor,
    columns: dict[str, Tensor],
    method: str,
    dt: float,
    steps: int,
    t_max: float,
    table: Tensor | None,
    leak: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """On the reference, which can be asked for what happens on the way."""
    if method == "exact":
        raise FastdiffError("the exact method has no path between start and end; give 'bridge' or 'euler'")
    moves: list[tuple[Tensor, Tensor, Tensor]] = []
    grid: dict[str, Any] = {"method": METHODS.index(method), "dt": dt, "max_steps": steps}
    trials = reference.Arguments(seeds, **columns, **grid, max_time=t_max, reach=0.0, table=table, leak=leak)
    rt, choice, _ = reference.first_passage(trials, record=moves)
    trial, step, x = (torch.cat(part) for part in zip(*moves, strict=True))
    length = int(step.max()) + 1
    if len(seeds) * length > _MAX_PATH_NUMBERS:
        raise FastdiffError(
            f"paths of {len(seeds)} trials and {length} points are too many to keep; give fewer trials, "
            "a larger dt or a t_max"
        )
    paths = torch.full((len(seeds), length), math.nan)
    paths[trial, step.long()] = x.float() * columns["s"][trial]  # walkers are in units of their noise
    paths[:, 0] = reference.starts(seeds, columns["z"], columns["sz"]).float()
    return rt, choice, paths
