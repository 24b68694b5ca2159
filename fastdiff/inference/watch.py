"""Detecting changes of a model since its fused layers were made: modules, hooks, and the weights' bits.

This is checked before every call, in a fraction of a percent of its time.
"""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

try:
    from fastdiff import _C  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # not built
    _C = None

_OUR_PACKAGES = ("torch", "fastdiff", "diffusers")
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
_version = operator.attrgetter("_version")
# All of the weights are looked at once in this many times of what the look takes.
_PATIENCE = 200


def why_not_fused(layer: nn.Module) -> str | None:
    """The reason why a layer has to be called unfused, or None: hooks, other classes, replaced or patched forwards."""
    for name, module in layer.named_modules():
        where = f" of {name}" if name else ""
        if reason := why_not_called(module, type(module)):
            return reason + where
    return None


def drops_out(layer: nn.Module) -> bool:
    """True if the module has dropout that is on."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in layer.modules())


def why_not_called(module: nn.Module, kind: type) -> str | None:
    """The reason why a module itself has to be called unfused, or None; ``kind``: its known class."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "a hook"
    own: Any = vars(module).get("forward")
    if own is not None and not _is_ours(own):
        return "a forward that was put in the place of its own"
    if type(module) is not kind or not _has_own_forward(kind):
        return f"the class {_name_of(type(module))}"
    return None


def _name_of(kind: type) -> str:
    """Another library's may have the name of the one that it takes the place of: peft.Conv2d."""
    package = kind.__module__.split(".")[0]
    return kind.__name__ if package in _OUR_PACKAGES else f"{package}.{kind.__name__}"


def _is_ours(forward: Any) -> bool:
    """True for a forward set by ``accelerate``, which does not change results."""
    function = getattr(forward, "func", forward)
    return getattr(function, "__module__", "").startswith("fastdiff.interop.")


def _has_own_forward(kind: type) -> bool:
    """True if the class may be known here and runs the forward with which it was defined."""
    forward: Any = kind.forward  # pyright: ignore[reportAttributeAccessIssue]
    known = kind.__module__.split(".")[0] in _OUR_PACKAGES
    is_container = forward.__qualname__ == "_forward_unimplemented"
    return known and (
        is_container or any(forward.__qualname__ == f"{base.__qualname__}.forward" for base in kind.__mro__)
    )


class Structure:
    """The modules of a model, with their classes, hooks and parameters at the time of creation."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        every = list(map(vars, self._modules))
        self._dictionaries = every
        held = [d[name] for name in ("_modules", "_parameters") for d in every]
        self._filled, self._empty = [d for d in held if d], [d for d in held if not d]
        hooks = [d[name] for name in ("_forward_hooks", "_forward_pre_hooks") for d in every]
        self._hooked = [h for h in hooks if h]
        self._empty += [h for h in hooks if not h]
        self._dropouts = [m for m in self._modules if isinstance(m, nn.Dropout)]
        self._processors = [d for d in every if "processor" in d]  # of diffusers' attention, no modules
        self._children_seen = self._children()
        self._seen = self._now()

    def has_changed(self) -> bool:
        now, seen = self._children(), self._children_seen
        same = len(now) == len(seen) and all(map(operator.is_, now, seen))
        return not same or any(self._empty) or self._now() != self._seen

    # All of it without a loop in Python over the hundreds of modules.

    def _children(self) -> list[Any]:
        """Modules and parameters, which are kept alive so that no address is reused."""
        return list(itertools.chain.from_iterable(map(dict.values, self._filled)))

    def _now(self) -> Any:
        # A forward put into a module makes its dictionary longer.
        return (
            list(map(len, self._hooked)),
            list(map(len, self._dictionaries)),
            list(map(type, self._modules)),
            [d.get("processor") for d in self._processors],
            [d.training and d.p for d in self._dropouts],
        )


def has_global_hooks() -> bool:
    """Global module hooks, each of which has to be called."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


