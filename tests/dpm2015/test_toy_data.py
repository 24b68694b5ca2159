"""The paper's data, made here or read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.dpm2015 import bark, dead_leaves, heartbeat, heartbeat_sequences, swiss_roll
from fastdiff.dpm2015.data import Standardised, read_cifar10, read_textures
from fastdiff.errors import FastdiffError


def test_swiss_roll_is_a_curve_of_variance_1() -> None:
    points = swiss_roll(50_000, seed=3)
    torch.testing.assert_close(points.mean(0), torch.zeros(2).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(points.var(0), torch.ones(2).double(), atol=0.02, rtol=0)
    assert torch.equal(points, swiss_roll(50_000, seed=3)) and not torch.equal(points, swiss_roll(50_000))
    near = torch.cdist(points[:200], points[200:]).min(1).values
    assert float(near.max()) < 0.02
    assert float(torch.cdist(swiss_roll(200, noise=0.1), points).min(1).values.mean()) > 0.05


def test_heartbeat_has_five_sequences() -> None:
    sequences = heartbeat_sequences()
    assert sequences.shape == (5, 20) and sequences.sum(1).tolist() == [4] * 5
    assert sequences.sum(0).tolist() == [1] * 20
    drawn = heartbeat(5000, seed=1)
    counts = (drawn @ sequences.T == 4).sum(0)
    assert int(counts.sum()) == 5000 and int(counts.min()) > 880


def test_dead_leaves_are_flat_with_sharp_edges() -> None:
    images = dead_leaves(200, size=24, seed=0, batch=70)
    assert images.shape == (200, 1, 24, 24) and images.dtype == torch.uint8
    assert torch.equal(images, dead_leaves(200, size=24, seed=0, batch=70))
    grey = images.double()
    assert float(grey.mean()) == pytest.approx(127.5, abs=5)
    assert float(grey.var()) == pytest.approx(256**2 / 12, rel=0.05)
    same = images[..., 1:] == images[..., :-1]
    assert 0.6 < float(same.double().mean()) < 0.9
    corners, middle = grey[:, 0, 0, 0], grey[:, 0, 12, 12]  # covered in the same way
    assert float(corners.var()) == pytest.approx(float(middle.var()), rel=0.35)


def test_larger_leaves_have_fewer_edges() -> None:
    small, large = (dead_leaves(50, size=16, radii=radii) for radii in ((2.0, 4.0), (6.0, 16.0)))
    edges = [(x[..., 1:] != x[..., :-1]).double().mean() for x in (small, large)]
    assert edges[0] > 2 * edges[1]


def test_bark_runs_along_the_trunk_with_dark_fissures() -> None:
    images = bark(150, size=32, seed=3)
    assert images.shape == (150, 1, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images[:20], bark(20, size=32, seed=3)) and not torch.equal(images, bark(150, size=32))
    grey = images.double()
    assert 90 < float(grey.mean()) < 120 and 30 < float(grey.std()) < 55
    across, along = (grey.diff(dim=d).square().mean() for d in (3, 2))
    assert float(across) > 4 * float(along)  # the texture is upright
    skew = ((grey - grey.mean()) / grey.std()).pow(3).mean()
    assert float(skew) < -0.2  # fissures are dark and narrow, plates light and wide
    assert bark(3, size=600).shape == (3, 1, 600, 600)


def test_textures_are_cut_from_other_photographs_for_testing(tmp_path) -> None:
    for i in range(12):  # each of one grey, and so are all squares of it
        Image.new("RGB", (50, 40), (20 * i, 20 * i, 20 * i)).save(tmp_path / f"{i:02d}.png")
    train, test = read_textures(tmp_path, 100, 16, seed=1)
    assert train.shape == (100, 1, 16, 16) and test.shape == (400, 1, 16, 16)
    greys, held = set(train.unique().tolist()), set(test.unique().tolist())
    assert len(greys) == 11 and len(held) == 1 and greys | held == {20 * i for i in range(12)}
    ramp = np.tile(np.arange(200, dtype=np.uint8), (60, 1))
    for i in range(2):
        Image.fromarray(ramp).save(tmp_path / f"ramp{i}.png")
    squares = read_textures(tmp_path, 50, 16, seed=2)[0].int()
    assert set(squares.diff(dim=3).unique().tolist()) == {0, 1}  # the photographs' own pixels
    with pytest.raises(FastdiffError, match="smaller than 41x41; give a smaller --size"):
        read_textures(tmp_path, 100, 41)
    (tmp_path / "one").mkdir()
    Image.new("L", (50, 40)).save(tmp_path / "one" / "a.png")
    with pytest.raises(FastdiffError, match="one photograph"):
        read_textures(tmp_path / "one", 100, 16)


def test_standardised_and_back() -> None:
    images = dead_leaves(100, size=16)
    scale = Standardised(images)
    x = scale(images, torch.Generator().manual_seed(0))
    assert float(x.mean()) == pytest.approx(0, abs=0.01) and float(x.var()) == pytest.approx(1, abs=0.01)
    assert int((scale.to_grey(x).int() - images.int()).abs().max()) <= 1


def test_cifar10_records(tmp_path) -> None:
    records = np.arange(2 * 3073, dtype=np.uint16).astype(np.uint8)
    records.tofile(tmp_path / "batch.bin")
    images = read_cifar10(tmp_path / "batch.bin")
    assert images.shape == (2, 3, 32, 32) and int(images[0, 0, 0, 0]) == 1
    (tmp_path / "short.bin").write_bytes(b"123")
    for name, words in (("short.bin", "3 bytes, not n x 3073"), ("none.bin", "cannot read")):
        with pytest.raises(FastdiffError, match=words):
            read_cifar10(tmp_path / name)


MISTAKES = {
    "no-points": (lambda: swiss_roll(0), "n must be at least 1, got 0"),
    "noise": (lambda: swiss_roll(5, noise=-1), "noise must be at least 0, got -1"),
    "noise-nan": (lambda: swiss_roll(5, noise=float("nan")), "noise must be at least 0, got nan"),
    "no-beats": (lambda: heartbeat(-1), "n must be at least 1, got -1"),
    "bark": (lambda: bark(1, size=0), "size must be at least 1, got 0"),
    "radii": (lambda: dead_leaves(1, radii=(4.0, 2.0)), "radii increasing"),
    "empty": (lambda: Standardised(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)), "N >= 1"),
    "float": (lambda: Standardised(torch.zeros(1, 1, 8, 8)), "must be uint8"),
    "grey": (lambda: Standardised(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "all of one grey"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(FastdiffError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
