"""Weights that live on in their packed form only, and look as if nothing had happened.

A freed parameter keeps its shape, but all its elements are one number in memory. ``state_dict`` and loading bring the
weight back through hooks on the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.packed import PackedConv


def free_weight(packed: PackedConv) -> bool:
    """True if the layer's weight was given up. Without a kernel there is nothing packed to get it back from."""
    if packed.packed is None:
        return False
    weight: Tensor = packed.layer.weight
    weight.data = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
    packed.accept()
    layer = packed.layer
    packed.hooks = [
        layer.register_state_dict_post_hook(_reveal(packed)),
        layer.register_load_state_dict_pre_hook(_make_room(packed)),
    ]
    return True


def unfree_weight(packed: PackedConv) -> None:
    """The weight back in its place, unless something else has been loaded into it."""
    for hook in packed.hooks:
        hook.remove()
    packed.hooks = []
    if packed.is_freed():
        packed.layer.weight.data = packed.unpacked()
        packed.accept()


def _reveal(packed: PackedConv) -> Any:
    def hook(module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        if packed.is_freed():
            state_dict[prefix + "weight"] = packed.unpacked()

    return hook


def _make_room(packed: PackedConv) -> Any:
    def hook(*_: Any) -> None:
        if packed.is_freed():
            packed.layer.weight.data = packed.unpacked()  # loading copies into it; next call packs it again

    return hook
