"""Whether a model is still what its fused layers were made of: modules, hooks, and the weights' very bits.

Looked at before every call, in a fraction of a percent of its time.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_OUR_PACKAGES = ("torch", "fastdiff", "diffusers")
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
# All of the weights are looked at once in this many times of what the look takes.
_PATIENCE = 200


def why_not_fused(layer: nn.Module) -> str | None:
    """What in a layer wants to be called as it is, or None: hooks, other classes, replaced or patched forwards."""
    for name, module in layer.named_modules():
        where = f" of {name}" if name else ""
        if reason := why_not_called(module, type(module)):
            return reason + where
    return None


def drops_out(layer: nn.Module) -> bool:
    """Whether dropout in it is on."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in layer.modules())


def why_not_called(module: nn.Module, kind: type) -> str | None:
    """What in a module itself wants to be called as it is, or None; ``kind``: the class that is known."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "a hook"
    own: Any = vars(module).get("forward")
    if own is not None and not _is_ours(own):
        return "a forward that was put in the place of its own"
    if type(module) is not kind or not _has_own_forward(kind):
        return f"the class {type(module).__name__}"
    return None


def _is_ours(forward: Any) -> bool:
    """Put there by ``accelerate``, which changes no result."""
    function = getattr(forward, "func", forward)
    return getattr(function, "__module__", "").startswith("fastdiff.interop.")


def _has_own_forward(kind: type) -> bool:
    """Whether the class is one that may be known here, and runs the forward that it was defined with."""
    forward: Any = kind.forward  # pyright: ignore[reportAttributeAccessIssue]
    known = kind.__module__.split(".")[0] in _OUR_PACKAGES
    is_container = forward.__qualname__ == "_forward_unimplemented"
    return known and (
        is_container or any(forward.__qualname__ == f"{base.__qualname__}.forward" for base in kind.__mro__)
    )


class Structure:
    """The modules of a model, their classes, hooks and parameters, as they were when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        every = list(map(vars, self._modules))
        self._dictionaries = every
        self._children = [d["_modules"] for d in every]
        self._parameters = [d["_parameters"] for d in every]
        self._hooks = [d[name] for name in ("_forward_hooks", "_forward_pre_hooks") for d in every]
        self._dropouts = [m for m in self._modules if isinstance(m, nn.Dropout)]
        self._processors = [d for d in every if "processor" in d]  # of diffusers' attention, no modules
        self._kept = list(model.parameters())  # alive, so that none gets the number of another
        self._seen = self._now()

    def has_changed(self) -> bool:
        return self._now() != self._seen

    def _now(self) -> Any:
        # Modules compare by identity; a forward put into a module makes its dictionary longer. All of it without a loop
        # in Python over the hundreds of modules.
        flat = itertools.chain.from_iterable
        return (
            list(flat(map(dict.values, self._children))),
            list(map(id, flat(map(dict.values, self._parameters)))),
            list(map(len, self._hooks)),
            list(map(len, self._dictionaries)),
            list(map(type, self._modules)),
            [d.get("processor") for d in self._processors],
            [d.training and d.p for d in self._dropouts],
        )


def has_global_hooks() -> bool:
    """Hooks on all modules there are: each wants to be called."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


class Weights:
    """The bits of tensors, as they were when this was made: also what is written past PyTorch's count of versions.

    Writes through ``.data`` (moving averages, merged adapters) leave no trace but in the numbers. At every call a
    few elements of each weight are compared, one at least of every output and every input channel; and the sum of all
    bits as often as it costs half a percent of the time that goes by.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [t for t in tensors if t.numel()]
        self._addresses = self._state()
        bits = [_bits(t.detach()) for t in self._tensors]
        some = [b[:: _stride(t)] for t, b in zip(self._tensors, bits, strict=True)]
        self._each = [(s, s.clone()) for s in some]
        self._few: dict[torch.dtype, list[Tensor]] = {}
        for s in some:
            self._few.setdefault(s.dtype, []).append(s)
        self._seen = {kind: torch.cat(parts) for kind, parts in self._few.items()}
        self._wide = [b.view(torch.int64) if not b.nbytes % 8 and b.is_contiguous() else b for b in bits]
        self._sums = self._all()

    def have_changed(self) -> bool:
        with torch.no_grad():
            if self._state() != self._addresses:
                return True
            for kind, parts in self._few.items():
                if not torch.equal(torch.cat(parts), self._seen[kind]):
                    return True
            if time.perf_counter() - self._looked < _PATIENCE * self._cost:
                return False
            return self._all() != self._sums

    def changed(self) -> set[int]:
        """By their ``id``, the tensors that are not what they were: each looked at as a whole."""
        before, now = zip(*self._addresses, strict=True), zip(*self._state(), strict=True)
        sums = zip(self._sums, self._all(), strict=True)
        return {
            id(t)
            for t, (some, seen), state, (a, b) in zip(
                self._tensors, self._each, zip(before, now, strict=True), sums, strict=True
            )
            if state[0] != state[1] or a != b or not torch.equal(some, seen)
        }

    def _state(self) -> Any:
        """Changes with nearly everything that PyTorch does to a tensor."""
        versions = [0 if t.is_inference() else t._version for t in self._tensors]
        return list(map(Tensor.data_ptr, self._tensors)), versions

    def _all(self) -> list[int]:
        start = time.perf_counter()
        sums = [int(w.sum()) for w in self._wide]
        self._looked = time.perf_counter()
        self._cost = self._looked - start
        return sums


def _bits(t: Tensor) -> Tensor:
    """[numel] whole numbers, a view where the tensor is one block of memory."""
    return t.as_strided((t.numel(),), (1,)).view(_INTEGERS[t.element_size()]) if _is_dense(t) else _copied(t)


def _copied(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(_INTEGERS[t.element_size()])


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def _stride(t: Tensor) -> int:
    """Between elements such that each output channel (dimension 0) and each input channel (1) has one among them."""
    if t.dim() < 2 or t.numel() < 4096:
        return 1
    outputs, inputs = t.shape[:2]
    channel = t.stride(1)  # 1 in channels_last
    a_row = t.numel() // outputs // channel  # in such steps
    most = a_row // -(-inputs // outputs)
    # Without a common divisor, the steps come by every input channel before they repeat one.
    return channel * next(step for step in range(most, 0, -1) if math.gcd(step, inputs) == 1)
