"""A checked request for n samples, each with its seed, its class and its own conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import normal, sample_seeds
from fastdiff.sampling.conditions import Condition
from fastdiff.scalars import whole

INITIAL_STREAM = 1  # the Philox stream that x_T is drawn from; ``reverse_step`` draws from stream 0

Classes = int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Request:
    """n samples. Every tensor has one row per sample, so that any slice is a request of its own."""

    seeds: Tensor  # [n] int64, Philox keys
    noise: Tensor | None = None  # x_T [n,C,*]; drawn from the seeds if None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    condition: Condition | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def batch(self, start: int, stop: int) -> Request:
        return self._map(lambda t: t[start:stop])

    def to(self, device: torch.device) -> Request:
        return self._map(lambda t: t.to(device))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Request:
        return Request(
            f(self.seeds),
            None if self.noise is None else f(self.noise),
            {name: f(value) for name, value in self.cond.items()},
            None if self.condition is None else self.condition.map(f),
        )

    def initial_state(self, shape: Sequence[int]) -> Tensor:
        """x_T [n,C,*]: float64 if the given noise is, else float32."""
        if self.noise is None:
            return normal(self.seeds, tuple(shape), step=0, stream=INITIAL_STREAM)
        return self.noise.to(torch.float64 if self.noise.dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class RequestArguments:
    """Arguments of a call besides n, unchecked; :meth:`fastdiff.sampling.api.Sampler.__call__` explains each."""

    classes: Classes | None = None
    seed: int | None = None
    seeds: Sequence[int] | Tensor | None = None
    noise: Tensor | None = None
    cond: Mapping[str, Tensor] | None = None
    condition: Condition | None = None


REQUEST_ARGUMENTS = frozenset(f.name for f in fields(RequestArguments))


def make_request(
    model: Any, n: int, shape: Sequence[int], asked: RequestArguments, *, guided: bool = False
) -> Request:
    """Check and complete the arguments of :meth:`fastdiff.sampling.api.Sampler.__call__` for ``model``.

    Raises:
        FastdiffError: arguments that do not fit n, the shape, the model's classes, or each other.
    """
    n = whole(n)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise FastdiffError(f"the number of samples must be a whole number of at least 1, got {n!r}")
    noise = asked.noise
    if noise is not None and (tuple(noise.shape) != (n, *shape) or not noise.is_floating_point()):
        raise FastdiffError(
            f"noise must be floating point {[n, *shape]}, got {noise.dtype} {list(noise.shape)}"
        )
    rows = dict(asked.cond or {})
    for name, value in rows.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != n:
            raise FastdiffError(f"conditioning {name!r} must be a tensor of {n} rows, one per sample")
    labels = _labels(model, n, asked.classes, guided)
    if labels is not None:
        rows["y"] = labels
    fitted = None if asked.condition is None else asked.condition.fitted(n, shape)
    return Request(_seeds(n, asked.seed, asked.seeds), noise, rows, fitted)


def _seeds(n: int, seed: int | None, seeds: Sequence[int] | Tensor | None) -> Tensor:
    if seeds is None:
        return sample_seeds(n, 0 if seed is None else seed)
    if seed is not None:
        raise FastdiffError("give either seed (of the run) or seeds (one per sample), not both")
    return _whole_numbers("seeds", seeds, n, f"{n} whole numbers, one per sample")


def _labels(model: Any, n: int, classes: Classes | None, guided: bool) -> Tensor | None:
    """[n] int64 labels for the model, or None; checked if the model has a known number of classes."""
    config = getattr(model, "config", None)
    null_class = getattr(model, "null_class", None)
    num_classes = getattr(config, "num_classes", None)
    if classes is None:
        if guided:
            raise FastdiffError("guidance needs classes to guide towards; give classes")
        if null_class is not None:
            return torch.full((n,), null_class)
        if num_classes is not None:
            raise FastdiffError(f"the model is class-conditional: give classes, 0 to {num_classes - 1}")
        return None
    if num_classes is None and hasattr(config, "num_classes"):
        raise FastdiffError("classes were given, but the model is unconditional; leave out classes")
    given: Any = whole(classes)
    labels = [given] * n if isinstance(given, int) else given
    labels = _whole_numbers("classes", labels, n, f"one whole number or {n}, one per sample")
    if num_classes is not None and not ((labels >= 0) & (labels < num_classes)).all():
        wrong = next(int(c) for c in labels if not 0 <= c < num_classes)
        raise FastdiffError(f"class {wrong} is unknown to the model; it knows 0 to {num_classes - 1}")
    return labels


def _whole_numbers(name: str, values: Sequence[int] | Tensor, n: int, accepted: str) -> Tensor:
    """The values as an [n] int64 tensor."""
    try:
        values = list(map(whole, values)) if isinstance(values, (list, tuple)) else values
        numbers = torch.as_tensor(values)
        given = f"{numbers.dtype} {list(numbers.shape)}"
        fits = numbers.shape == (n,) and not numbers.is_floating_point()
    except (TypeError, ValueError, RuntimeError):  # strings, ragged lists, more than 64 bits
        numbers, given, fits = torch.empty(0), type(values).__name__, False
    if not fits:
        raise FastdiffError(f"{name} must be {accepted}, got {given}")
    return numbers.to(torch.int64)
