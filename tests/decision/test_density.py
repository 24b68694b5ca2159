"""Density and distribution: known values, integrals, gradients, extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.decision import cdf, log_likelihood, log_pdf, pdf

integrate = pytest.importorskip("scipy.integrate", reason="scipy is not installed")

MODELS = {
    "plain": {"v": 1.0, "a": 2.0},
    "biased": {"v": -1.5, "a": 1.2, "z": 0.3, "t0": 0.2},
    "ratcliff": {"v": 0.3, "a": 0.12, "z": 0.6, "s": 0.1, "t0": 0.3},
    "no-drift": {"v": 0.0, "a": 1.0, "z": 0.45},
    "sv": {"v": 1.0, "a": 1.5, "z": 0.4, "sv": 0.7, "t0": 0.1},
    "sz": {"v": 1.0, "a": 1.5, "z": 0.4, "sz": 0.3, "t0": 0.1},
    "st0": {"v": 1.0, "a": 1.5, "z": 0.4, "st0": 0.2, "t0": 0.1},
    "all": {"v": 1.0, "a": 1.5, "z": 0.45, "sv": 0.6, "sz": 0.3, "st0": 0.15, "t0": 0.1},
}


def test_known_values() -> None:
    """v = 1, a = 2, t = 1, evaluated independently."""
    assert pdf(1.0, [0, 1], 1.0, 2.0).tolist() == pytest.approx([0.0510259880, 0.3770338880], abs=5e-11)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("choice", [0, 1], ids=["lower", "upper"])
def test_cdf_is_the_integral_of_pdf(model: dict[str, float], choice: int) -> None:
    begin = model.get("t0", 0.0)
    for end in (begin + 0.1, begin + 0.4, begin + 2.5):
        area = integrate.quad(lambda t: float(pdf(t, choice, **model)), begin, end, epsabs=1e-10, limit=200)[
            0
        ]
        assert float(cdf(end, choice, **model)) == pytest.approx(area, abs=3e-6 if "st0" in model else 1e-9)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_everyone_decides_in_the_end(model: dict[str, float]) -> None:
    assert float(cdf(100.0, [0, 1], **model).sum()) == pytest.approx(1, abs=1e-9)
    assert cdf(0.05 * model.get("t0", 0), [0, 1], **model).tolist() == [0, 0]


def test_both_series_agree_where_they_meet() -> None:
    """log g at tau = SPLIT from either side, and the textbook sum of very many terms in between."""
    w, v, a = 0.37, 0.8, 1.7
    for tau in (0.05, 0.29999, 0.30001, 1.0):
        t = tau * a * a
        k = np.arange(-60, 61)
        images = ((w + 2 * k) * np.exp(-((w + 2 * k) ** 2) / (2 * tau))).sum() / math.sqrt(
            2 * math.pi * tau**3
        )
        expected = math.exp(-v * a * w - v * v * t / 2) * images / a**2
        assert float(pdf(t, 0, v, a, w)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("v", [-30.0, 30.0])
def test_extremes_stay_finite_in_logarithms(v: float) -> None:
    p = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    value = log_pdf([1e-3, 0.5, 20.0], [0, 1, 0], p, 2.0)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), p)[0].isfinite()


def test_before_t0_nothing_can_happen() -> None:
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    values = log_pdf([0.1, 0.3, 0.8], 1, 1.0, a, t0=0.3)
    assert values[:2].tolist() == [-math.inf] * 2
    assert torch.autograd.grad(values[2], a)[0].isfinite()


def test_gradients_where_nothing_can_have_happened_with_ranges() -> None:
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    values = log_pdf([0.1, 0.8], 1, 1.0, a, t0=0.3, st0=0.1, sz=0.1)
    assert values[0] == -math.inf
    assert torch.autograd.grad(values[1], a)[0].isfinite()


@pytest.mark.parametrize("function", [log_pdf, cdf], ids=["log_pdf", "cdf"])
def test_gradients_are_those_of_finite_differences(function) -> None:
    names = ("v", "a", "z", "t0", "s", "sv", "sz", "st0")
    values = (1.0, 1.5, 0.4, 0.1, 1.2, 0.5, 0.3, 0.1)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in values]
    rt = torch.tensor([0.25, 0.45, 0.9, 2.5], dtype=torch.float64)

    def run(*p):
        return function(rt, [0, 1, 0, 1], **dict(zip(names, p, strict=True)))

    assert torch.autograd.gradcheck(run, leaves)


def test_conventions() -> None:
    """Relative and absolute starts, both meanings of t0, both customs for s."""
    rt, choice = [0.5, 0.9], [1, 0]
    one = log_pdf(rt, choice, 1.0, 1.5, 0.4, 0.1, sz=0.2, st0=0.1)
    lengths = log_pdf(rt, choice, 1.0, 1.5, 0.6, 0.1, sz=0.3, st0=0.1, z_mode="absolute")
    middle = log_pdf(rt, choice, 1.0, 1.5, 0.4, 0.15, sz=0.2, st0=0.1, t0_mode="mid")
    small = log_pdf(rt, choice, 0.1, 0.15, 0.4, 0.1, s=0.1, sz=0.2, st0=0.1)
    for other in (lengths, middle, small):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_log_likelihood_is_the_sum() -> None:
    rt, choice = torch.tensor([0.5, 0.9, 0.7]), torch.tensor([1, 0, 1], dtype=torch.int8)
    one_by_one = sum(float(log_pdf(t, c, 1.0, 1.5)) for t, c in zip(rt, choice, strict=True))
    assert float(log_likelihood(rt, choice, 1.0, 1.5)) == pytest.approx(one_by_one, rel=1e-12)
