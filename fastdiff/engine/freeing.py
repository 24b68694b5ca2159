"""Weights that live on in their packed form only, and look as if nothing had happened.

A freed parameter keeps its shape, but all its elements are one number in memory. ``state_dict`` and loading bring the
weight back through hooks on the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.packed import PackedConv, is_freed


def free_weight(packed: PackedConv) -> bool:
    """True if the layers' weights were given up. Without a kernel there is nothing packed to get them back from."""
    if packed.packed is None:
        return False
    for i, layer in enumerate(packed.layers):
        weight: Tensor = layer.weight
        weight.data = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
        packed.hooks += [
            layer.register_state_dict_post_hook(_reveal(packed, i)),
            layer.register_load_state_dict_pre_hook(_make_room(packed)),
        ]
    packed.accept()
    return True


def unfree_weight(packed: PackedConv) -> None:
    """The weights back in their places, unless something else has been loaded into them."""
    for hook in packed.hooks:
        hook.remove()
    packed.hooks = []
    if packed.is_freed():
        _put_back(packed)
        packed.accept()


def _put_back(packed: PackedConv) -> None:
    for layer, weight in zip(packed.layers, packed.unpacked(), strict=True):
        if is_freed(layer):
            layer.weight.data = weight


def _reveal(packed: PackedConv, i: int) -> Any:
    def hook(module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        if is_freed(packed.layers[i]):
            state_dict[prefix + "weight"] = packed.unpacked()[i]

    return hook


def _make_room(packed: PackedConv) -> Any:
    def hook(*_: Any) -> None:
        if packed.is_freed():
            _put_back(packed)  # loading copies into them; the next call packs them again

    return hook
