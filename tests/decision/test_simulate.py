"""Simulated trials against the closed forms: the exact method and the bridge are right, Euler is late."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.decision import cdf, moments, simulate

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")

N = 300_000
MODELS = {
    "plain": {"v": 1.0, "a": 2.0},
    "biased": {"v": 0.5, "a": 1.5, "z": 0.4, "t0": 0.25},
    "ratcliff": {"v": 0.3, "a": 0.12, "s": 0.1},
    "fast": {"v": -6.0, "a": 2.5, "z": 0.7},
    "no-drift": {"v": 0.0, "a": 1.0, "z": 0.1},
    "variable": {"v": 1.0, "a": 1.5, "z": 0.45, "t0": 0.2, "sv": 0.8, "sz": 0.3, "st0": 0.15},
}
UNBIASED = [("exact", 0.001), ("bridge", 0.01)]


def _standard_errors(rt: torch.Tensor) -> tuple[float, float]:
    """Standard errors of the mean and of the variance."""
    x = rt.double() - rt.double().mean()
    n = len(x)
    return float(x.std()) / math.sqrt(n), math.sqrt(float((x**4).mean() - (x**2).mean() ** 2) / n)


@pytest.mark.parametrize(("method", "dt"), UNBIASED, ids=["exact", "bridge"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_accuracy_mean_and_variance(model: dict[str, float], method, dt: float) -> None:
    if "s" in model or abs(model["v"]) > 3:
        dt /= 10  # these are over within hundredths of a second
    rt, choice = simulate(**model, n=N, seed=5, method=method, dt=dt)
    true = moments(**model)
    mean_error, variance_error = _standard_errors(rt)
    p = float(true.p_upper)
    assert float((choice == 1).double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / N))
    assert float(rt.double().mean()) == pytest.approx(float(true.mean), abs=4 * mean_error)
    assert float(rt.double().var()) == pytest.approx(float(true.variance), abs=4 * variance_error)


def _distribution(model: dict[str, float], side: int):
    """The law of one side's times, interpolated to 1e-4: quadratures over three things are slow."""
    grid = model.get("t0", 0) + np.concatenate(
        [np.linspace(0, 1, 200), np.linspace(1.02, 3, 100), [4, 6, 9, 50]]
    )
    values = cdf(grid, side, **model).numpy()
    return lambda t: np.interp(t, grid, values / values[-1])


@pytest.mark.parametrize("name", ["plain", "biased", "variable"])
def test_kolmogorov_smirnov(name: str) -> None:
    for side in (0, 1):
        law = _distribution(MODELS[name], side)
        for method, dt in UNBIASED:
            rt, choice = simulate(**MODELS[name], n=60_000, seed=13, method=method, dt=dt)
            assert stats.kstest(rt[choice == side].numpy(), law).pvalue > 0.01, method


def test_euler_is_late_by_the_known_amount() -> None:
    """As if both boundaries were 0.5826 s sqrt(dt) further out (Broadie, Glasserman & Kou 1997)."""
    dt = 0.001
    rt, choice = simulate(1.0, 2.0, n=N, seed=5, method="euler", dt=dt)
    error = _standard_errors(rt)[0]
    true, shift = moments(1.0, 2.0), 0.5826 * math.sqrt(dt)
    assert float(rt.double().mean()) > float(true.mean) + 10 * error
    shifted = moments(1.0, 2.0 + 2 * shift)
    assert float(rt.double().mean()) == pytest.approx(float(shifted.mean), abs=4 * error)
    assert float((choice == 1).double().mean()) == pytest.approx(float(shifted.p_upper), abs=0.003)
    side = rt[choice == 1].numpy()
    assert stats.kstest(side, _distribution(MODELS["plain"], 1)).pvalue < 1e-6


@pytest.mark.parametrize(("method", "dt"), [("euler", 0.002), ("bridge", 0.005)], ids=["euler", "bridge"])
def test_strides_change_no_distribution(method, dt: float) -> None:
    both = [
        simulate(0.7, 1.6, 0.4, n=60_000, seed=seed, method=method, dt=dt, every_step=every_step)
        for seed, every_step in ((1, True), (2, False))
    ]
    signed = [np.where(choice == 1, rt, -rt) for rt, choice in both]
    assert stats.ks_2samp(*signed).pvalue > 0.01


@pytest.mark.parametrize("method", ["exact", "bridge", "euler"])
def test_deadline(method) -> None:
    rt, choice = simulate(0.5, 2.0, t0=0.2, n=100_000, seed=3, method=method, dt=0.01, t_max=0.75)
    late = choice == -1
    assert rt[late].isinf().all() and float(rt[~late].max()) <= 0.95 + 1e-6
    wide = 2.0 + (2 * 0.5826 * 0.1 if method == "euler" else 0)
    decided = float(cdf(0.95, [0, 1], 0.5, wide, t0=0.2).sum())
    assert float(late.double().mean()) == pytest.approx(
        1 - decided, abs=0.012 if method == "euler" else 0.006
    )


@pytest.mark.parametrize("method", ["exact", "bridge", "euler"])
def test_a_trial_depends_on_nothing_but_its_number_and_parameters(method) -> None:
    v = torch.linspace(-2, 2, 5000)
    options = {"a": 1.5, "sv": 0.3, "sz": 0.1, "st0": 0.1, "seed": 9, "method": method, "dt": 0.005}
    rt, choice = simulate(v, **options)
    few = simulate(v[:37], **options)
    assert torch.equal(few.rt, rt[:37]) and torch.equal(few.choice, choice[:37])
    chunked = simulate(v, **options, progress=True)
    assert torch.equal(chunked.rt, rt)


@pytest.mark.parametrize("method", ["bridge", "euler"])
def test_paths(method) -> None:
    rt, choice, paths = simulate(
        0.8, 1.2, 0.4, t0=0.3, sz=0.2, n=40, seed=2, method=method, dt=0.005, t_max=1.0, return_paths=True
    )
    again = simulate(
        0.8, 1.2, 0.4, t0=0.3, sz=0.2, n=40, seed=2, method=method, dt=0.005, t_max=1.0, every_step=True
    )
    torch.testing.assert_close(again.rt, rt, rtol=0, atol=1e-5)
    assert torch.equal(again.choice, choice)
    assert paths.shape == (40, 201) or paths.shape[1] < 201
    assert ((paths[:, 0] > 0.36 - 1e-6) & (paths[:, 0] < 0.6 + 1e-6)).all()
    for path, side, time in zip(paths, choice.tolist(), rt.tolist(), strict=True):
        known = path[~path.isnan()]
        inside = known[:-1]
        assert ((inside > 0) & (inside < 1.2)).all() and path[: len(known)].isfinite().all()
        if side >= 0:
            assert (known[-1] >= 1.2 - 1e-6) == (side == 1)
            assert (len(known) - 2) * 0.005 <= time - 0.3 + 1e-5 <= (len(known) - 1) * 0.005 + 2e-5
