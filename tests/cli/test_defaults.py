"""Python and the command line have the same sampler and steps where none are given, from one place."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import choices

pytest.importorskip("tyro", reason="tyro is not installed")


def _of(kind: Any) -> tuple[Any, int | None]:
    default = {f.name: f.default for f in fields(kind)}
    steps = default["steps"]
    return default.get("sampler"), None if steps is None else int(steps)


def test_the_options_are_of_one_place() -> None:
    from fastdiff.cli.encode import Encode
    from fastdiff.cli.evaluate import Evaluate
    from fastdiff.cli.inpaint import Inpaint
    from fastdiff.cli.interpolate import Interpolate
    from fastdiff.cli.sample import Sample

    assert _of(Sample) == _of(Evaluate) == _of(fastdiff.Sampler) == (None, None)  # the model's usual ones
    assert _of(Inpaint) == (None, None)
    assert _of(Interpolate) == (None, None) and _of(Encode) == (None, choices.INVERSION.steps)


def test_usual_sampling() -> None:
    usual = choices.usual_sampling
    assert usual(None, None, consistent=False) == (choices.SAMPLER, choices.STEPS) == ("dpmpp", 20)
    assert usual(None, None, consistent=True) == ("consistency", 2)
    assert usual("heun", None, consistent=True) == ("heun", 20)
    assert usual("sample_lcm", None, consistent=False) == ("sample_lcm", 2)
    assert usual(None, 4, consistent=True) == ("consistency", 4)
    assert usual(None, None, False, choices.INPAINTING) == ("ancestral", 50)
    assert usual(None, None, True, choices.INPAINTING) == ("consistency", 10)
    assert usual(None, None, False, choices.INVERSION) == ("ddim", 50)


def test_samples(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--no-progress")
    assert command("sample", *files, "-n", 2, "--classes", 1).code == 0
    model = fastdiff.load(checkpoints["tiny"])
    expected = fastdiff.sample(model, 2, classes=1, progress=False)
    named = fastdiff.sample(model, 2, classes=1, sampler="dpmpp", steps=20, progress=False)
    with np.load(tmp_path / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], fastdiff.to_uint8(expected).numpy())
    assert torch.equal(expected, named)


def test_inversion_and_inpainting(checkpoints) -> None:
    model = fastdiff.load(checkpoints["tiny"])
    image = fastdiff.sample(model, 1, classes=1, progress=False)
    options: dict[str, Any] = {"classes": 1, "progress": False}
    latents = fastdiff.encode(model, image, **options)
    assert torch.equal(latents, fastdiff.encode(model, image, sampler="ddim", steps=50, **options))
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    given = fastdiff.inpaint(model, image[0], mask, sampler="ancestral", steps=50, **options)
    assert torch.equal(fastdiff.inpaint(model, image[0], mask, **options), given)
