"""Profile and bootstrap intervals agree with the standard errors where there are many trials."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.decision import bootstrap, fit, profile, simulate, simulated_trials
from fastdiff.errors import FastdiffError

pytest.importorskip("scipy.optimize", reason="scipy is not installed")


@pytest.fixture(scope="module")
def found():
    v = np.repeat([0.5, 1.5], 250)
    rt, choice = simulate(v, 1.4, t0=0.3, seed=4, deadline=1.6)
    return fit(rt, choice, v, z=0.5, deadline=1.6)


@pytest.fixture(scope="module")
def of_a(found):
    return profile(found, "a")


def test_profiles_are_normal_intervals_for_many_trials(found, of_a) -> None:
    for name, value, error in (
        ("a", found.estimates["a"], found.standard_errors["a"]),
        ("t0", found.estimates["t0"], found.standard_errors["t0"]),
    ):
        interval = of_a if name == "a" else profile(found, name)
        assert interval.low == pytest.approx(value - 1.96 * error, abs=0.25 * error)
        assert interval.high == pytest.approx(value + 1.96 * error, abs=0.25 * error)
    assert profile(found, "a", 0.5).high < of_a.high


def test_the_ends_of_a_profile_lose_the_likelihood_they_say(found, of_a) -> None:
    """2 (l - l0) = 3.841 at the end, with the others fitted again."""
    trials = found.problem.trials
    labels = [found.conditions[c] for c in trials.codes.tolist()]
    choice = np.where(trials.missing, -1, trials.all_upper.long())
    held = fit(trials.all_times, choice, labels, z=0.5, a=of_a.high, deadline=1.6)
    assert 2 * (found.log_likelihood - held.log_likelihood) == pytest.approx(3.8415, abs=0.02)


@pytest.mark.parametrize("kind", ["parametric", "trials"])
def test_bootstrap(found, kind) -> None:
    intervals = bootstrap(found, 24, kind=kind, level=0.68, seed=1)
    assert set(intervals) == set(found.coordinates)
    for name in ("a", "t0"):
        width = intervals[name].high - intervals[name].low
        assert width == pytest.approx(2 * found.standard_errors[name], rel=0.5)
        assert intervals[name].low < found.estimates[name] + found.standard_errors[name]


def test_predicted_trials_are_like_the_data(found) -> None:
    times, choice = simulated_trials(found, 3)
    data = found.problem.trials
    late = times > 1.6
    assert late.mean() == pytest.approx(float(data.missing.double().mean()), abs=0.05)
    assert np.median(times[~late]) == pytest.approx(float(data.times.median()), abs=0.05)
    assert choice[~late].mean() == pytest.approx(float(data.upper.double().mean()), abs=0.06)


def test_mistakes(found) -> None:
    with pytest.raises(FastdiffError, match="no free parameter 'z'; there are: v"):
        profile(found, "z")
    with pytest.raises(FastdiffError, match="at least 2"):
        bootstrap(found, 1)
