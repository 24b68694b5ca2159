"""Closed forms against their value table and the density; EZ there and back."""

from __future__ import annotations

import pytest
import torch

from fastdiff.decision import ez, moments, pdf

integrate = pytest.importorskip("scipy.integrate", reason="scipy is not installed")

# v, a, z (a length), s, more -> P(upper), mean, variance
TABLE = [
    ((1.0, 2.0, 1.0, 1.0), {}, (0.8807970780, 0.7615941560, 0.3416198143)),
    ((0.5, 1.5, 0.6, 1.0), {}, (0.5807772947, 0.5423318840, 0.1929985368)),
    ((0.3, 0.12, 0.06, 0.1), {}, (0.9734030064, 0.1893612026, 0.0168977987)),
    ((0.0, 2.0, 1.0, 1.0), {}, (0.5, 1.0, 2 / 3)),
    ((1.0, 2.0, 1.0, 1.0), {"sv": 0.5}, (0.8445374815, 0.7594904261)),
    ((1.0, 2.0, 1.0, 1.0), {"sz": 0.6}, (0.8723752893, 0.7447505787)),
]


@pytest.mark.parametrize(("model", "more", "expected"), TABLE)
def test_table(model, more, expected) -> None:
    v, a, z, s = model
    found = moments(v, a, z, s=s, z_mode="absolute", **more)
    assert [float(x) for x in found[: len(expected)]] == pytest.approx(expected, abs=6e-11)


@pytest.mark.parametrize("v", [-2.0, 0.0, 0.2, 3.0])
def test_each_side_is_what_the_density_says(v: float) -> None:
    model = {"v": v, "a": 1.4, "z": 0.35, "t0": 0.2}
    found = moments(**model)
    sides = ((1, found.mean_upper, found.variance_upper), (0, found.mean_lower, found.variance_lower))
    for side, mean, variance in sides:
        m0, m1, m2 = (
            integrate.quad(
                lambda t, k=k, side=side: t**k * float(pdf(t, side, **model)), 0.2, 15, points=[0.3, 0.6, 1.5]
            )[0]
            for k in range(3)
        )
        assert float(mean) == pytest.approx(m1 / m0, abs=1e-6)
        assert float(variance) == pytest.approx(m2 / m0 - (m1 / m0) ** 2, abs=1e-6)


def test_no_jump_between_series_and_functions() -> None:
    for around in (0.0, 1e-4, 0.3):  # where one takes over from the other, for a = 1
        near = moments(torch.tensor([around - 1e-9, around + 1e-9], dtype=torch.float64), 1.0)
        for x in near:
            assert float(x[0]) == pytest.approx(float(x[1]), abs=1e-8)


@pytest.mark.parametrize("v", [-5000.0, 5000.0])
def test_a_side_that_is_never_reached(v: float) -> None:
    drift = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    found = moments(drift, 2.0)
    assert all(bool(x.isfinite()) for x in found)
    assert found.mean.item() == pytest.approx(1 / 5000) and found.p_upper.item() == (v > 0)
    assert torch.autograd.grad(found.mean, drift)[0].item() == pytest.approx(-1 / (v * abs(v)))


def test_st0_adds_a_uniform_time() -> None:
    plain, spread = moments(1.0, 2.0, t0=0.3), moments(1.0, 2.0, t0=0.3, st0=0.12)
    assert float(spread.mean - plain.mean) == pytest.approx(0.06)
    assert float(spread.variance - plain.variance) == pytest.approx(0.12**2 / 12)


@pytest.mark.parametrize("s", [1.0, 0.1])
@pytest.mark.parametrize("v", [-1.3, 0.2, 2.0])
def test_ez_there_and_back(v: float, s: float) -> None:
    found = ez(*moments(v * s, 1.3 * s, t0=0.3, s=s)[:3], s=s)
    assert [float(x) for x in found] == pytest.approx([v * s, 1.3 * s, 0.3], rel=1e-9)
