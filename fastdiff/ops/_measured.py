"""The dispatch table: the fastest backend by measurements of ``make gpu``, used for CUDA devices only.

``fastdiff/assets/dispatch.json`` holds, by the name that the driver gives a GPU,

    {"capability": "9.0", "date": "...", "torch": "...", "ops": {op: {class of arguments: backend}}}

An op is an operator's name, so that forward and backward are two; ``attention_training`` is attention's forward and
backward together. A class is a dtype, for attention with the head size and the number of tokens: ``"bfloat16"``,
``"bfloat16 D64 T256"``. For anything not in the table the default order applies.

For attention the table may also name PyTorch's own call, ``"eager"``, or one of its kernels, ``"eager:cudnn"``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, candidates

PATH = Path(__file__).resolve().parent.parent / "assets" / "dispatch.json"
DEVICE_TYPE = "cuda"
TOKENS = (64, 256, 1024, 4096)  # upper ends of the classes of T; ADM's resolutions
# Without measurements, PyTorch's own attention is used from this capability on, in these dtypes. See docs/gpu.md.
LIBRARY_SINCE, LIBRARY_DTYPES = (9, 0), (torch.bfloat16, torch.float16)
LIBRARY_KERNELS = ("cudnn", "flash", "efficient")


@functools.cache
def table() -> Mapping[str, Any]:
    """The table: device name -> measurements."""
    return json.loads(PATH.read_text())["devices"] if PATH.exists() else {}


@functools.cache
def entry(index: int) -> Mapping[str, Any] | None:
    """The measurements on the GPU of this number, or None."""
    return table().get(torch.cuda.get_device_name(index))


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def case_class(x: Tensor) -> str:
    """The class of a call of an op other than attention."""
    return str(x.dtype).removeprefix("torch.")


def attention_class(q: Tensor, tokens: int) -> str:
    """The class of a call of attention with ``tokens`` keys."""
    size = next((f"T{end}" for end in TOKENS if tokens <= end), "T>")
    return f"{case_class(q)} D{q.shape[3]} {size}"


def order(op: str, first: Tensor, keys: Tensor) -> tuple[Backend, ...]:
    """The backends to try for a call on a GPU, fastest first: a measured one, then the default order.

    first: the call's first tensor; keys: attention's k, and the first tensor of any other op.
    """
    usual = candidates(first.device.type)
    found = entry(first.device.index or 0)
    if found is None or op not in found["ops"]:
        return usual
    kind = attention_class(keys, keys.shape[2]) if op.startswith("attention") else case_class(first)
    best = found["ops"][op].get(kind)
    if best is None or best.startswith("eager"):
        return usual
    return (Backend(best), *(b for b in usual if b.value != best))


def library_attention(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """PyTorch's implementation for this call of attention, "eager" or "eager:<kernel>"; None for our own.

    The compiler evaluates this while tracing, so it depends on shapes and dtypes only.
    """
    if q.device.type != DEVICE_TYPE or q.dim() != 4 or k.dim() != 4:  # shapes are the operator's to check
        return None
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    op = "attention_training" if training else "attention"
    return _library(op, attention_class(q, k.shape[2]), q.dtype in LIBRARY_DTYPES, q.device.index or 0)


def _library(op: str, kind: str, library_dtype: bool, index: int) -> str | None:
    found = entry(index)
    if found is None or kind not in found["ops"].get(op, {}):
        return "eager" if library_dtype and _capability(index) >= LIBRARY_SINCE else None
    best = found["ops"][op][kind]
    return best if best.startswith("eager") else None


# What torch.compiler.assume_constant_result sets: the compiler calls it while tracing, file and driver included, and
# keeps the answer. The decorator itself would import the compiler, a second's work, with fastdiff.
_library._dynamo_marked_constant = True  # type: ignore[attr-defined]
