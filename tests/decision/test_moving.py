"""Closing boundaries, leak, drift in time: against the closed form, PyDDM's solver, and what must be conserved."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdiff.decision import Closing, moving_density, moving_pdf, pdf, simulate
from fastdiff.errors import FastdiffError

pytest.importorskip("scipy.linalg", reason="scipy is not installed")


def test_boundaries_that_stand_still_have_the_closed_form() -> None:
    for v, a, z, s in ((1.2, 1.5, 0.4, 1.0), (-0.8, 0.14, 0.6, 0.1)):
        found = moving_density(v, a, z, s, t_max=3.0, steps=300)
        for side, values in enumerate((found.lower, found.upper)):
            np.testing.assert_allclose(values, pdf(found.t, side, v, a, z, s=s).numpy(), atol=1e-5)


def test_everything_at_once_is_what_pyddm_says() -> None:
    """gddm(drift=0.5 + t - 0.7 x, bound=0.8 exp(-t / 1.5), noise=1), PyDDM 0.9.0, extrapolated to dx = 0.

    At dx = 0.002: 1.42643, 0.91967, 0.09073 (correct), 0.56575, 0.30249, 0.02646 (error); at 0.001: 1.42940, 0.91898,
    0.09013, 0.56675, 0.30211, 0.02628.
    """
    found = moving_density(
        lambda t: 0.5 + t, 1.6, closing=Closing("exponential", 1.5), leak=0.7, t_max=4.0, steps=400
    )
    at = [0.2, 0.5, 1.0]
    np.testing.assert_allclose(np.interp(at, found.t, found.upper), [1.43237, 0.91829, 0.08953], atol=5e-4)
    np.testing.assert_allclose(np.interp(at, found.t, found.lower), [0.56775, 0.30173, 0.02610], atol=5e-4)


CLOSINGS = {
    "linear": Closing("linear", 2.0),
    "exponential": Closing("exponential", 1.0),
    "weibull": Closing("weibull", 1.2, shape=3.0, share=0.9),
}


@pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS)
def test_everyone_decides_and_sides_mirror(closing) -> None:
    found = moving_density(0.8, 1.6, 0.35, closing=closing, leak=-0.3, t_max=6.0, steps=500)
    assert np.trapezoid(found.lower + found.upper, found.t) == pytest.approx(1, abs=1e-3)
    mirrored = moving_density(-0.8, 1.6, 0.65, closing=closing, leak=-0.3, t_max=6.0, steps=500)
    np.testing.assert_allclose(mirrored.lower, found.upper, atol=1e-12)


@pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS)
def test_speeds_are_slopes(closing) -> None:
    t = np.linspace(0.1, 1.5, 30)
    slope = (closing.at(t + 1e-6)[0] - closing.at(t - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(closing.at(t)[1], slope, rtol=1e-6, atol=1e-9)


def test_response_times_and_mistakes() -> None:
    values = moving_pdf([0.1, 0.8, 0.8], [1, 1, 0], 1.0, 1.5, t0=0.3, t_max=2.0, steps=400)
    expected = pdf([0.8, 0.8], [1, 0], 1.0, 1.5, t0=0.3).numpy()
    assert values[0] == 0
    np.testing.assert_allclose(values[1:], expected, atol=1e-4)
    with pytest.raises(FastdiffError, match="boundaries close linear, exponential or weibull, got 'steps'"):
        Closing("steps")
    with pytest.raises(FastdiffError, match="z between 0 and 1"):
        moving_density(1.0, 1.0, 1.0)


SIMULATED = {
    "linear": {"v": 1.0, "closing": Closing("linear", 2.0)},
    "exponential": {"v": 1.0, "closing": Closing("exponential", 1.0)},
    "weibull": {"v": -0.5, "closing": Closing("weibull", 1.2, shape=3.0, share=0.8)},
    "leak": {"v": 1.0, "leak": 1.0},
    "excitation": {"v": 0.5, "leak": -1.0},
    "drift in time": {"v": lambda t: 2 * np.sin(3 * t)},
    "all": {"v": lambda t: 2 * np.exp(-t), "closing": Closing("exponential", 1.0), "leak": 0.5},
}


@pytest.mark.parametrize("model", SIMULATED.values(), ids=SIMULATED)
def test_simulated_trials_have_the_density(model) -> None:
    """Both boundaries' probabilities and nine quantiles of the times, within 4.5 standard errors, at dt = 0.01."""
    n, t_max = 60_000, 5.0
    found = moving_density(**model, a=2.0, z=0.4, t_max=t_max, steps=500)
    rt, choice = (x.numpy() for x in simulate(**model, a=2.0, z=0.4, n=n, seed=5, dt=0.01, t_max=t_max))
    for side, density in ((0, found.lower), (1, found.upper)):
        steps = (density[1:] + density[:-1]) / 2 * np.diff(found.t)
        exact = np.concatenate([[0], np.cumsum(steps)])
        for quantile in np.linspace(0.1, 1, 10):
            at = float(np.interp(quantile * exact[-1], exact, found.t))
            share = float(np.interp(at, found.t, exact))
            here = float(((choice == side) & (rt <= at)).mean())
            assert abs(here - share) < 4.5 * math.sqrt(share * (1 - share) / n) + 5e-4, (side, quantile)


def test_simulation_of_moving_walks() -> None:
    """In units of the noise, with the other variabilities, to the point where the boundaries meet, and with paths."""
    closing = Closing("linear", 0.7)
    scaled = simulate(0.1, 0.2, 0.4, s=0.1, n=4000, seed=2, closing=closing, dt=0.005)
    plain = simulate(1.0, 2.0, 0.4, n=4000, seed=2, closing=closing, dt=0.005)
    assert float((scaled.choice == plain.choice).float().mean()) > 0.999
    assert bool((plain.choice >= 0).all()) and float(plain.rt.max()) <= 0.7 + 1e-6
    wide = simulate(1.0, 2.0, n=4000, sv=1.0, sz=0.3, st0=0.2, t0=0.3, seed=2, closing=closing, dt=0.005)
    assert float(wide.rt.min()) > 0.3 and float(wide.rt.max()) < 1.2 + 1e-6
    walked = simulate(1.0, 2.0, n=5, seed=2, closing=closing, dt=0.01, return_paths=True)
    inside = walked.paths.numpy()
    assert inside.shape[1] <= 71 and np.nanmin(inside) >= 0 and np.nanmax(inside) <= 2
    with pytest.raises(FastdiffError, match="give t_max"):
        simulate(1.0, 2.0, n=5, leak=0.5)
    with pytest.raises(FastdiffError, match="give 'bridge' or 'euler'"):
        simulate(1.0, 2.0, n=5, leak=0.5, t_max=1.0, method="exact")
    with pytest.raises(FastdiffError, match="finite at all times"):
        simulate(lambda t: 1 / (t - 0.505), 2.0, n=5, t_max=1.0, dt=0.01)
