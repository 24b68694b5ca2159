"""Shared by all Triton kernel modules: where kernels run, how they are launched, and common device functions.

Works with Triton 3.6 and later. The device functions use nothing of libdevice, which the interpreter lacks.
"""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from fastdiff.ops._library import DTYPES

# In Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) kernels run on the CPU's tensors,
# for tests only: it takes milliseconds for what a GPU does in a microsecond.
INTERPRETED = bool(knobs.runtime.interpret)
MAX_GRID_Y = 65535  # CUDA's limit on the second and third dimension of a grid


def why_not(x: Tensor, **others: Tensor | None) -> str | None:
    """The reason why no Triton kernel takes these tensors, or None. All of them are already on x's device."""
    if not INTERPRETED and x.device.type != "cuda":
        return f"Triton's kernels run on CUDA devices, and x is on {x.device}"
    for name, t in {"x": x, **others}.items():
        if t is not None and t.dtype not in DTYPES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
    return None


def element(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for it."""
    return getattr(tl, str(dtype).removeprefix("torch."))


# --- Launching ---------------------------------------------------------------------------------------------------


class Device(NamedTuple):
    """Properties of a GPU that decide launch geometry. The defaults are an H100's, for interpreting and compiling."""

    multiprocessors: int = 132
    l2_bytes: int = 50 << 20
    shared_bytes: int = 232448  # that one program may use


@functools.cache
def device_of(device: torch.device) -> Device:
    if device.type != "cuda":
        return Device()
    properties = torch.cuda.get_device_properties(device)
    return Device(
        properties.multi_processor_count,
        properties.L2_cache_size,
        properties.shared_memory_per_block_optin,
    )


class Configuration(NamedTuple):
    """One configuration in which a kernel is launched, with everything needed to compile it."""

    kernel: Any
    # The type of every argument: "*bf16:16" (a multiple of 16), "i32", "constexpr", or a tuple.
    signature: dict[str, Any]
    constexprs: dict[Any, Any]  # by name, or by (argument, place in its tuple)
    num_warps: int
    num_stages: int


_recording: dict[str, Configuration] | None = None


class Recording:
    """The configurations that ``calls`` launches, on meta tensors: recorded instead of run, whenever iterated."""

    def __init__(self, calls: Callable[[], Any]) -> None:
        self._calls = calls

    def __iter__(self) -> Iterator[Configuration]:
        global _recording
        _recording = {}
        try:
            self._calls()
            return iter(_recording.values())
        finally:
            _recording = None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *arguments: Any,
    num_warps: int,
    num_stages: int = 1,
    **constexprs: Any,
) -> None:
    """Launch on the device's current stream. Nothing waits; a grid without programs is no launch."""
    if _recording is not None:
        c = _configuration(kernel, arguments, constexprs, num_warps, num_stages)
        _recording[f"{kernel.fn.__module__}.{kernel.fn.__name__} {c[1:]}"] = c
        return
    if 0 in grid:
        return
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constexprs)


_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
}


def _configuration(
    kernel: Any, arguments: tuple[Any, ...], constexprs: dict[str, Any], num_warps: int, num_stages: int
) -> Configuration:
    signature, constants = {}, dict(constexprs)
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
        if isinstance(value, tuple):
            kinds = tuple(_kind(v, parameter) for v in value)
            constants |= {(i, j): value[j] for j, kind in enumerate(kinds) if kind == "constexpr"}
        else:
            kinds = _kind(value, parameter)
            constants |= {parameter.name: value} if kinds == "constexpr" else {}
        signature[parameter.name] = kinds
    signature |= dict.fromkeys(constexprs, "constexpr")
    return Configuration(kernel, signature, constants, num_warps, num_stages)


def _kind(value: Any, parameter: Any) -> str:
    """As Triton's launcher specializes: 1 and None are constants, multiples of 16 are known to be such."""
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}:16"  # allocations are aligned to more than that
    if isinstance(value, float):
        return "fp32"
    if value is None or (value == 1 and not parameter.do_not_specialize):
        return "constexpr"
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    return f"{width}:16" if value % 16 == 0 and not parameter.do_not_specialize else width


