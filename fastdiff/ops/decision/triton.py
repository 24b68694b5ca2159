"""decision on Triton: one trial a lane, its noise in registers; a lane whose trial has ended takes up another.

csrc/cpu/decision.h has the same arithmetic and its derivations. A trial depends on its seed and its parameters only,
so that neither the number of trials nor the launch changes it.
"""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops._triton import high_word, low_word, minus_two_log, normals, philox, uniform
from fastdiff.ops.decision import METHODS, PARAMETERS, reference
from fastdiff.ops.decision.reference import Arguments

_LANES = 64  # of a program, which is one warp: lanes wait only for their own warp's
_PROGRAMS = 16  # for each multiprocessor
_EXACT, _BRIDGE = tl.constexpr(METHODS.index("exact")), tl.constexpr(METHODS.index("bridge"))
_SPLIT, _LEFT, _MOST_DRIFT = tl.constexpr(0.28), tl.constexpr(0.141586945), tl.constexpr(2.5)
_CERTAIN, _UNMOVED, _LARGEST_NORMAL = tl.constexpr(1024.0), tl.constexpr(2.0**-13), tl.constexpr(7.0)
_RATE, _HALF_PI, _PI_SQUARED = tl.constexpr(1.23370055), tl.constexpr(1.57079633), tl.constexpr(9.86960440)


@triton.jit
def stride(distance, reach, steps, max_steps, STRIDES: tl.constexpr):
    """Width m of a move: m^2 steps at once, m whole, none beyond the last step."""
    if STRIDES:
        m = tl.maximum(tl.minimum(distance * reach, 2048.0).to(tl.int32).to(tl.float32), 1.0)
        left = tl.maximum(max_steps - steps, 0).to(tl.float32)
        m = tl.maximum(tl.minimum(m, tl.sqrt_rn(left).to(tl.int32).to(tl.float32)), 1.0)
    else:
        m = distance * 0.0 + 1.0
    return m


@triton.jit
def stands_still(x, a, v, reach, dt, max_steps, STRIDES: tl.constexpr):
    """True if even the largest stride that can be drawn does not move the walker."""
    m = stride(tl.minimum(x, a - x), reach, max_steps * 0, max_steps, STRIDES)
    move = m * (tl.abs(v) * dt * m + tl.sqrt_rn(v * 0.0 + dt) * _LARGEST_NORMAL)
    return (x + move == x) & (x - move == x)


@triton.jit
def table_step(x, a, v, unit, steps, normal, table, decay, gain, spread, max_steps):
    """A step by the table -> where the lower boundary is before and after it, and x after it."""
    row = table + tl.minimum(steps, max_steps - 1) * 2
    half = 0.5 * a
    drift = v + tl.load(row + 1) * unit
    moved = half + ((x - half) * decay + (drift * gain + spread * normal))
    return half - half * tl.load(row), half - half * tl.load(row + 2), moved


