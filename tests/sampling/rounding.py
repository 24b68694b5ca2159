"""How far rounding may move a run of the small models: worked out, so that it holds on every processor.

Which order a convolution sums in depends on the processor, the library and the batch. Later steps magnify the
difference, by up to a thousand times for a model whose learned variance grows with x.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import normal
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.request import INITIAL_STREAM

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def assert_same_to_rounding(
    run: Callable[..., Tensor], model: Any, ways: list[dict[str, Any]], *, n: int, seed: int
) -> Tensor:
    """``run(model, **way)`` is the same in all ways but for rounding, in float64 and in float32; returns the last."""
    x = normal(sample_seeds(n, seed), (3, 8, 8), step=0, stream=INITIAL_STREAM)
    exact_model = copy.deepcopy(model).double()
    factor = magnification(lambda m: run(m, noise=x.double()), exact_model)
    for dtype, unit in reversed(UNIT.items()):
        used = exact_model if dtype == torch.float64 else model
        first, *others = (run(used, noise=x.to(dtype), **way) for way in ways)
        for way, other in zip(ways[1:], others, strict=True):
            apart, allowed = float((other - first).abs().max()), 2 * factor * unit
            assert apart <= allowed, f"{way} in {dtype}: {apart:.2g} apart, {allowed:.2g} allowed"
    assert torch.equal(run(model, **ways[0]), first)  # noise drawn from the seeds is that noise
    return first


def magnification(run: Callable[[Any], Tensor], model: Any) -> float:
    """The change of ``run`` for rounding in the sums of ``model.conv``, in units of the last place u; model in float64.

    A sum of k products, in any order, is within about sqrt(k) u sum |w x| of the exact one: Higham & Mary, "A New
    Approach to Probabilistic Rounding Error Analysis", 2019, theorem 2.4. Such errors are put in with random signs.
    """
    exact, shaken = run(model), copy.deepcopy(model)
    generator, step = torch.Generator().manual_seed(0), 2.0**-30

    def shake(conv: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        sums = F.conv2d(inputs[0].abs(), conv.weight.abs(), conv.bias.abs(), padding=conv.padding)
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return output + step * signs * (conv.weight[0].numel() + 1) ** 0.5 * sums

    shaken.conv.register_forward_hook(shake)
    return max(float((run(shaken) - exact).abs().max()) for _ in range(3)) / step
