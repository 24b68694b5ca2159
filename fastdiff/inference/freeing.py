"""Freed weights: parameters that exist in packed form only, without visible change.

A freed parameter keeps its shape, but all its elements share one number in memory. Operations that need the weight
itself restore it first: ``state_dict``, loading, ``.to()`` and the like, and ``copy.deepcopy``.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import FastdiffError
from fastdiff.inference.packed import Packed, PackedConv, is_freed


def copy_what_stays(model: nn.Module, packed: Iterable[Packed]) -> None:
    """Copy the parameters that will not be freed: biases, norms, linear layers.

    Parameters that were read from one file share its memory, all of which a single one would keep.
    """
    freed = {id(layer.weight) for p in packed if isinstance(p, PackedConv) for layer in p.layers}
    for parameter in model.parameters():
        if id(parameter) not in freed:
            parameter.data = parameter.data.clone()


class FreedWeights:
    """The weights of layers that are packed as one, freed until :meth:`give_back`."""

    def __init__(self, packed: PackedConv) -> None:
        self.packed = packed
        self._hooks: list[Any] = []
        for i, layer in enumerate(packed.layers):
            weight: Tensor = layer.weight
            weight.data = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
            self._hooks += [
                layer.register_state_dict_post_hook(functools.partial(self._reveal, i)),
                layer.register_load_state_dict_pre_hook(self._make_room),
            ]
            layer._apply = functools.partial(self._apply, layer)
            layer.__deepcopy__ = functools.partial(self._copy_layer, i)
        packed.accept()

    @property
    def nbytes(self) -> int:
        """Number of bytes that are freed."""
        weights = [layer.weight for layer in self.packed.layers if is_freed(layer.weight)]
        return sum((weight.numel() - 1) * weight.element_size() for weight in weights)

    def give_back(self) -> None:
        """Restore the weights, unless they have been replaced meanwhile."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        freed = [is_freed(layer.weight) for layer in self.packed.layers]
        weights = self.packed.unpacked() if any(freed) else []
        for layer in self.packed.layers:
            layer.__dict__.pop("_apply", None)
            layer.__dict__.pop("__deepcopy__", None)
        for layer, weight in zip(self.packed.layers, weights, strict=False):
            if is_freed(layer.weight):
                layer.weight.data = weight
        if all(freed):
            self.packed.accept()

    def _reveal(self, i: int, module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        if is_freed(self.packed.layers[i].weight):
            state_dict[prefix + "weight"] = self.packed.unpacked()[i]

    def _make_room(self, *_: Any) -> None:
        self.give_back()  # loading copies into it; the next call packs it again

    def _apply(self, layer: Any, function: Any, recurse: bool = True) -> nn.Module:
        """``Module._apply``, which ``.to()``, ``.double()`` and the like use: restore the weights, then convert."""
        self.give_back()
        return layer._apply(function, recurse)

    def _copy_layer(self, i: int, memo: dict[int, Any]) -> nn.Module:
        """Copy the layer: the copy has its weight, this layer stays freed."""
        layer = self.packed.layers[i]
        if is_freed(layer.weight):
            memo[id(layer.weight)] = nn.Parameter(self.packed.unpacked()[i], layer.weight.requires_grad)
        state = {k: v for k, v in layer.__dict__.items() if k not in ("_apply", "__deepcopy__")}
        ours = {hook.id for hook in self._hooks}
        for name in ("_state_dict_hooks", "_load_state_dict_pre_hooks"):
            state[name] = OrderedDict((k, v) for k, v in state[name].items() if k not in ours)
        new: Any = object.__new__(type(layer))
        memo[id(layer)] = new
        new.__dict__.update(copy.deepcopy(state, memo))
        return new

    def __reduce__(self) -> Any:
        raise FastdiffError(
            "this model's weights were freed by optimize(); restore() it before pickling, or save its state_dict()"
        )