@triton.jit
def euler(
    w0, w1, w2, w3, x, a, v, unit, reach, steps, dt, max_steps, table, decay, gain, spread,
    STRIDES: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """Four moves by Euler-Maruyama -> x, steps, done."""
    z0, z1 = normals(w0, w1)
    z2, z3 = normals(w2, w3)
    z = (z0, z1, z2, z3)
    drift = v * dt
    sigma = tl.sqrt_rn(v * 0.0 + dt)
    done = x != x
    for j in tl.static_range(4):
        if TABLE:
            _, lower, moved = table_step(x, a, v, unit, steps, z[j], table, decay, gain, spread, max_steps)
            moved = tl.where(moved <= lower, 0.0, tl.where(moved >= a - lower, a, moved))
            x, steps = tl.where(done, x, moved), tl.where(done, steps, steps + 1)
        else:
            m = stride(tl.minimum(x, a - x), reach, steps, max_steps, STRIDES)
            x = tl.where(done, x, x + m * (drift * m + sigma * z[j]))
            steps = tl.where(done, steps, steps + (m * m).to(tl.int32))
        done = (x <= 0.0) | (x >= a) | (steps >= max_steps)
    return x, steps, done


@triton.jit
def smaller_value(phi):
    """The smaller of the two values of an inverse Gaussian with mean 1 that a squared normal leaves to choose from."""
    return 1.0 / (1.0 + phi + tl.sqrt_rn(phi * (2.0 + phi)))


@triton.jit
def crossing(b, e, h, z, u):
    """When a bridge over time h crosses a barrier at distance b from its start and e from its end."""
    end = tl.maximum(e, 1e-20)
    phi = z * z * h / (2.0 * b * end)
    g = smaller_value(phi)
    smaller = u * (1.0 + g) < 1.0
    start, rest = b * tl.where(smaller, g, 1.0), end * tl.where(smaller, 1.0, g)
    return h * (start / (start + rest))


@triton.jit
def bridge(
    w0, w1, w2, w3, x, a, v, unit, reach, steps, dt, max_steps, table, decay, gain, spread,
    STRIDES: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """One move, and whether and when the bridge between its ends crosses -> x, steps, shift of the time, done."""
    z, other = normals(w0, w1)
    low, high = x, a - x
    if TABLE:
        lower, after, end = table_step(x, a, v, unit, steps, z, table, decay, gain, spread, max_steps)
        h = x * 0.0 + dt
        variance = x * 0.0 + spread * spread
        low, high = low - lower, high - lower
        end_low, end_high = end - after, a - after - end
        passed = steps * 0 + 1
    else:
        m = stride(tl.minimum(low, high), reach, steps, max_steps, STRIDES)
        h = m * m * dt
        variance = h
        end = x + (v * h + tl.sqrt_rn(h) * z)
        end_low, end_high = end, a - end
        passed = (m * m).to(tl.int32)
    scale, u = -2.0 / variance, uniform(w2)
    below = u < tl.exp(low * end_low * scale)
    above = (below == 0) & (1.0 - u < tl.exp(high * end_high * scale))
    crossed = below | above
    past = tl.abs(tl.where(below, end_low, end_high))
    within = crossing(tl.where(below, low, high), past, h, other, uniform(w3))
    steps += passed
    x = tl.where(below, 0.0, tl.where(above, a, end))
    return x, steps, tl.where(crossed, within - h, 0.0), crossed | (steps >= max_steps)


@triton.jit
def time_at_once(w0, w1, w2, distance, speed):
    """To a boundary that is certain to be hit."""
    z, _ = normals(w0, w1)
    g = smaller_value(z * z / (2.0 * speed * distance))
    return distance / speed * tl.where(uniform(w2) * (1.0 + g) < 1.0, g, 1.0 / g)


@triton.jit
def exact(w0, w1, w2, w3, x, a, v, time, max_time):
    """One attempt to leave the widest interval around x that fits -> x, time, done."""
    y = a - x
    speed, near = tl.abs(v), tl.minimum(x, y)
    d = tl.minimum(near, _MOST_DRIFT / speed)
    mu = v * d
    half = 0.5 * mu * mu
    rate = half + _RATE
    right_mass = _HALF_PI / rate * tl.exp(rate * -_SPLIT)
    left = uniform(w0) * (_LEFT + right_mass) < _LEFT
    e = 0.5 * minus_two_log(w1)
    q = e * _SPLIT + 1.0
    t = tl.where(left, _SPLIT, e) / tl.where(left, q * q, rate) + tl.where(left, 0.0, _SPLIT)
    w = tl.exp(tl.where(left, q * q * (-4.0 / _SPLIT), t * -_PI_SQUARED))
    cubed = w * w * w
    series = 1.0 - 3.0 * w + tl.where(left, 0.0, cubed * (5.0 - 7.0 * cubed))
    tilt = tl.where(left, tl.exp(e * e * (-0.5 * _SPLIT) - half * t), 1.0)
    accepted = uniform(w2) < series * tilt
    up = uniform(w3) * (1.0 + tl.exp(-2.0 * mu)) < 1.0
    hit = accepted & (d == tl.where(up, y, x))
    moved = tl.where(hit, tl.where(up, a, 0.0), tl.where(up, x + d, x - d))
    moved, passed = tl.where(accepted, moved, x), tl.where(accepted, t * (d * d), 0.0)
    certain = speed * tl.maximum(near, x * _UNMOVED) > _CERTAIN
    if tl.max(certain.to(tl.int32), 0) > 0:
        rises = v > 0.0
        rest = time_at_once(w0, w1, w2, tl.where(rises, y, x), speed)
        moved, passed = tl.where(certain, tl.where(rises, a, 0.0), moved), tl.where(certain, rest, passed)
        hit = hit | certain
    time += passed
    late = time > max_time
    return tl.where(late, 0.5 * a, moved), time, hit | late


@triton.jit
def finish(
    rt, choice, position, s, s_stride, trial, mask, x, a, begin, time, steps, shift, dt, METHOD: tl.constexpr
):
    """Write what became of the trials; x is NaN if they could not begin."""
    below, above = x <= 0.0, x >= a
    seconds = time if METHOD == _EXACT else steps.to(tl.float32) * dt + shift
    seconds = tl.where(below | above, seconds, float("inf"))
    place = tl.where(below, 0.0, tl.where(above, a, x))
    if METHOD == _EXACT:  # where the walk was when time ran out is not known
        place = tl.where(below | above, place, float("nan"))
    scale = tl.load(s + trial * s_stride, mask=mask, other=1.0)
    tl.store(rt + trial, tl.where(x == x, begin + seconds, float("nan")), mask=mask)
    tl.store(choice + trial, tl.where(below, 0, tl.where(above, 1, -1)).to(tl.int8), mask=mask)
    tl.store(position + trial, place * scale, mask=mask)


@triton.jit
def own_values(key0, key1, v, z, t0, sv, sz, st0):
    """A trial's drift, start and non-decision time, drawn from the ranges it is given."""
    zero = key0 ^ key0
    w0, w1, w2, w3 = philox(key0, key1, zero, zero, zero + 1, zero)
    normal, _ = normals(w0, w1)
    return v + sv * normal, z + sz * (uniform(w2) - 0.5), t0 + st0 * uniform(w3)


@triton.jit
def scaled(v, z, a, s):
    """Drift, start and boundary in units of the trial's noise; the start is NaN if the trial cannot begin."""
    unit = 1.0 / s
    v, z, a = v * unit, z * unit, a * unit
    can_begin = (z > 0.0) & (z < a) & (a < float("inf")) & (v - v == 0.0)
    return v, tl.where(can_begin, z, float("nan")), a


# A lane reads one number, so there is nothing to specialize for.
_STRIDES = ["seed_stride", *(f"{p}_stride" for p in PARAMETERS)]


@triton.jit(do_not_specialize=["trials", "max_steps", *_STRIDES])
def decision_forward_kernel(
    seeds, v, a, z, t0, s, sv, sz, st0, rt, choice, position,
    seed_stride, v_stride, a_stride, z_stride, t0_stride, s_stride, sv_stride, sz_stride, st0_stride,
    trials, dt, max_steps, max_time, reach, table, decay, gain, spread,
    METHOD: tl.constexpr, STRIDES: tl.constexpr, TABLE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    total = tl.num_programs(0).to(tl.int64) * LANES
    # Lanes begin as if a trial before the first had just ended: one way to take up a trial, wherever in the walk.
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES) - total
    x = tl.zeros((LANES,), tl.float32)
    boundary, drift, far, begin, time, shift, unit = x, x, x, x, x, x, x
    steps = tl.zeros((LANES,), tl.int32)
    key0, key1, block, zero = (
        steps.to(tl.uint32),
        steps.to(tl.uint32),
        steps.to(tl.uint32),
        steps.to(tl.uint32),
    )
    done, running = steps == 0, 1
    while running > 0:
        ended = done & (i < trials)
        if tl.max(ended.to(tl.int32), 0) > 0:
            mask = ended & (i >= 0)
            finish(
                rt, choice, position, s, s_stride, i, mask, x, boundary, begin, time, steps, shift, dt, METHOD
            )
            i = tl.where(ended, i + total, i)
            mask = ended & (i < trials)
            seed = tl.load(seeds + i * seed_stride, mask=mask, other=0)
            key0, key1 = tl.where(ended, low_word(seed), key0), tl.where(ended, high_word(seed), key1)
            own_v, own_z, own_t0 = own_values(
                key0, key1,
                tl.load(v + i * v_stride, mask=mask, other=0.0), tl.load(z + i * z_stride, mask=mask, other=0.0),
                tl.load(t0 + i * t0_stride, mask=mask, other=0.0), tl.load(sv + i * sv_stride, mask=mask, other=0.0),
                tl.load(sz + i * sz_stride, mask=mask, other=0.0), tl.load(st0 + i * st0_stride, mask=mask, other=0.0),
            )  # fmt: skip
            own_s = tl.load(s + i * s_stride, mask=mask, other=1.0)
            own_v, own_x, own_a = scaled(own_v, own_z, tl.load(a + i * a_stride, mask=mask, other=0.0), own_s)
            x, boundary = tl.where(ended, own_x, x), tl.where(ended, own_a, boundary)
            drift, begin = tl.where(ended, own_v, drift), tl.where(ended, own_t0, begin)
            if TABLE:
                unit = tl.where(ended, 1.0 / own_s, unit)
            if STRIDES:  # the end of a stride lies `reach` of its standard deviations before the boundary
                with_drift = reach + tl.abs(own_v) * own_a * (0.5 / reach)
                far = tl.where(ended, 1.0 / (with_drift * tl.sqrt_rn(with_drift * 0.0 + dt)), far)
            time, shift = tl.where(ended, 0.0, time), tl.where(ended, 0.0, shift)
            steps, block = tl.where(ended, 0, steps), tl.where(ended, zero, block)
            if METHOD != _EXACT and not TABLE:
                still = stands_still(x, boundary, drift, far, dt, max_steps, STRIDES)
                steps = tl.where(ended & still, max_steps - 1, steps)

        w0, w1, w2, w3 = philox(key0, key1, block, zero, zero, zero)
        block += 1
        stuck = x != x  # could not begin
        if METHOD == _EXACT:
            x, time, done = exact(w0, w1, w2, w3, x, boundary, drift, time, max_time)
        elif METHOD == _BRIDGE:
            x, steps, shift, done = bridge(
                w0, w1, w2, w3, x, boundary, drift, unit, far, steps, dt, max_steps,
                table, decay, gain, spread, STRIDES, TABLE,
            )  # fmt: skip
        else:
            x, steps, done = euler(
                w0, w1, w2, w3, x, boundary, drift, unit, far, steps, dt, max_steps,
                table, decay, gain, spread, STRIDES, TABLE,
            )  # fmt: skip
        x, done = tl.where(stuck, float("nan"), x), done | stuck
        running = tl.max((i < trials).to(tl.int32), 0)


def _run(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    seeds, parameters = given.seeds, list(given.parameters().values())
    n, device = len(seeds), seeds.device
    rt, position = parameters[0].new_empty(n), parameters[0].new_empty(n)
    choice = seeds.new_empty(n, dtype=torch.int8)
    programs = min(triton.cdiv(n, _LANES), _PROGRAMS * _triton.device_of(device).multiprocessors)
    strides = [p.stride(0) for p in parameters]
    _triton.launch(
        decision_forward_kernel, (programs,), device,
        seeds, *parameters, rt, choice, position, seeds.stride(0), *strides, n,
        given.dt, given.max_steps, given.max_time, given.reach,
        given.table, *reference.leaky_step(given.dt, given.leak),
        METHOD=given.method, STRIDES=given.reach > 0, TABLE=given.table is not None, LANES=_LANES, num_warps=1,
    )  # fmt: skip
    return rt, choice, position


def _supports(given: Arguments) -> str | None:
    seeds, v = given.seeds, given.v
    if not _triton.INTERPRETED and seeds.device.type != "cuda":
        return f"Triton's kernels run on CUDA devices, and the seeds are on {seeds.device}"
    return None if v.dtype == torch.float32 else f"{v.dtype} is not float32"


def _calls() -> None:
    seeds = torch.empty(10_000, dtype=torch.int64, device="meta")
    rows = (torch.empty(10_000, device="meta"),) * len(PARAMETERS)
    for method in range(len(METHODS)):
        for reach in (0.0,) if METHODS[method] == "exact" else (0.0, 2.0):
            _run(Arguments._make((seeds, *rows, method, 0.001, 1 << 30, math.inf, reach, None, 0.0)))
        if METHODS[method] != "exact":
            table = torch.empty(1001, 2, device="meta")
            _run(Arguments._make((seeds, *rows, method, 0.001, 1000, math.inf, 0.0, table, 1.0)))


KERNELS = {"decision": Kernel(_run, _supports)}
CONFIGURATIONS = _triton.Recording(_calls)
