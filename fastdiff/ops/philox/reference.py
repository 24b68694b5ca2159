"""Philox4x32-10 and its normals in plain PyTorch: the specification, any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, table 2: 4x32
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1: added to the key after every round
_ROUNDS = 10


class NormalArguments(NamedTuple):
    """Described at :func:`fastdiff.ops.normal`."""

    seeds: Tensor
    shape: Annotated[Sequence[int], "SymInt[]"]
    step: int
    stream: int
    dtype: torch.dtype


class BitsArguments(NamedTuple):
    """Described at :func:`fastdiff.ops.random_bits`."""

    seeds: Tensor
    count: Annotated[int, "SymInt"]
    step: int
    stream: int
    first_block: int


def _multiply(a: Any, b: int) -> tuple[Any, Any]:
    """High and low 32-bit words of a product of 32-bit words. The wrapped int64 product holds all 64 bits."""
    product = a * b
    return (product >> 32) & _WORD, product & _WORD


def random_bits(
    seeds: Tensor, count: int, step: int | Tensor = 0, stream: int = 0, first_block: int = 0
) -> Tensor:
    """-> [N, count] int64 in [0, 2^32). Key and counter are laid out as ``ops.normal`` describes."""
    blocks = torch.arange(-(-count // 4), device=seeds.device) + first_block
    # Numbers stay numbers: a tensor made of one would be a copy to the device, which no CUDA graph can hold.
    c: list[Any] = [blocks & _WORD, step & _WORD, stream, (blocks >> 32) & _WORD]
    keys = [(seeds & _WORD)[:, None], ((seeds >> 32) & _WORD)[:, None]]  # [N, 1]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ keys[0], low1, high0 ^ c[3] ^ keys[1], low0]
        keys = [(key + weyl) & _WORD for key, weyl in zip(keys, _WEYL, strict=True)]
    words = torch.stack(torch.broadcast_tensors(*c), dim=2)  # [N, blocks, 4]
    return words.flatten(1)[:, :count].contiguous()


def uniform(bits: Tensor) -> Tensor:
    """32-bit words -> float64 in (0, 1), the middles of 2^32 equal intervals: exact, never 0 or 1."""
    return bits.double() * 2.0**-32 + 2.0**-33


def normal(
    seeds: Tensor,
    shape: Sequence[int],
    step: int | Tensor = 0,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """-> [N, *shape]: Box-Muller in float64 on the pairs (0, 1) and (2, 3) of each block, then rounded."""
    count = math.prod(shape)
    u = uniform(random_bits(seeds, count + count % 2, step, stream)).unflatten(1, (-1, 2))
    radius = torch.sqrt(-2 * torch.log(u[..., 0]))
    angle = 2 * math.pi * u[..., 1]
    z = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2).flatten(1)[:, :count]
    return z.to(dtype).reshape(len(seeds), *shape).contiguous()
