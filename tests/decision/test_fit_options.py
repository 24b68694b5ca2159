"""What a fit can be asked for: fixed, bounded, by condition, formulas; outliers, deadlines, starts, quantiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.decision import Outliers, cdf, fit, log_likelihood, log_pdf, simulate, survival
from fastdiff.decision.fit import make_problem
from fastdiff.errors import FastdiffError

pytest.importorskip("scipy.optimize", reason="scipy is not installed")


def _near(found, name: str, truth, deviations: float = 3.5) -> None:
    error = np.array(found.standard_errors[name])
    assert (error > 0).all() and (
        np.abs(np.array(found.estimates[name]) - truth) < deviations * error
    ).all(), name


def test_the_mixture_and_the_deadline_are_what_they_say() -> None:
    """Term by term from pdf and survival."""
    model = {"v": 1.0, "a": 1.5, "z": 0.45, "t0": 0.3}
    rt, choice = np.array([0.2, 0.8, math.nan]), np.array([1, 0, -1])
    p, late = 0.1, 1 - 1.2 / 5
    densities = log_pdf(rt[:2], choice[:2], **model).exp().numpy()
    expected = np.log((1 - p) * densities + p / 10).sum()
    expected += math.log((1 - p) * float(survival(1.2, **model)) + p * late)
    found = log_likelihood(rt, choice, **model, p_outlier=p, deadline=1.2)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    slow = Outliers("exponential", 2.0)
    expected = np.log((1 - p) * densities + p * np.exp(-rt[:2] / 2) / 4).sum()
    assert float(log_likelihood(rt[:2], choice[:2], **model, p_outlier=p, outliers=slow)) == pytest.approx(
        expected
    )


def test_gradient_is_that_of_finite_differences() -> None:
    """Everything at once, with a response before t0 and missing ones."""
    rt = np.array([0.1, 0.5, 0.8, 1.0, 0.7, math.inf, math.inf])
    choice, condition = np.array([1, 0, 1, 1, 0, -1, -1]), list("abababa")
    problem = make_problem(rt, choice, condition, deadline=1.2, by=("v", "a"), sz=0.2,
                           free=("v", "a", "z", "t0", "sv", "st0", "p_outlier"))  # fmt: skip
    x = problem.start()
    value, gradient = problem.value_and_gradient(x)
    assert len(x) == 9 and math.isfinite(value)
    for i in range(len(x)):
        step = np.eye(len(x))[i] * 1e-5
        slope = (problem.value_and_gradient(x + step)[0] - problem.value_and_gradient(x - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_outliers_do_not_pull_the_estimates() -> None:
    """5 % of uniform responses, many of them before t0: estimates hold, and their share is found."""
    rt, choice = (x.numpy().copy() for x in simulate(1.2, 1.4, 0.5, 0.3, n=4000, seed=4))
    rng = np.random.default_rng(1)
    bad = rng.random(4000) < 0.05
    rt[bad], choice[bad] = rng.uniform(0, 5, bad.sum()), rng.integers(0, 2, bad.sum())
    truth = {"v": [1.2], "a": 1.4, "t0": 0.3}
    found = fit(rt, choice)
    for name, value in truth.items():
        _near(found, name, value)
    free = fit(rt, choice, free=("v", "a", "z", "t0", "p_outlier"))
    _near(free, "p_outlier", bad.mean())
    without = fit(rt, choice, p_outlier=0)
    assert without.estimates["t0"] < 0.1 and without.log_likelihood < free.log_likelihood - 100


def test_a_deadline_counts_what_is_missing() -> None:
    """A third of the responses missing: left out, they bias v and a; in the likelihood, they do not."""
    v, a, t0, deadline = 0.6, 2.0, 0.3, 1.1
    rt, choice = simulate(v, a, t0=t0, n=6000, seed=2, deadline=deadline)
    late = choice == -1
    assert float(late.double().mean()) == pytest.approx(float(survival(deadline, v, a, t0=t0)), abs=0.02)
    found = fit(rt, choice, z=0.5, deadline=deadline, p_outlier=0)
    assert found.missing == int(late.sum()) and found.trials == 6000
    for name, value in {"v": [v], "a": a, "t0": t0}.items():
        _near(found, name, value)
    dropped = fit(rt[~late], choice[~late], z=0.5, p_outlier=0)
    assert abs(dropped.estimates["a"] - a) > 10 * dropped.standard_errors["a"]


def test_fixed_bounded_and_by_condition() -> None:
    condition = np.repeat(["speed", "accuracy"], 3000)
    a = np.where(condition == "speed", 1.0, 1.8)
    rt, choice = simulate(1.1, a, 0.5, 0.25, seed=6)
    found = fit(rt, choice, condition, free=("v", "a"), by=("a",), z=0.5, t0=0.25, p_outlier=0)
    _near(found, "a", [1.0, 1.8])
    _near(found, "v", 1.1)
    assert found.estimates["t0"] == 0.25 and set(found.standard_errors) == {"v", "a"}
    assert (
        found.of("accuracy")["a"] == found.estimates["a"][1]
        and found.of("speed")["v"] == found.estimates["v"]
    )
    drift = fit(rt, choice, condition, v=1.1, free=("a", "t0"), by=("a",), p_outlier=0)
    _near(drift, "a", [1.0, 1.8])
    with pytest.warns(UserWarning, match=r"a\[accuracy\] ended at its upper bound"):
        held = fit(rt, choice, condition, by=("a",), bounds={"a": (0.5, 1.5)}, p_outlier=0)
    assert held.estimates["a"][1] == pytest.approx(1.5, abs=1e-3)


def test_formulas() -> None:
    """v ~ 0 + condition + log(freq): coefficients of the truth; a on a log link by a covariate."""
    pytest.importorskip("formulaic", reason="formulaic is not installed")
    rng = np.random.default_rng(3)
    condition, freq = np.repeat(["new", "old"], 3000), rng.uniform(1, 20, 6000)
    v = np.where(condition == "new", -0.8, 0.4) + 0.5 * np.log(freq)
    rt, choice = simulate(v, np.exp(0.3 + 0.02 * freq), 0.5, 0.3, seed=5)
    formulas = ("v ~ 0 + condition + log(freq)", "a ~ freq")
    found = fit(rt, choice, condition, columns={"freq": freq}, formulas=formulas, p_outlier=0)
    truth = {"condition[new]": -0.8, "condition[old]": 0.4, "log(freq)": 0.5}
    for label, value in truth.items():
        assert found.estimates["v"][label] == pytest.approx(
            value, abs=3.5 * found.standard_errors["v"][label]
        )
    assert found.estimates["a"]["freq"] == pytest.approx(0.02, abs=3.5 * found.standard_errors["a"]["freq"])
    assert found.links == {"v": "identity", "a": "log"}
    with pytest.raises(FastdiffError, match="columns are: condition, freq"):
        fit(rt, choice, condition, columns={"freq": freq}, formulas=["v ~ frequency"])
    with pytest.raises(FastdiffError, match="use trial_parameters"):
        found.of("new")


@pytest.mark.parametrize("method", ["chisquare", "gsquare"])
def test_quantile_fits(method) -> None:
    """Find the truth, and the distance is what its formula says of counted cells."""
    v = np.repeat([0.4, 1.5], 3000)
    rt, choice = simulate(v, 1.5, 0.5, 0.3, seed=9, deadline=2.0)
    found = fit(rt, choice, v, z=0.5, deadline=2.0, p_outlier=0, method=method)
    assert found.estimates["v"] == pytest.approx([0.4, 1.5], abs=0.12)
    assert found.estimates["a"] == pytest.approx(1.5, abs=0.05)
    assert found.estimates["t0"] == pytest.approx(0.3, abs=0.01)
    distance = 0.0
    for label in found.conditions:
        here, model = torch.from_numpy(v == float(label)), found.of(label)
        shares = []
        observed = []
        for up in (0, 1):
            times = rt[here & (choice == up)].double()
            cuts = torch.quantile(times, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
            edges = torch.cat([cuts, torch.tensor([2.0])])
            shares += torch.diff(cdf(edges, up, **model), prepend=torch.zeros(1)).tolist()
            observed += torch.histc(torch.bucketize(times, cuts).double(), 6, -0.5, 5.5).tolist()
        shares, observed = [*shares, 1 - sum(shares)], [*observed, float((here & (choice == -1)).sum())]
        for share, count in zip(shares, observed, strict=True):
            expected = 3000 * share
            if method == "chisquare":
                distance += (count - expected) ** 2 / expected
            elif count:
                distance += 2 * count * math.log(count / expected)
    assert found.objective == pytest.approx(distance, rel=1e-6)


def test_starts_and_complaints() -> None:
    rt, choice = simulate(1.0, 1.5, t0=0.3, n=300, seed=1)
    found = fit(rt, choice, starts=4)
    assert len(found.start_values) == 4 and min(found.start_values) == found.objective
    assert "starts          4 of 4 ended at the best" in found.summary()
    with pytest.warns(UserWarning, match="must be in seconds, not milliseconds"):
        fit(rt * 1000, choice)
    with pytest.warns(UserWarning, match="all responses are at the upper boundary"):
        fit(rt, torch.ones_like(choice))
    with pytest.raises(FastdiffError, match="v is neither free nor fixed"):
        fit(rt, choice, free=("a", "t0"))


def test_many_trials_in_parts_have_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    rt, choice = simulate(1.0, 1.5, t0=0.3, n=300, seed=1, deadline=1.0)
    problem = make_problem(rt, choice, deadline=1.0)
    whole = problem.value_and_gradient(problem.start())
    monkeypatch.setattr("fastdiff.decision.problem._AT_ONCE", 70)
    parts = problem.value_and_gradient(problem.start())
    assert parts[0] == pytest.approx(whole[0], rel=1e-13)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-9)
