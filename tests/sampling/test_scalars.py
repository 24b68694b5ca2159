"""Numbers of NumPy and tensors without a dimension are taken wherever Python's are; what is no number is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_api import SmallModel

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.sampling import Guide, Inpaint

KINDS: dict[str, Callable[[Any], Any]] = {
    "numpy integer": np.int64,
    "numpy small integer": np.uint8,
    "numpy float": np.float64,
    "numpy array": np.array,
    "tensor": torch.tensor,
    "float tensor": lambda value: torch.tensor(float(value)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_number_of_a_call(kind: Callable[[Any], Any]) -> None:
    model = SmallModel()
    plain: dict[str, Any] = dict(
        classes=3, seed=7, sampler="ddim", steps=4, batch_size=2, guidance_scale=2, eta=1, shape=(3, 8, 8)
    )
    theirs = plain | {name: kind(value) for name, value in plain.items() if name not in ("shape", "sampler")}
    theirs["shape"] = tuple(map(kind, plain["shape"]))
    wanted = fastdiff.sample(model, 3, progress=False, **plain)
    assert torch.equal(fastdiff.sample(model, kind(3), progress=False, **theirs), wanted)
    per_sample = {**theirs, "classes": [kind(3)] * 3, "seeds": [kind(1), kind(2), kind(3)]}
    del per_sample["seed"]
    assert fastdiff.sample(model, 3, progress=False, **per_sample).shape == wanted.shape


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_number_of_a_condition(kind: Callable[[Any], Any]) -> None:
    model, image = SmallModel(), torch.zeros(3, 8, 8)
    mask = torch.zeros(8, 8)
    mask[2:4] = 1
    options: dict[str, Any] = dict(steps=3, diffusion=fastdiff.DiffusionConfig(), progress=False)
    wanted = fastdiff.inpaint(model, image, mask, 2, repeats=2, classes=1, **options)
    got = fastdiff.inpaint(model, image, mask, kind(2), repeats=kind(2), classes=kind(1), **options)
    assert torch.equal(got, wanted)
    wanted = fastdiff.denoise(model, image[None], 2, classes=1, **options)
    assert torch.equal(fastdiff.denoise(model, image[None], kind(2), classes=1, **options), wanted)
    wanted = fastdiff.interpolate(model, image, image + 1, 3, classes=1, steps=3, progress=False)
    got = fastdiff.interpolate(
        model, image, image + 1, kind(3), classes=kind(1), steps=kind(3), progress=False
    )
    assert torch.equal(got, wanted)
    assert Guide(lambda x, t: x, kind(2)).scale == 2 and Inpaint(image, mask, kind(2)).repeats == 2


def test_shapes_as_arrays() -> None:
    model = SmallModel()
    wanted = fastdiff.sample(model, 1, shape=(3, 8, 8), steps=2, progress=False)
    for shape in ([3, 8, 8], np.array([3, 8, 8]), torch.tensor([3, 8, 8]), torch.Size((3, 8, 8))):
        assert torch.equal(fastdiff.sample(model, 1, shape=shape, steps=2, progress=False), wanted)


BAD = [
    (dict(n=np.float64(1.5)), "the number of samples must be a whole number"),
    (dict(n=torch.tensor(True)), "the number of samples must be a whole number"),
    (dict(seed=np.float64(0.5)), "seed must be a whole number"),
    (dict(seed=torch.tensor(-1)), "seed must be a whole number"),
    (dict(classes=np.float64(1.5)), "classes must be"),
    (dict(classes=np.int64(9)), "class 9 is unknown"),
    (dict(shape=(3.0, np.float64(8.5), 8)), "shape must be positive whole numbers"),
    (dict(shape=5), "shape must be positive whole numbers"),
    (dict(batch_size="4"), "batch_size must be at least 1"),
    (dict(batch_size=np.float64(1.5)), "batch_size must be at least 1"),
    (dict(guidance_scale="2"), "guidance_scale must be a finite number"),
    (dict(guidance_scale=torch.tensor(float("nan"))), "guidance_scale must be a finite number"),
    (dict(eta="1", sampler="ddim"), "eta must be between 0"),
    (dict(steps=np.float64(2.5)), "steps"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[f"{b[0]}"[:40] for b in BAD])
def test_what_is_no_such_number_is_told(arguments: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {"n": 1, "classes": 1, "steps": 2, "progress": False} | arguments
    with pytest.raises(FastdiffError, match=sentence):
        fastdiff.sample(SmallModel(), **options)
