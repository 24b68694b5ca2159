"""Near copies of pictures of which it is known what was copied, and the distance against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.copies import among_themselves, nearest, picture
from fastdiff.evaluation.images import Images

SIZE = 64


def _scenes(n: int, seed: int, size: int = SIZE) -> torch.Tensor:
    """[n,3,size,size] uint8: smooth random pictures, no two of them alike."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).byte()


def _named(pixels: torch.Tensor, name: str = "pictures") -> Images:
    return Images(pixels, name)


DATA = _named(_scenes(120, 0), "data")


def _noisy(pixels: torch.Tensor, deviation: float, seed: int = 5) -> torch.Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (pixels.float() + deviation * noise).clamp(0, 255).byte()


COPIES = {
    "itself": lambda x: x,
    "noisy": lambda x: _noisy(x, 12),
    "mirrored": lambda x: x.flip(-1),
    "moved": lambda x: torch.cat([x[..., :2, :], x[..., :-2, :]], dim=-2),  # by a pixel of 32
    "darker": lambda x: (0.95 * x.float()).byte(),
    "mirrored, moved and noisy": lambda x: _noisy(torch.cat([x[..., 2:], x[..., -2:]], -1).flip(-1), 8),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found(change) -> None:
    rows = torch.tensor([7, 0, 119, 50])
    found = nearest(_named(change(DATA.fetch(rows))), DATA)
    assert torch.equal(found.rows[:, 0], rows) and found.share == 1


def test_new_pictures_are_none() -> None:
    found = nearest(_named(_scenes(60, 1)), DATA)
    assert found.share == 0 and found.ratio.min() > 0.6


def test_a_quarter_is_copied() -> None:
    mixed = torch.cat([_scenes(30, 2), DATA.fetch(torch.arange(10)).flip(-1)])
    assert nearest(_named(mixed), DATA).share == 0.25


def test_pictures_that_are_all_nearly_alike_are_no_copies() -> None:
    """Near to all is not near to one: what a distance alone would take for a copy."""
    scene = _scenes(1, 3)
    alike = _named(_noisy(scene.expand(60, -1, -1, -1), 20))
    new = nearest(_named(_noisy(scene, 20, seed=6)), alike)
    far = nearest(_named(_scenes(5, 1)), DATA)
    assert new.distance.max() < far.distance.min() and new.share == 0


def test_the_reference_among_itself() -> None:
    assert among_themselves(DATA).share == 0
    twice = _named(torch.cat([DATA.fetch(torch.arange(60)), DATA.fetch(torch.arange(30))]))
    found = among_themselves(twice)
    assert found.share == 60 / 90 and found.distance[0].item() == pytest.approx(0, abs=1e-3)
    assert all(found.rows[k, 0] == 60 + k and found.rows[60 + k, 0] == k for k in range(30))
    same = nearest(twice, twice)
    assert torch.equal(same.rows, found.rows)


def test_against_the_definition() -> None:
    """Grey images of 6 x 6 pixels, which are compared as they are; in float64, by NumPy."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 256, (n, 6, 6)) for n in (3, 55))
    found = nearest(*(_named(torch.tensor(a[:, None], dtype=torch.uint8)) for a in (x, y)))
    for i, image in enumerate(x.astype(float)):
        wide = np.pad(image, 1, mode="edge")
        shifted = [wide[a : a + 6, b : b + 6] for a in range(3) for b in range(3)]
        moved = [*shifted, *(m[:, ::-1] for m in shifted)]
        d = np.array([min(np.sqrt(((m - other) ** 2).mean()) for m in moved) for other in y])
        assert found.rows[i].tolist() == np.argsort(d)[:50].tolist()
        assert found.distance[i].item() == pytest.approx(d.min(), rel=1e-5)
        assert found.ratio[i].item() == pytest.approx(d.min() / np.sort(d)[:50].mean(), rel=1e-5)


def test_the_picture_has_the_neighbours_below_the_samples() -> None:
    samples = _named(torch.cat([DATA.fetch(torch.tensor([4])), _scenes(1, 9)]))
    found = nearest(samples, DATA)
    shown = np.asarray(picture(samples, DATA, found))
    tiles = [
        [shown[6 + 150 * r : 134 + 150 * r, 6 + 134 * c :][:, :128:2] for c in range(2)] for r in range(3)
    ]
    expected = [samples.fetch(torch.arange(2)), *(DATA.fetch(found.rows[:, k]) for k in range(2))]
    for row, images in zip(tiles, expected, strict=True):
        for tile, image in zip(row, images, strict=True):
            assert np.array_equal(tile[::2], image.permute(1, 2, 0).numpy())


def test_mistakes() -> None:
    with pytest.raises(FastdiffError, match="told by 50 neighbours; few holds only 50 images"):
        nearest(DATA, _named(_scenes(50, 0), "few"))
    with pytest.raises(FastdiffError, match="differ in shape"):
        nearest(_named(_scenes(1, 0, 8)), DATA)
