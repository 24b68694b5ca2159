"""Tensors that FSDP shards along their first dimension (DTensors), and plain ones alike.

A DTensor is told by its methods, so that a process alone imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; then all processes must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded: the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """:func:`local` of each."""
    return [local(tensor) for tensor in tensors]


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy the whole ``value`` into ``target``, of which this process may hold a shard (along the first dimension)."""
    if hasattr(target, "device_mesh"):
        mesh = target.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        parts = value.chunk(mesh.size())
        rank = mesh.get_local_rank()
        value = parts[rank] if rank < len(parts) else value[:0]
    local(target).copy_(value)
