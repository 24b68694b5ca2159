"""Weights that live on in their packed form only, and look as if nothing had happened.

A freed parameter keeps its shape, but all its elements are one number in memory. Whoever needs the weight itself gets
it back first: ``state_dict``, loading, ``.to()`` and its like, and ``copy.deepcopy``.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.packed import PackedConv
from fastdiff.errors import FastdiffError


class FreedWeight:
    """A layer's weight, given up until :meth:`give_back`."""

    def __init__(self, packed: PackedConv) -> None:
        self.packed, layer = packed, packed.layer
        weight: Tensor = layer.weight
        weight.data = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
        packed.accept()
        self._hooks = [
            layer.register_state_dict_post_hook(functools.partial(_reveal, packed)),
            layer.register_load_state_dict_pre_hook(functools.partial(_make_room, self)),
        ]
        layer._apply = self._apply
        layer.__deepcopy__ = self._copy_layer

    @property
    def nbytes(self) -> int:
        """Memory that is not taken."""
        weight: Tensor = self.packed.layer.weight
        return (weight.numel() - 1) * weight.element_size() if self.packed.is_freed() else 0

    def give_back(self) -> None:
        """The weight back in its place, unless something else has been put there."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        packed = self.packed
        packed.layer.__dict__.pop("_apply", None)
        packed.layer.__dict__.pop("__deepcopy__", None)
        if packed.is_freed():
            packed.layer.weight.data = packed.unpacked()
            packed.accept()

    def _apply(self, function: Any, recurse: bool = True) -> nn.Module:
        """``Module._apply``, through which go ``.to()``, ``.double()`` and the like: they convert what is there."""
        self.give_back()
        return self.packed.layer._apply(function, recurse)

    def _copy_layer(self, memo: dict[int, Any]) -> nn.Module:
        """The copy has its weight; this layer goes on without."""
        layer = self.packed.layer
        if self.packed.is_freed():
            memo[id(layer.weight)] = nn.Parameter(self.packed.unpacked(), layer.weight.requires_grad)
        state = {k: v for k, v in layer.__dict__.items() if k not in ("_apply", "__deepcopy__")}
        ours = {hook.id for hook in self._hooks}
        for name in ("_state_dict_hooks", "_load_state_dict_pre_hooks"):
            state[name] = OrderedDict((k, v) for k, v in state[name].items() if k not in ours)
        new = object.__new__(type(layer))
        memo[id(layer)] = new
        new.__dict__.update(copy.deepcopy(state, memo))
        return new

    def __reduce__(self) -> Any:
        raise FastdiffError(
            "this model's weights were freed by optimize(); restore() it before pickling, or save its state_dict()"
        )


def _reveal(packed: PackedConv, module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    if packed.is_freed():
        state_dict[prefix + "weight"] = packed.unpacked()


def _make_room(freed: FreedWeight, *_: Any) -> None:
    freed.give_back()  # loading copies into it; the next call packs it again
