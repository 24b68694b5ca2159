"""Batches are functions of (seed, step)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.data.images import ImageData
from fastdiff.training import TrainConfig
from fastdiff.training.batches import Batches, Shuffled
from fastdiff.training.timesteps import UniformTimes

TIMES = UniformTimes(100)


def batches(
    count: int = 30, null_class: int | None = 10, rows: slice | None = None, **options: Any
) -> Batches:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
    images[..., 0] = 255  # a bright left column, to see the mirroring
    config = TrainConfig(data=".", out=".", **{"batch_size": 8, "label_dropout": 0.0, **options})  # pyright: ignore
    return Batches(ImageData(images, torch.arange(count) % 10), config, null_class, rows)


def test_a_step_draws_the_same_from_anywhere() -> None:
    walked = [batches(flip=True, label_dropout=0.3).draw(step, TIMES) for step in range(9)]
    jumped = batches(flip=True, label_dropout=0.3).draw(8, TIMES)
    for name in ("x0", "noise", "t", "weight", "y"):
        assert torch.equal(getattr(walked[8], name), getattr(jumped, name)), name


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_processes_are_the_batch_of_one(processes: int) -> None:
    whole = batches(flip=True, label_dropout=0.3).draw(5, TIMES)
    rows = [slice(i * 8 // processes, (i + 1) * 8 // processes) for i in range(processes)]
    parts = [batches(flip=True, label_dropout=0.3, rows=mine).draw(5, TIMES) for mine in rows]
    for name in ("x0", "noise", "t", "weight", "y"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name)), name


def test_a_part_is_the_rows_of_the_batch() -> None:
    whole = batches().draw(2, TIMES)
    part = whole.part(3, 5)
    assert len(part) == 2
    assert torch.equal(part.noise, whole.noise[3:5]) and torch.equal(part.x0, whole.x0[3:5])


def test_seed_and_step_matter() -> None:
    first = batches().draw(0, TIMES)
    for other in (batches().draw(1, TIMES), batches(seed=1).draw(0, TIMES)):
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)


@pytest.mark.parametrize(("count", "batch_size"), [(30, 7), (5, 12), (8, 8)])
def test_each_epoch_sees_every_image_once(count: int, batch_size: int) -> None:
    order = Shuffled(count, seed=3)
    seen = torch.cat([order.indices(step, batch_size) for step in range(3 * count)])
    epochs = seen.view(-1, count)
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_range_layout_and_labels() -> None:
    batch = batches().draw(0, TIMES)
    assert batch.x0.shape == batch.noise.shape == (8, 1, 4, 4)
    assert batch.x0.max() == 1 and batch.x0.min() >= -1
    assert batch.y is not None
    pixel = ((batch.x0[:, 0, 0, 1] + 1) * 127.5).round().long()
    assert torch.equal(pixel % 10, batch.y)


def test_flip_mirrors_half_of_the_images() -> None:
    mirrored = torch.cat([batches(flip=True).draw(s, TIMES).x0[:, 0, 0, -1] == 1 for s in range(200)])
    assert 0.45 < mirrored.float().mean() < 0.55  # 1600 draws: 4 standard deviations


def test_label_dropout_rate_and_data_left_alone() -> None:
    source = batches(label_dropout=0.2)
    labels = torch.cat([y for step in range(300) if (y := source.draw(step, TIMES).y) is not None])
    assert 0.16 < (labels == 10).float().mean() < 0.24  # 2400 draws: 5 standard deviations
    fresh = batches().draw(0, TIMES).y
    assert fresh is not None and (fresh < 10).all()


def test_no_null_class_drops_nothing() -> None:
    y = batches(null_class=None, label_dropout=0.9).draw(0, TIMES).y
    assert y is not None and (y < 10).all()
