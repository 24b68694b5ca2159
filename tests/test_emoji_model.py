"""The bundled colour models: their emoji are told apart as real ones are, and enlarged ones are true to the small."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.checkpoint.load import ASSETS
from fastdiff.checkpoint.read import read

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LISTED = Path("/usr/share/unicode/emoji/emoji-test.txt")
EVERY = 4  # emoji of the list are drawn
NAMES = ("activities", "animals", "flags", "food", "objects", "people", "smileys", "symbols", "travel")
SAMPLES = 27

pytestmark = pytest.mark.xdist_group("emoji_model")  # what is drawn and sampled is made once


class Drawn(NamedTuple):
    """Emoji [N,3,128,128] in [-1, 1] and their classes [N]."""

    images: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def emoji() -> Drawn:
    if not FONT.exists() or not LISTED.exists():
        pytest.skip("needs the Debian packages fonts-noto-color-emoji and unicode-data")
    pytest.importorskip("tyro", reason="tyro is not installed")
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "emoji_pictures.py"))
    font = example["load_font"](FONT)
    some = list(example["listed"](LISTED, skin_tones=False))[::EVERY]
    drawn = [(example["draw"](one.text, font), NAMES.index(one.group)) for one in some]
    drawn = [(picture, label) for picture, label in drawn if picture is not None]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in drawn]))
    return Drawn(pixels.movedim(-1, 1).float() / 127.5 - 1, torch.tensor([label for _, label in drawn]))


def _features(images: Tensor) -> Tensor:
    """[N,3,H,W] in [-1, 1] -> means of 16x16 areas, and a constant, [N,769] float64."""
    small = torch.nn.functional.interpolate(images.double(), size=(16, 16), mode="area").flatten(1)
    return torch.cat([small, torch.ones(len(small), 1, dtype=torch.float64)], dim=1)


@pytest.fixture(scope="module")
def classify(emoji: Drawn):
    """Ridge regression onto one-hot labels."""
    x = torch.cat([_features(emoji.images), _features(emoji.images.flip(-1))])
    target = torch.nn.functional.one_hot(emoji.labels.repeat(2), len(NAMES)).double()
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target)
    return lambda images: (_features(images) @ weights).argmax(dim=1)


@pytest.fixture(scope="module")
def samples() -> Drawn:
    classes = torch.arange(SAMPLES) % len(NAMES)
    model = fastdiff.load("emoji")
    options: dict = dict(steps=8, guidance_scale=3.0, progress=False, seed=3)
    return Drawn(fastdiff.sample(model, SAMPLES, classes=classes, **options), classes)


@pytest.mark.parametrize(("name", "largest"), [("emoji", 11_000_000), ("emoji-upsampler", 3_000_000)])
def test_size_and_description(name: str, largest: int) -> None:
    path = ASSETS / f"{name}.safetensors"
    assert path.stat().st_size < largest
    assert {tensor.dtype for tensor in read(path)[0].values()} == {torch.bfloat16}
    model, preset = fastdiff.load(name), fastdiff.PRESETS[name]
    assert (model.config, model.diffusion) == (preset.model, preset.diffusion)
    assert model.class_names == NAMES


def test_samples_are_told_apart(classify, samples: Drawn) -> None:
    """Real emoji that the classifier has not seen are told right in 55 of 100, noise or one picture for all in 11."""
    right = (classify(samples.images) == samples.labels).double().mean().item()
    print(f"{right:.2f} of the samples are taken for their class")
    assert right >= 0.35


def test_samples_are_clear_pictures_on_white(emoji: Drawn, samples: Drawn) -> None:
    """The rim is as white as that of real emoji, what is on it as strong in contrast, and no two are the same."""
    real = torch.nn.functional.avg_pool2d(emoji.images, 2)
    for measure in (lambda x: x[..., 0, :].mean(), lambda x: x.std(dim=(1, 2, 3)).mean()):
        assert measure(samples.images).item() == pytest.approx(measure(real).item(), rel=0.25)
    distances = torch.cdist(samples.images.flatten(1), samples.images.flatten(1))
    assert distances[~torch.eye(SAMPLES, dtype=torch.bool)].min() > 5


def _grey_levels(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item() * 127.5


def test_the_upsampler_adds_what_was_there(emoji: Drawn) -> None:
    """Far nearer to the real large picture than a bilinear enlargement is."""
    large = emoji.images[::100]
    small = torch.nn.functional.avg_pool2d(large, 2)
    options: dict = dict(sampler="ancestral", steps=8, progress=False)
    made = fastdiff.upsample(fastdiff.load("emoji-upsampler"), small, keep_means=True, **options)
    smooth = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    error, blur = _grey_levels(made, large), _grey_levels(smooth, large)
    print(f"{error:.1f} grey levels from the picture, bilinear {blur:.1f}")
    assert error < 0.75 * blur


@pytest.mark.parametrize(("kept", "most"), [(False, 20), (True, 1)])
def test_the_cascade(samples: Drawn, kept: bool, most: float) -> None:
    """The means of what is enlarged are the small images, to rounding if they are kept."""
    base, upsampler = fastdiff.load("emoji"), fastdiff.load("emoji-upsampler")
    options: dict = dict(guidance_scale=3.0, steps=8, seed=3, progress=False)
    own: dict = {"guidance_scale": None}
    large = fastdiff.cascade(
        base, upsampler, 2, classes=samples.labels[:2], upsampler_options=own, keep_means=kept, **options
    )
    assert large.shape == (2, 3, 128, 128)
    means = torch.nn.functional.avg_pool2d(large, 2)
    difference = _grey_levels(means, samples.images[:2])
    others = _grey_levels(means, samples.images[[1, 0]])
    print(f"{difference:.1f} grey levels from the small images, {others:.1f} from each other's")
    assert difference < most < others / 2
