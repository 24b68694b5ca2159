"""First passage in plain PyTorch, all trials in step, in float64: the specification. csrc/cpu/decision.h follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.ops.philox.reference import random_bits, uniform

PATH, PARAMETERS = 0, 1  # Philox streams
COLUMNS = ("open", "push")  # of the table, csrc/common/decision.h: Column
SPLIT = 0.28  # exact: below it the series for small times, above it the one for large times
MOST_DRIFT = 2.5  # exact: intervals are narrowed until drift times half-width is at most this
MOST_STRIDE = 2048
# Where walks would never end; csrc/cpu/decision.h has the derivations.
CERTAIN = 1024.0  # exact: |v| times the distance to the nearer boundary, and the rest is one draw
LARGEST_NORMAL = 7.0  # on a grid: above sqrt(-2 ln 2^-33), the largest that is ever drawn


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.decision.first_passage`."""

    seeds: Tensor
    v: Tensor
    a: Tensor
    z: Tensor
    t0: Tensor
    s: Tensor
    sv: Tensor
    sz: Tensor
    st0: Tensor
    method: int  # its place in METHODS
    dt: float
    max_steps: int
    max_time: float
    reach: float
    table: Tensor | None = None  # [max_steps + 1, 2]: COLUMNS
    leak: float = 0.0

    def parameters(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._fields[1:9]}


