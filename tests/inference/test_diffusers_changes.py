"""What becomes of an optimized UNet2DModel is seen by its next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers_unets import inputs_of, random_unet
from torch import Tensor, nn

import fastdiff

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

HOOKED = [
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0",
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.0.nonlinearity",
    "down_blocks.0.resnets.0.norm2",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.attentions.0.to_q",
    "mid_block",
    "up_blocks.0.upsamplers.0",
    "conv_norm_out",
    "conv_act",
    "conv_out",
]


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_a_hook_fires_and_its_answer_counts(name: str) -> None:
    model, seen = random_unet(), []
    inputs = inputs_of(model)
    fastdiff.optimize(model)
    model(**inputs)
    module = model.get_submodule(name)
    module.register_forward_hook(lambda *args: (seen.append(1), _times(args[-1], 1.5))[1])
    got, calls = model(**inputs).sample, len(seen)
    wanted = _plain(model)(**inputs).sample
    assert calls and len(seen) == 2 * calls
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def _times(output: Any, factor: float) -> Any:
    """``factor`` times a tensor, or times the first output of a block."""
    return factor * output if isinstance(output, Tensor) else (factor * output[0], *output[1:])


class Adapter(nn.Module):
    """Around a layer, whose weight and bias it shows as its own."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return 1.5 * self.base(x, *args)


def _with_adapters(model: Any) -> None:
    attention, block = model.down_blocks[1].attentions[0], model.up_blocks[0].resnets[0]
    attention.to_q, block.conv1 = Adapter(attention.to_q), Adapter(block.conv1)


def _other_processor(model: Any) -> None:
    class Mine(diffusers.models.attention_processor.AttnProcessor):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().__call__(*args, **kwargs)

    model.mid_block.attentions[0].set_processor(Mine())


def _patched_block(model: Any) -> None:
    block = model.down_blocks[0]
    plain = block.forward
    block.forward = lambda *args, **kwargs: _times(plain(*args, **kwargs), 1.1)


def _averaged(model: Any) -> None:
    average = diffusers.training_utils.EMAModel(model.parameters(), decay=0.5)
    for shadow in average.shadow_params:
        shadow.mul_(1.2)
    average.copy_to(model.parameters())


CHANGES = {
    "adapters": _with_adapters,
    "processor": _other_processor,
    "activation": lambda model: setattr(model, "conv_act", nn.GELU()),
    "block": _patched_block,
    "moving average": _averaged,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_a_change_is_seen(change: Callable[[Any], None]) -> None:
    model = random_unet()
    inputs = inputs_of(model)
    fastdiff.optimize(model)
    before = model(**inputs).sample
    change(model)
    got = model(**inputs).sample
    assert (got - before).abs().max() > 1e-3
    torch.testing.assert_close(got, _plain(model)(**inputs).sample, rtol=1e-4, atol=1e-4)


def _plain(model: Any) -> Any:
    """The model without what optimize has put there."""
    twin = copy.copy(model)
    twin.__dict__.pop("forward", None)
    return twin
