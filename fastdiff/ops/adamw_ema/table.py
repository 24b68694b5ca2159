"""All tensors of a call as one table of addresses, which the kernels of all backends read alike."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.ops._native import DTYPE_CODES

CHUNK = 16384  # elements that are one thread's, or one block's, at a time
MAX_RATES = 4  # csrc/common/adamw.h: kMaxRates

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def why_not(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    steps: list[Tensor],
    emas: list[Tensor],
    low: list[Tensor],
    decays: list[float],
) -> str | None:
    """Why the kernels do not take these tensors, or None. Gradients may lie as they like: :func:`laid_out`."""
    if params[0].dtype != torch.float32:
        return f"params are {params[0].dtype}, not float32"
    if grads[0].dtype not in DTYPE_CODES:
        return f"grads are {grads[0].dtype}, not float32, bfloat16 or float16"
    if len(decays) > MAX_RATES:
        return f"{len(decays)} moving averages; the kernels keep up to {MAX_RATES}"
    for i, p in enumerate(params):
        others = [exp_avg[i], exp_avg_sq[i], *emas[i :: len(params)], *low[i : i + 1]]
        if not all(_lie_alike(p, t) for t in others):
            return f"a parameter {list(p.shape)} and its moments or averages do not lie alike, without gaps"
    return None


def _lie_alike(p: Tensor, t: Tensor) -> bool:
    """Whether both fill their memory without gaps, element for element in the same order."""
    if p.is_contiguous():
        return t.is_contiguous()
    last = torch.channels_last
    return p.is_contiguous(memory_format=last) and t.is_contiguous(memory_format=last)


def laid_out(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """The gradients in their parameters' layouts; those that lie so already as they are."""
    return [
        g if _lie_alike(p, g) else torch.empty_like(p, dtype=g.dtype).copy_(g)
        for p, g in zip(params, grads, strict=True)
    ]


def build(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    steps: list[Tensor],
    emas: list[Tensor],
    low: list[Tensor],
) -> tuple[Tensor, int]:
    """-> [P, 8 + rates] int64 on the CPU, and the number of chunks.

    Columns: elements, the number of its first chunk, addresses of param, grad, exp_avg, exp_avg_sq, step, low (0 for
    none) and of each average.
    """
    rows, chunks = [], 0
    for i, p in enumerate(params):
        tensors = (p, grads[i], exp_avg[i], exp_avg_sq[i], steps[i])
        addresses = [t.data_ptr() for t in tensors]
        addresses.append(low[i].data_ptr() if low else 0)
        addresses += [t.data_ptr() for t in emas[i :: len(params)]]
        rows.append([p.numel(), chunks, *addresses])
        chunks += -(-p.numel() // CHUNK)
    return torch.tensor(rows, dtype=torch.int64), chunks


def is_aligned(addresses: Tensor) -> bool:
    """Whether all tensors of a table, but for the scalars that count steps, begin at multiples of 16 bytes."""
    moved = [column for column in range(2, addresses.shape[1]) if column != 6]
    return not bool((addresses[:, moved] % 16).any())


# (device, stream) -> the last table there and, so that an upload under way keeps its source, in pinned memory.
_uploaded: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}


def uploaded(addresses: Tensor, device: torch.device) -> Tensor:
    """The table on the kernel's device: it goes up only when an address in it has changed, and nothing waits."""
    if device.type == "cpu":  # emulated or interpreted
        return addresses
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _uploaded or not torch.equal(_uploaded[key][0], addresses):
        pinned = addresses.pin_memory()
        _uploaded[key] = (pinned, pinned.to(device, non_blocking=True))
    return _uploaded[key][1]


def mark_written(*lists: list[Tensor]) -> None:
    """Tell PyTorch that the tensors have changed: autograd and packed weights go by their versions."""
    for tensors in lists:
        if tensors:
            torch.autograd.graph.increment_version(tensors)
