"""Precision and recall of clouds for which they are known, and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import FastdiffError
from fastdiff.evaluation import manifold
from fastdiff.evaluation.manifold import precision_recall


def _cloud(n: int, centre: float, seed: int, d: int = 6) -> torch.Tensor:
    return centre + 0.1 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _by_definition(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    def covered(x: np.ndarray, centres: np.ndarray) -> float:
        inside = 0
        for row in x:
            for j, centre in enumerate(centres):
                others = np.delete(centres, j, axis=0)
                radius = np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]
                if np.linalg.norm(row - centre) <= radius:
                    inside += 1
                    break
        return inside / len(x)

    return covered(samples, reference), covered(reference, samples)


def test_the_same_set() -> None:
    x = _cloud(40, 0, 0)
    assert precision_recall(x, x) == (1, 1)


def test_far_apart() -> None:
    assert precision_recall(_cloud(30, 0, 0), _cloud(40, 50, 1)) == (0, 0)


def test_one_mode_of_two() -> None:
    """Samples that copy half of the reference: all are real, half of it is missing."""
    known, missing = _cloud(30, 0, 0), _cloud(30, 50, 1)
    assert precision_recall(known, torch.cat([known, missing])) == (1, 0.5)


def test_a_quarter_is_nonsense() -> None:
    real, nonsense = _cloud(30, 0, 0), _cloud(10, 50, 1)
    assert precision_recall(torch.cat([real, nonsense]), real) == (0.75, 1)


@pytest.mark.parametrize("k", [1, 3])
def test_against_the_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of a few rows."""
    monkeypatch.setattr(manifold, "_BLOCK", 100)
    samples, reference = _cloud(35, 0, 2, d=3), _cloud(28, 0.05, 3, d=3)
    expected = _by_definition(samples.double().numpy(), reference.double().numpy(), k)
    assert precision_recall(samples, reference, neighbours=k) == pytest.approx(expected)
    assert 0 < expected[0] < 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix of distances is larger than a block, however many images there are."""
    sizes: list[int] = []
    cdist = torch.cdist
    monkeypatch.setattr(manifold, "_BLOCK", 4000)
    monkeypatch.setattr(torch, "cdist", lambda a, b: (sizes.append(len(a) * len(b)), cdist(a, b))[1])
    precision_recall(_cloud(500, 0, 0), _cloud(300, 0, 1))
    assert max(sizes) <= 4000 and sum(sizes) == 500 * 500 + 300 * 300 + 2 * 500 * 300


def test_too_few() -> None:
    with pytest.raises(FastdiffError, match="more than 3 images on either side; the reference are 3"):
        precision_recall(torch.zeros(9, 2), torch.zeros(3, 2))


def test_other_features() -> None:
    with pytest.raises(FastdiffError, match="samples have 2 features, the reference 3"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 3))
