"""The Fréchet distance and the Inception Score against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.frechet import FrechetDistance, Moments, inception_score

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


def _points(mean: np.ndarray, covariance: np.ndarray) -> torch.Tensor:
    """[2 D, D] whose mean and unbiased covariance are exactly these."""
    d = len(mean)
    root = np.linalg.cholesky(covariance).T * math.sqrt((2 * d - 1) / 2)
    return torch.from_numpy(mean + np.concatenate([root, -root]))


def _covariance(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d))
    return a @ a.T + 0.1 * np.eye(d)


def _distance(samples: torch.Tensor, reference: torch.Tensor) -> float:
    distance = FrechetDistance()
    distance.update(samples)
    for part in reference.split(3):
        distance.update(part, is_reference=True)
    return distance.compute()


def test_of_diagonal_gaussians() -> None:
    """|mu - mu_r|^2 + sum (s - s_r)^2."""
    d = 6
    rng = np.random.default_rng(0)
    s, s_r, shift = rng.uniform(0.1, 2, d), rng.uniform(0.1, 2, d), rng.standard_normal(d)
    found = _distance(_points(shift, np.diag(s**2)), _points(np.zeros(d), np.diag(s_r**2)))
    assert found == pytest.approx((shift**2).sum() + ((s - s_r) ** 2).sum(), rel=1e-12)


def test_of_any_gaussians_against_the_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    a, b, shift = _covariance(5, 1), _covariance(5, 2), np.arange(5.0)
    expected = (shift**2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert _distance(_points(shift, a), _points(0 * shift, b)) == pytest.approx(expected, rel=1e-10)


def test_of_a_set_from_itself_is_zero() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert _distance(x, x) == pytest.approx(0, abs=1e-9)


def test_reference_as_moments() -> None:
    """What is read out is mean and covariance, and put back in it gives the same distance."""
    rng = np.random.default_rng(3)
    x, y = torch.from_numpy(rng.standard_normal((40, 4)) + 3), torch.from_numpy(rng.standard_normal((30, 4)))
    whole = FrechetDistance()
    whole.update(x)
    whole.update(y, is_reference=True)
    mean, covariance = whole.reference
    np.testing.assert_allclose(mean, y.mean(0))
    np.testing.assert_allclose(covariance, np.cov(y.numpy(), rowvar=False))
    stored = FrechetDistance()
    stored.update(x)
    stored.reference = Moments(mean, covariance)
    assert stored.compute() == pytest.approx(whole.compute(), rel=1e-10)


def test_other_features_are_refused() -> None:
    distance = FrechetDistance()
    distance.update(torch.zeros(3, 4))
    with pytest.raises(FastdiffError, match="4 features cannot be compared with 2048"):
        distance.reference = Moments(np.zeros(2048), np.zeros((2048, 2048)))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(FastdiffError, match="at least 2 images, and the samples are 1"):
        _distance(torch.zeros(1, 4), torch.zeros(5, 4))


def test_inception_score_of_certain_and_of_clueless_predictions() -> None:
    """K classes, each certain and equally frequent: K. The same prediction for all: 1."""
    certain = 1e4 * torch.eye(7).repeat(20, 1)
    assert inception_score(certain) == pytest.approx(7, rel=1e-9)
    assert inception_score(torch.zeros(50, 7)) == pytest.approx(1, rel=1e-12)


def test_inception_score_of_two_predictions() -> None:
    """p or 1 - p, half and half: exp(ln 2 - H(p))."""
    p = 0.8
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(50, 1)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert inception_score(logits) == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


def test_inception_score_splits_as_adm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, shuffled: sorted by class they would score less. Repeatable, and torch's own stream is left alone."""
    monkeypatch.setattr("fastdiff.evaluation.frechet.SPLIT", 50)
    certain = 1e4 * torch.eye(5).repeat_interleave(20, 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (inception_score(certain, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    assert 4.5 < first < 5