# --- Arithmetic --------------------------------------------------------------------------------------------------

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def to_nearest(x, dtype: tl.constexpr):
    """float32 -> dtype, rounded to nearest."""
    if _INTERPRETED and dtype == tl.bfloat16:  # it would cut the bits off
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def store(pointers, values, mask):
    """Round float32 values to the pointers' type, to nearest, and store them."""
    tl.store(pointers, to_nearest(values, pointers.dtype.element_ty), mask=mask)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


# --- Noise: csrc/common/philox.h and csrc/cpu/noise.h, whose comments derive the polynomials -----------------------


@triton.jit
def low_word(x):
    return x.to(tl.uint32)


@triton.jit
def high_word(x):
    return (x >> 32).to(tl.uint32)


@triton.jit
def philox(key0, key1, c0, c1, c2, c3):
    """Philox4x32-10 of uint32 tensors: the four words of counter (c0, c1, c2, c3)."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low1 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
        key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def philox_blocks(seed, block, step, stream):
    """The words of a sample's blocks: seed, step and stream are integers, block is a tensor of int64."""
    zero = low_word(block) ^ low_word(block)
    c1, c2 = zero ^ low_word(step), zero ^ low_word(stream)
    return philox(low_word(seed), high_word(seed), low_word(block), c1, c2, high_word(block))


@triton.jit
def uniform(r):
    """(r + 1/2) / 2^32, in (0, 1]."""
    return (r >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10


@triton.jit
def minus_two_log(r):
    """-2 ln u for u = (r + 1/2) / 2^32, to 4 ulp."""
    upper = r >= 0x80000000  # u > 1/2: kept as 1 - u, which a float holds
    v = tl.where(upper, r ^ 0xFFFFFFFF, r).to(tl.int32).to(tl.float32)
    v = v * 2.3283064365386963e-10 + 1.1641532182693481e-10
    w = tl.where(upper, 1.0 - v, v).to(tl.int32, bitcast=True)
    e = (w - 0x3F3504F3) >> 23
    scale = (0x3F800000 - (e << 23)).to(tl.float32, bitcast=True)
    f = tl.where(upper, (scale - 1.0) - scale * v, scale * v - 1.0)
    p = f * -0.17478861 + 0.2861872
    p = p * f - 0.2983385
    p = p * f + 0.33140218
    p = p * f - 0.39924303
    p = p * f + 0.50003564
    p = p * f - 0.66667897
    p = p * f + 0.9999998
    p = p * f - 2.0
    return e.to(tl.float32) * -1.38629436 + p * f


@triton.jit
def unit_circle(r):
    """cos and sin of 2 pi u for u = (r + 1/2) / 2^32, to 2 ulp; the GPU's own sine is only good to 2^-21."""
    t = ((r << 2).to(tl.int32, bitcast=True) >> 2).to(tl.float32)
    t = t * 2.3283064365386963e-10 + 1.1641532182693481e-10
    k = (r + 0x20000000) >> 30  # the nearest quarter, 0 to 3
    q = t * t
    c = q * 58.62106 - 85.42452
    c = c * q + 64.93915
    c = c * q - 19.739208
    c = c * q + 1.0
    d = q * -75.42739 + 81.59343
    d = d * q - 41.34167
    d = t * 6.28318548 + (d * q - 1.7484556e-7) * t
    odd = (k & 1) != 0
    cosine, sine = tl.where(odd, d, c), tl.where(odd, c, d)
    return tl.where((k == 1) | (k == 2), -cosine, cosine), tl.where(k >= 2, -sine, sine)


@triton.jit
def normals(radius_bits, angle_bits):
    """A pair of independent standard normals (Box & Muller)."""
    cosine, sine = unit_circle(angle_bits)
    radius = tl.sqrt_rn(minus_two_log(radius_bits))
    return radius * cosine, radius * sine


@triton.jit
def in_order(w0, w1, w2, w3):
    """[B] each -> [4 B]: w0[0], w1[0], w2[0], w3[0], w0[1], ..."""
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def draw_normals(seed, block, step, stream):
    """[B] blocks -> [4 B] normals, in the order of their elements."""
    w0, w1, w2, w3 = philox_blocks(seed, block, step, stream)
    z0, z1 = normals(w0, w1)
    z2, z3 = normals(w2, w3)
    return in_order(z0, z1, z2, z3)