@dataclass(frozen=True)
class Walkers:
    """Trials under way, [M] each, lengths in units of the trial's noise."""

    trial: Tensor
    seeds: Tensor
    x: Tensor
    a: Tensor
    v: Tensor
    unit: Tensor  # 1 / s
    reach: Tensor
    time: Tensor  # seconds, or steps on a grid
    shift: Tensor  # seconds to add at the end

    def __getitem__(self, mask: Tensor) -> Walkers:
        return Walkers(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Grid:
    dt: float
    max_steps: int
    max_time: float
    eps: float  # of the dtype that the trials are given in
    table: Tensor | None
    leak: float

    def step(
        self, w: Walkers, x: Tensor, steps: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """A step by the table -> where the lower boundary is before and after it, x after it, the variance."""
        assert self.table is not None
        row, (decay, gain, spread) = (
            steps.long().clamp_max(self.max_steps - 1),
            leaky_step(self.dt, self.leak),
        )
        half, opened = w.a / 2, self.table[:, 0].double()
        drift = w.v + self.table[row, 1].double() * w.unit
        moved = half + (x - half) * decay + drift * gain + spread * normal
        return half - half * opened[row], half - half * opened[row + 1], moved, spread**2


def leaky_step(dt: float, leak: float) -> tuple[float, float, float]:
    """Decay, gain and spread of x' = x decay + drift gain + spread normal after dt, exact for a constant drift."""
    if leak == 0:
        return 1.0, dt, math.sqrt(dt)
    return (
        math.exp(-leak * dt),
        -math.expm1(-leak * dt) / leak,
        math.sqrt(-math.expm1(-2 * leak * dt) / (2 * leak)),
    )


def first_passage(given: Arguments, record: list | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``record`` receives (trial, step, x) after each move."""
    seeds, dt, max_steps, reach, method = given.seeds, given.dt, given.max_steps, given.reach, given.method
    dtype = given.v.dtype
    grid = Grid(dt, max_steps, given.max_time, torch.finfo(dtype).eps, given.table, given.leak)
    v, a, z, t0, s, sv, sz, st0 = (p.double() for p in given.parameters().values())
    words = random_bits(seeds, 4, stream=PARAMETERS)
    v = v + sv * _normals(words[:, 0], words[:, 1])[0]
    z = starts(seeds, z, sz)
    rt = t0 + st0 * uniform(words[:, 3])
    with_drift = reach + v.abs() * a / (2 * reach * s * s) if reach else torch.full_like(v, math.inf)
    all_trials = torch.arange(len(seeds), device=seeds.device)
    zero = torch.zeros_like(v)
    reach = 1 / (with_drift * math.sqrt(dt))
    walkers = Walkers(all_trials, seeds, z / s, a / s, v / s, 1 / s, reach, zero, zero)

    begins = (z > 0) & (z < a) & (a / s).isfinite() & (v / s).isfinite()
    choice = torch.full_like(all_trials, -1, dtype=torch.int8)
    position = torch.full_like(v, math.nan)
    rt = torch.where(begins, rt, math.nan)
    walkers, block = walkers[begins], 0
    if method and given.table is None:
        still = _stands_still(walkers, grid, dtype)
        walkers = replace(walkers, time=torch.where(still, max_steps - 1.0, walkers.time))
    advance = (exact, bridge, euler)[method]
    while len(walkers.trial):
        walkers, done = advance(
            walkers, random_bits(walkers.seeds, 4, stream=PATH, first_block=block), grid, record
        )
        block += 1
        ended = walkers[done]
        i, below, above = ended.trial, ended.x <= 0, ended.x >= ended.a
        seconds = (ended.time if method == 0 else ended.time * dt) + ended.shift
        rt[i] += torch.where(below | above, seconds, math.inf)
        choice[i] = torch.where(below, 0, torch.where(above, 1, -1)).to(torch.int8)
        place = torch.where(below, 0.0, torch.where(above, ended.a, ended.x)) * s[i]
        position[i] = place if method else torch.where(below | above, place, math.nan)
        walkers = walkers[~done]
    return rt.to(dtype), choice, position.to(dtype)


def starts(seeds: Tensor, z: Tensor, sz: Tensor) -> Tensor:
    """z_i [N] float64: where each walk begins."""
    return z.double() + sz.double() * (uniform(random_bits(seeds, 4, stream=PARAMETERS)[:, 2]) - 0.5)


def euler(w: Walkers, words: Tensor, grid: Grid, record: list | None) -> tuple[Walkers, Tensor]:
    """Four moves by Euler-Maruyama -> the walkers, and which have ended."""
    z = [*_normals(words[:, 0], words[:, 1]), *_normals(words[:, 2], words[:, 3])]
    x, steps, done = w.x, w.time, torch.zeros_like(w.x, dtype=torch.bool)
    for j in range(4):
        if grid.table is not None:
            _, lower, moved, _ = grid.step(w, x, steps, z[j])
            below, above = moved <= lower, moved >= w.a - lower
            moved = torch.where(below, 0.0, torch.where(above, w.a, moved))
            x, steps = torch.where(done, x, moved), torch.where(done, steps, steps + 1)
            done = done | below | above | (steps >= grid.max_steps)
            if record is not None:
                record.append((w.trial, steps, x))
            continue
        m = _stride(torch.minimum(x, w.a - x), w.reach, steps, grid)
        x = torch.where(done, x, x + m * (w.v * grid.dt * m + math.sqrt(grid.dt) * z[j]))
        steps = torch.where(done, steps, steps + m * m)
        done = (x <= 0) | (x >= w.a) | (steps >= grid.max_steps)
        if record is not None:
            record.append((w.trial, steps, x))
    return replace(w, x=x, time=steps), done


def bridge(w: Walkers, words: Tensor, grid: Grid, record: list | None) -> tuple[Walkers, Tensor]:
    """One move, and whether and when the bridge between its ends crosses -> the walkers, and which have ended."""
    z, other = _normals(words[:, 0], words[:, 1])
    u, when = uniform(words[:, 2]), uniform(words[:, 3])
    low, high = w.x, w.a - w.x
    if grid.table is not None:
        lower, after, x, variance = grid.step(w, w.x, w.time, z)
        h, steps = grid.dt + 0 * low, w.time + 1
        low, high, next_low, next_high = low - lower, high - lower, x - after, w.a - after - x
    else:
        m = _stride(torch.minimum(low, high), w.reach, w.time, grid)
        h = variance = m * m * grid.dt
        x, steps = w.x + w.v * h + torch.sqrt(h) * z, w.time + m * m
        next_low, next_high = x, w.a - x
    below = u < torch.exp(-2 * low * next_low / variance)
    above = ~below & (1 - u < torch.exp(-2 * high * next_high / variance))
    before, past = torch.where(below, low, high), torch.where(below, next_low, next_high).abs()
    within = _crossing(before, past.clamp_min(1e-20), h, other, when)
    crossed = below | above
    x = torch.where(below, 0.0, torch.where(above, w.a, x))
    if record is not None:
        record.append((w.trial, steps, x))
    done = crossed | (steps >= grid.max_steps)
    return replace(w, x=x, time=steps, shift=torch.where(crossed, within - h, 0.0)), done


def exact(w: Walkers, words: Tensor, grid: Grid, record: list | None) -> tuple[Walkers, Tensor]:
    """One attempt to leave the widest interval around x that fits -> the walkers, and which have ended."""
    u = uniform(words)
    y = w.a - w.x
    speed, near = w.v.abs(), torch.minimum(w.x, y)
    d = torch.minimum(near, MOST_DRIFT / speed)
    mu = w.v * d
    half, rate = mu * mu / 2, mu * mu / 2 + math.pi**2 / 8
    c = SPLIT**-0.5
    left_mass = 4 * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) / c
    right_mass = math.pi / 2 / rate * torch.exp(-rate * SPLIT)
    left = u[:, 0] * (left_mass + right_mass) < left_mass
    e = -torch.log(u[:, 1])
    t = torch.where(left, SPLIT / (1 + SPLIT * e) ** 2, SPLIT + e / rate)
    w1 = torch.exp(torch.where(left, -4 / t, -(math.pi**2) * t))
    series = 1 - 3 * w1 + torch.where(left, 0.0, 5 * w1**3 - 7 * w1**6)
    tilt = torch.where(left, torch.exp(-(SPLIT * e * e / 2 + half * t)), 1.0)
    accepted = u[:, 2] < series * tilt
    up = u[:, 3] * (1 + torch.exp(-2 * mu)) < 1
    hit = accepted & (d == torch.where(up, y, w.x))
    moved = torch.where(up, w.x + d, w.x - d)
    moved = torch.where(hit, torch.where(up, w.a, 0.0), moved)
    certain = speed * torch.maximum(near, w.x * (CERTAIN * grid.eps)) > CERTAIN
    rises = w.v > 0
    distance = torch.where(rises, y, w.x)
    g = _smaller_value(_normals(words[:, 0], words[:, 1])[0].square() / (2 * speed * distance))
    at_once = distance / speed * torch.where(u[:, 2] * (1 + g) < 1, g, 1 / g)
    time = w.time + torch.where(certain, at_once, torch.where(accepted, t * d * d, 0.0))
    x = torch.where(certain, torch.where(rises, w.a, 0.0), torch.where(accepted, moved, w.x))
    late = time > grid.max_time
    return replace(w, x=torch.where(late, w.a / 2, x), time=time), hit | certain | late


def _stands_still(w: Walkers, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Which walkers not even the largest stride that is ever drawn would move."""
    m = _stride(torch.minimum(w.x, w.a - w.x), w.reach, w.time, grid)
    move = (m * (w.v.abs() * grid.dt * m + math.sqrt(grid.dt) * LARGEST_NORMAL)).to(dtype)
    x = w.x.to(dtype)
    return (x + move == x) & (x - move == x)


def _normals(radius_bits: Tensor, angle_bits: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2 * torch.log(uniform(radius_bits)))
    angle = 2 * math.pi * uniform(angle_bits)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _stride(distance: Tensor, reach: Tensor, steps: Tensor, grid: Grid) -> Tensor:
    m = torch.floor((distance * reach).clamp_max(MOST_STRIDE)).clamp_min(1)
    left = torch.floor(torch.sqrt((grid.max_steps - steps).clamp_min(0))).clamp_min(1)
    return torch.minimum(m, left)


def _smaller_value(phi: Tensor) -> Tensor:
    """The smaller of the two values of an inverse Gaussian with mean 1 that a squared normal leaves to choose from."""
    return 1 / (1 + phi + torch.sqrt(phi * (2 + phi)))


def _crossing(b: Tensor, e: Tensor, h: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """When a bridge over time h crosses a barrier at distance b from its start and e from its end."""
    phi = z * z * h / (2 * b * e)
    g = _smaller_value(phi)
    smaller = u * (1 + g) < 1
    start, rest = b * torch.where(smaller, g, 1.0), e * torch.where(smaller, 1.0, g)
    return h * (start / (start + rest))
