"""Numbers of NumPy and PyTorch are numbers wherever one is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.data.fit import fit_image
from fastdiff.data.images import load_data
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.frechet import inception_score
from fastdiff.evaluation.images import Images
from fastdiff.evaluation.manifold import precision_recall
from fastdiff.evaluation.metrics import EvaluationOptions
from fastdiff.images import grid
from fastdiff.scalars import plain
from fastdiff.training import AdamWEMA, TrainConfig

KINDS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda x: np.asarray(x)[()],  # np.int64, np.float64
    "array": np.asarray,
    "tensor": torch.tensor,
}


@pytest.fixture(params=KINDS)
def number(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return KINDS[request.param]


def test_plain(number: Callable[[Any], Any]) -> None:
    for value in (3, 2.5, True):
        assert plain(number(value)) == value and type(plain(number(value))) is type(value)
    assert plain([number(1), (number(2), "x")]) == (1, (2, "x"))
    several = number([1, 2])
    assert plain(several) is several and plain(None) is None and plain(Path("x")) == Path("x")


def test_train_config(number: Callable[[Any], Any]) -> None:
    given = {"steps": 5, "lr": 0.5, "seed": 3, "batch_size": 4, "image_size": 8, "keep": 2, "num_classes": 0}
    found = TrainConfig(Path(), Path(), ema=(number(0.5),), **{k: number(v) for k, v in given.items()})
    assert found == TrainConfig(Path(), Path(), ema=(0.5,), **given)  # pyright: ignore[reportArgumentType]
    assert type(found.steps) is int and type(found.lr) is float and type(found.ema[0]) is float
    for wrong in (number(2.5), number(True), "5"):
        with pytest.raises(FastdiffError, match="steps must be a whole number, got"):
            TrainConfig(Path(), Path(), steps=wrong)


def test_data(number: Callable[[Any], Any], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 10, 10), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(6) % 2)
    for fit in ("crop", "random-crop"):
        one, other = (
            load_data(
                tmp_path / "x.npz", image_size=n(8), channels=n(3), num_classes=n(2), seed=n(5), fit=fit
            ).fetch(torch.arange(6), 1)
            for n in (number, int)
        )
        assert torch.equal(one, other)
    assert np.array_equal(fit_image(images[0], number(8), number(1)), fit_image(images[0], 8, 1))
    for size, channels in ((0, 1), (8, 2), (8.0, 1)):
        with pytest.raises(FastdiffError, match="size must be at least 1 and channels 1 or 3"):
            fit_image(images[0], size, channels)  # pyright: ignore[reportArgumentType]


def test_evaluation(number: Callable[[Any], Any]) -> None:
    assert EvaluationOptions(batch_size=number(2), seed=number(1)) == EvaluationOptions(batch_size=2, seed=1)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g)
    assert inception_score(a, seed=number(3)) == inception_score(a, seed=3)
    assert precision_recall(a, b, neighbours=number(2)) == precision_recall(a, b, neighbours=2)
    first = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), "x").first(number(2))
    assert len(first) == 2 and torch.arange(len(first)).tolist() == [0, 1]
    with pytest.raises(FastdiffError, match="x holds 5 images, not 0"):
        first.first(None) and Images(torch.zeros(5, 1, 2, 2), "x").first(number(0))


def test_pictures(number: Callable[[Any], Any]) -> None:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    found = grid(images, columns=number(2), tile=number(20))
    assert np.array_equal(np.asarray(found), np.asarray(grid(images, columns=2, tile=20)))


def test_optimizer(number: Callable[[Any], Any]) -> None:
    after = []
    for n in (number, float):
        p = torch.nn.Parameter(torch.arange(5.0))
        p.grad = torch.arange(5.0) - 2
        AdamWEMA([p], n(1e-3), weight_decay=n(0.1), ema_rates=(n(0.5),)).step()
        after.append(p.detach().clone())
    assert torch.equal(*after)
