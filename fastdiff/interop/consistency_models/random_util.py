"""consistency_models' ``random_util``: noise that does not depend on batch size or number of processes.

The streams are PyTorch's own generators, as there, so that samples are those of the original's seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def get_generator(generator: str, num_samples: int = 0, seed: int = 0) -> Any:
    """ "dummy", "determ" or "determ-indiv"."""
    if generator == "dummy":
        return DummyGenerator()
    if generator == "determ":
        return DeterministicGenerator(num_samples, seed)
    if generator == "determ-indiv":
        return DeterministicIndividualGenerator(num_samples, seed)
    raise NotImplementedError(f"unknown generator {generator!r}; known: dummy, determ, determ-indiv")


class DummyGenerator:
    """PyTorch's global generator."""

    def randn(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.randn(*args, **kwargs)

    def randint(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.randint(*args, **kwargs)

    def randn_like(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.randn_like(*args, **kwargs)


class _Numbered:
    """Samples are numbered 0 .. num_samples - 1; process r of w draws those of r, r + w, ... of a batch.

    Numbers beyond the last are the last's.
    """

    def __init__(self, num_samples: int, seed: int = 0) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.num_samples, self.done_samples, self.seed = num_samples, 0, seed
        self._generators: dict[str, Any] = {}

    def randn(self, *size: int, dtype: torch.dtype = torch.float, device: Any = "cpu") -> Tensor:
        def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype, device=device)

        return self._draw(size, torch.device(device or "cpu"), draw)

    def randint(
        self, low: int, high: int, size: tuple[int, ...], dtype: torch.dtype = torch.long, device: Any = "cpu"
    ) -> Tensor:
        def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, dtype=dtype, device=device)

        return self._draw(size, torch.device(device or "cpu"), draw)

    def randn_like(self, tensor: Tensor) -> Tensor:
        return self.randn(*tensor.size(), dtype=tensor.dtype, device=tensor.device)

    def set_done_samples(self, done_samples: int) -> None:
        """The number of the next batch's first sample."""
        self.done_samples = done_samples

    def get_seed(self) -> int:
        return self.seed

    def set_seed(self, seed: int) -> None:
        """Begin all streams anew."""
        self.seed = seed
        self._generators.clear()

    def _indices(self, count: int) -> list[int]:
        first = self.done_samples + self.rank
        return [min(first + i * self.world_size, self.num_samples - 1) for i in range(count)]

    def _draw(self, size: tuple[int, ...], device: torch.device, draw: Callable[..., Tensor]) -> Tensor:
        raise NotImplementedError


class DeterministicGenerator(_Numbered):
    """One stream, from which every call draws for all samples and returns the batch's."""

    def set_done_samples(self, done_samples: int) -> None:
        super().set_done_samples(done_samples)
        self.set_seed(self.seed)

    def _draw(self, size: tuple[int, ...], device: torch.device, draw: Callable[..., Tensor]) -> Tensor:
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self.seed)
        drawn = draw((self.num_samples, *size[1:]), self._generators[key])
        return drawn[torch.tensor(self._indices(size[0]))]


class DeterministicIndividualGenerator(_Numbered):
    """A stream for each sample, of seed number + num_samples seed: without the memory for all samples at once."""

    def _draw(self, size: tuple[int, ...], device: torch.device, draw: Callable[..., Tensor]) -> Tensor:
        streams = self._generators.setdefault(str(device), {})
        for i in self._indices(size[0]):
            if i not in streams:
                streams[i] = torch.Generator(device).manual_seed(i + self.num_samples * self.seed)
        return torch.cat([draw((1, *size[1:]), streams[i]) for i in self._indices(size[0])])
