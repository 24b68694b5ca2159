"""consistency_models' U-Net: guided-diffusion's by the same arguments, with 2-d projections in its files.

Queries, keys and values are always in the new order, whatever ``use_new_attention_order`` says, as there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.checkpoint.detect import of_tokens
from fastdiff.interop.guided_diffusion import unet

_PROJECTIONS = (".qkv.weight", ".proj_out.weight")


class UNetModel(unet.UNetModel):
    """The U-Net, ``forward(x, timesteps, y=None)``; timesteps may be fractions.

    ``state_dict`` has the attention's projections as 2-d convolutions, [3C, C, 1, 1]; both forms are loaded.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "use_new_attention_order": True})
        self.register_state_dict_post_hook(_write_planar)
        self.register_load_state_dict_pre_hook(_read_planar)


def planar(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the attention's projections as 2-d convolutions."""
    return {
        name: value[..., None] if name.endswith(_PROJECTIONS) and value.dim() == 3 else value
        for name, value in state.items()
    }


def _write_planar(module: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    state.update(planar(state))


def _read_planar(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    state.update(of_tokens(state))
