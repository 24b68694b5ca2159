"""Augmentation by a function of the user's: the same at each step whoever makes it, and only what it may return."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff.cli import main
from fastdiff.data.images import ImageData
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.augment import Augmented, describe, import_augment
from fastdiff.training.batches import Batches
from fastdiff.training.timesteps import UniformTimes

IMAGES = torch.arange(8 * 3 * 4 * 4, dtype=torch.uint8).view(8, 3, 4, 4)


def shifted(x: Tensor) -> Tensor:
    """Adds a number of torch's, one of NumPy's and one of Python's, one for a call, and keeps the image's own."""
    drawn = int(torch.randint(50, ())) + np.random.randint(50) + random.randrange(50)
    return (x.int() + drawn).clamp(max=255).byte()


class Rolled(nn.Module):
    """As torchvision's transforms are: a module that draws once for a call."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(int(torch.randint(self.most, ())), dims=-1)

    def extra_repr(self) -> str:
        return f"most={self.most}"


def batches(rows: slice | None = None, **options: Any) -> Batches:
    config = TrainConfig(data=Path(), out=Path(), batch_size=8, workers=options.pop("workers", 0))
    return Batches(ImageData(IMAGES), config, None, rows, **options)


def test_every_image_has_numbers_of_its_own() -> None:
    found = Augmented(shifted, seed=1)(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), 3)
    values = found[:, 0, 0, 0]
    assert torch.equal(found, values.view(-1, 1, 1, 1).expand_as(found)) and len(values.unique()) > 50


def test_steps_and_seeds_differ_and_the_same_step_is_the_same() -> None:
    first = Augmented(shifted, seed=1)(IMAGES, 3)
    assert torch.equal(Augmented(shifted, seed=1)(IMAGES, 3), first)
    for seed, step in ((2, 3), (1, 4)):
        assert not torch.equal(Augmented(shifted, seed=seed)(IMAGES, step), first)


def test_processes_have_the_images_of_one() -> None:
    whole = batches(augment=shifted).draw(5, UniformTimes(10)).pixels
    halves = [batches(slice(i, i + 4), augment=shifted).draw(5, UniformTimes(10)).pixels for i in (0, 4)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(whole, batches().draw(5, UniformTimes(10)).pixels)


def test_workers_change_nothing() -> None:
    here, there = batches(augment=Rolled(4)), batches(augment=Rolled(4), workers=1)
    try:
        for step in (0, 1, 7):
            expected = here.draw(step, UniformTimes(10)).pixels
            assert torch.equal(there.draw(step, UniformTimes(10)).pixels, expected)
    finally:
        there.close()


def test_global_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    def draw() -> tuple[float, ...]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(0), np.random.seed(0), random.seed(0)

    seed()
    expected = draw()
    seed()
    Augmented(shifted, seed=1)(IMAGES, 0)
    assert draw() == expected


def test_flips_are_horizontal_and_vertical() -> None:
    corner = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    corner[:, :, 0, 0] = 255
    config = TrainConfig(data=Path(), out=Path(), batch_size=8, flip=True, flip_vertical=True)
    source = Batches(ImageData(corner), config, None)
    drawn = torch.cat([source.draw(step, UniformTimes(10)).pixels for step in range(100)])
    for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        share = (drawn[(..., *place)] == 255).float().mean().item()
        assert share == pytest.approx(0.25, abs=0.08)  # 800 draws: five standard deviations
    only = Batches(ImageData(corner), TrainConfig(Path(), Path(), batch_size=8, flip_vertical=True), None)
    assert (only.draw(0, UniformTimes(10)).pixels[:, :, :, 1:] == 0).all()


@pytest.fixture
def transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transforms.py in the current folder."""
    (tmp_path / "transforms.py").write_text(
        "import torch\n"
        "def train(x):\n"
        "    return x.flip(-1) if torch.rand(()) < 0.5 else 255 - x\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield  # pyright: ignore
    sys.modules.pop("transforms", None)


def test_the_command_line_resumes_bit_for_bit(toy: dict[str, Any], tmp_path: Path, transforms: None) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = ["train", "--data", str(toy["data"]), "--preset", toy["preset"], "--batch-size", "8"]
    given += ["--checkpoint-every", "2", "--threads", "1", "--device", "cpu", "--no-progress"]
    given += ["--augment", "transforms:train"]
    assert main([*given, "--steps", "5", "--out", "whole"]) == 0
    assert main([*given, "--steps", "3", "--out", "parts"]) == 0
    assert main([*given, "--steps", "5", "--out", "parts"]) == 0
    assert main([*given[:-2], "--steps", "5", "--out", "plain"]) == 0
    whole, parts, plain = (load_file(f"{name}/model.safetensors") for name in ("whole", "parts", "plain"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not all(torch.equal(whole[key], plain[key]) for key in whole)
    assert "" not in sys.path or sys.path.count("") == 1


def test_a_run_goes_on_with_the_same_augmentation_only(toy: dict[str, Any]) -> None:
    train(TrainConfig(**toy, steps=1), augment=Rolled(4))
    with pytest.raises(FastdiffError, match=r"augment = 'Rolled\(most=4\)', now 'Rolled\(most=5\)' is asked"):
        train(TrainConfig(**toy, steps=2), augment=Rolled(5))
    with pytest.raises(FastdiffError, match="now None is asked for"):
        train(TrainConfig(**toy, steps=2))


def test_descriptions_have_no_addresses() -> None:
    class Wrapped(nn.Module):
        def extra_repr(self) -> str:
            return repr(shifted)

    assert describe(Wrapped()) == "Wrapped(<function shifted>)"
    assert describe(shifted) == "shifted" and describe(nn.Identity()) == "Identity()"


BAD = {
    "float": (lambda x: x.float(), r"uint8 \[1, 3, 4, 4\].* <lambda> returned torch.float32 \[1, 3, 4, 4\]"),
    "size": (lambda x: x[..., 1:], r"returned torch.uint8 \[1, 3, 4, 3\]"),
    "nothing": (lambda x: None, "returned NoneType"),
    "error": (lambda x: x.nothing, "failed on an image: AttributeError: .*nothing"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", BAD)
def test_what_it_may_not_return_is_told(name: str, workers: int) -> None:
    augment, sentence = BAD[name]
    source = batches(augment=augment, workers=workers)
    with pytest.raises(FastdiffError, match=sentence):
        source.draw(0, UniformTimes(10))
    source.close()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("transforms", "needs module:name"),
        ("nowhere_at_all:train", "cannot import --augment nowhere_at_all:train: ModuleNotFoundError"),
        ("transforms:test", "has no attribute 'test'"),
        ("transforms:number", "is int, which cannot be called"),
    ],
)
def test_names_that_cannot_be_imported(transforms: None, name: str, sentence: str) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        import_augment(name)