class Weights:
    """The bits of tensors at the time of creation, which show writes that PyTorch's version counter misses.

    Writes through ``.data`` (moving averages, merged adapters) leave no trace but in the numbers. At every call a
    few elements of each weight are compared, at least one of every output and every input channel; the sum of all bits
    is compared as often as half a percent of the elapsed time allows.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [t for t in tensors if t.numel()]
        self._counted = [t for t in self._tensors if not t.is_inference()]
        self._bits = [_bits(t.detach()) for t in self._tensors]
        self._samples = [_sample(t, b) for t, b in zip(self._tensors, self._bits, strict=True)]
        self._copies = [s.clone() for s in self._samples]
        self._addresses, self._versions = self._state()
        self._sampled = _Compared(self._samples)
        self._sums = self._all()

    def have_changed(self) -> bool:
        if self._state() != (self._addresses, self._versions) or self._sampled.have_changed():
            return True
        if time.perf_counter() - self._looked < _PATIENCE * self._cost:
            return False
        return self._all() != self._sums

    def changed(self) -> set[int]:
        """By their ``id``, the tensors that are not what they were: each looked at as a whole."""
        addresses, sums = self._state()[0], self._all()
        versions = {id(t): v for t, v in zip(self._counted, self._versions, strict=True)}
        now = {id(t): t._version for t in self._counted}
        return {
            id(t)
            for i, t in enumerate(self._tensors)
            if addresses[i] != self._addresses[i]
            or versions.get(id(t)) != now.get(id(t))
            or sums[i] != self._sums[i]
            or not torch.equal(self._samples[i], self._copies[i])
        }

    def _state(self) -> tuple[list[int], list[int]]:
        """A value that changes with nearly every operation of PyTorch on a tensor."""
        return list(map(Tensor.data_ptr, self._tensors)), list(map(_version, self._counted))

    def _all(self) -> list[int]:
        start = time.perf_counter()
        with torch.no_grad():
            sums = [int(b.sum()) for b in self._bits]
        self._looked = time.perf_counter()
        self._cost = self._looked - start
        return sums


class _Compared:
    """Samples of tensors, compared with earlier ones: by one compiled function, or by torch where there is none."""

    def __init__(self, samples: list[Tensor]) -> None:
        runs: list[tuple[int, int, int, int]] = []
        self._groups: dict[Any, list[Tensor]] = {}
        for s in samples:
            if _C is not None and s.device.type == "cpu" and s.dim() == 1:
                runs.append((s.data_ptr(), s.numel(), s.stride(0) * s.element_size(), s.element_size()))
            else:
                self._groups.setdefault((s.dtype, s.device), []).append(s)
        self._compiled: Any = _C.Samples(runs) if _C is not None else None
        self._seen = {key: self._together(group) for key, group in self._groups.items()}

    def have_changed(self) -> bool:
        if self._compiled is not None and self._compiled.have_changed():
            return True
        return any(not torch.equal(self._together(g), self._seen[key]) for key, g in self._groups.items())

    @staticmethod
    @torch.no_grad()
    def _together(samples: list[Tensor]) -> Tensor:
        return torch.cat([s.flatten() for s in samples])


def _bits(t: Tensor) -> Tensor:
    """Whole numbers in the tensor's own memory: [numel] where that is one block, else in its shape."""
    if t.is_complex():
        t = torch.view_as_real(t)
    by_stride = sorted(range(t.dim()), key=t.stride, reverse=True)
    dense = t.permute(by_stride).is_contiguous()
    return (t.as_strided((t.numel(),), (1,)) if dense else t).view(_INTEGERS[t.element_size()])


def _sample(t: Tensor, bits: Tensor) -> Tensor:
    """A view of some elements, at least one of each output channel (dimension 0) and each input channel (1)."""
    is_by_outputs = bits.dim() == 1 < t.dim() and t.stride(0) * len(t) == bits.numel()
    if t.numel() < 4096 or not is_by_outputs:
        return bits
    outputs, inputs = t.shape[:2]
    channel = t.stride(1)  # 1 in channels_last
    a_row = t.numel() // outputs // channel  # in such steps
    most = max(a_row // -(-inputs // outputs), 1)
    # Without a common divisor, the steps come by every input channel before they repeat one.
    return bits[:: channel * next(step for step in range(most, 0, -1) if math.gcd(step, inputs) == 1)]
