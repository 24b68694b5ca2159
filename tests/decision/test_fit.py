"""Maximum likelihood finds the parameters that made the data."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from fastdiff.decision import fit, log_likelihood, simulate
from fastdiff.errors import FastdiffError

pytest.importorskip("scipy.optimize", reason="scipy is not installed")


def test_recovers_parameters_within_their_standard_errors() -> None:
    v = np.repeat([0.3, 1.0, 2.0], 3000)
    rt, choice = simulate(v, 1.5, 0.45, 0.25, seed=8)
    seen = []
    found = fit(rt, choice, v, p_outlier=0, progress=lambda i, value: seen.append((i, value)))
    assert found.converged and found.conditions == ("0.3", "1.0", "2.0") and found.trials == 9000
    for name, truth in {"v": [0.3, 1.0, 2.0], "a": 1.5, "z": 0.45, "t0": 0.25}.items():
        error = np.array(found.standard_errors[name])
        assert (error > 0).all() and (error < 0.06).all()
        assert (np.abs(np.array(found.estimates[name]) - truth) < 3.5 * error).all(), name
    truth = float(log_likelihood(rt, choice, v, 1.5, 0.45, 0.25))
    assert truth < found.log_likelihood < truth + 15
    assert seen and seen[-1][1] == pytest.approx(found.log_likelihood)
    assert found.of("1.0")["v"] == found.estimates["v"][1]
    assert found.aic == pytest.approx(2 * 6 - 2 * found.log_likelihood)
    assert found.bic == pytest.approx(6 * math.log(9000) - 2 * found.log_likelihood)


def test_recovers_the_variability_of_drift() -> None:
    v = np.repeat([0.5, 2.5], 4000)
    rt, choice = simulate(v, 1.4, 0.5, 0.2, sv=1.0, seed=3)
    found = fit(rt, choice, v, free=("v", "a", "t0", "sv"), p_outlier=0)
    assert found.estimates["sv"] == pytest.approx(1.0, abs=3.5 * found.standard_errors["sv"])
    assert found.estimates["z"] == 0.5 and "z" not in found.standard_errors


def test_recovers_both_ranges() -> None:
    rt, choice = simulate(1.2, 1.4, 0.5, 0.3, sz=0.4, st0=0.2, n=300, seed=3)
    found = fit(rt, choice, free=("v", "a", "t0", "st0"), sz=0.4, p_outlier=0)
    assert found.estimates["st0"] == pytest.approx(0.2, abs=3.5 * found.standard_errors["st0"])
    assert found.estimates["t0"] == pytest.approx(0.3, abs=3.5 * found.standard_errors["t0"])


def test_noise_sets_the_unit() -> None:
    rt, choice = simulate(1.0, 1.5, t0=0.2, n=500, seed=1)
    one, tenth = fit(rt, choice), fit(rt, choice, s=0.1)
    assert tenth.estimates["a"] == pytest.approx(one.estimates["a"] / 10, rel=1e-3)
    assert tenth.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-3)


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_one_sided_data_still_has_an_answer(choice: int) -> None:
    rt = np.linspace(0.4, 1.2, 30)
    found = fit(rt, np.full(30, choice), free=("v", "a", "t0"))
    assert math.isfinite(found.log_likelihood)
    assert (found.estimates["v"][0] > 0) == (choice == 1)


BAD = {
    "empty": (([], []), {}, "there are no trials: rt is empty"),
    "nan": (([0.5, math.nan], [1, 0]), {}, "rt must be finite, got nan"),
    "not-positive": (([0.5, -0.1], [1, 0]), {}, "rt must be positive seconds, got -0.1"),
    "timeouts": (
        ([0.5, 0.6], [1, -1]),
        {},
        "choice must be 1 (upper) or 0 (lower); leave timeouts out, got -1",
    ),
    "lengths": (([0.5, 0.6], [1]), {}, "rt and choice must have one shape"),
    "conditions": (([0.5, 0.6], [1, 0], ["a"]), {}, "condition must have one label for each trial: 2, got 1"),
    "unknown-free": (([0.5], [1]), {"free": ("v", "a", "t0", "w")}, "fit does not know 'w'"),
    "nothing-free": (([0.5], [1]), {"free": ()}, "nothing is free"),
    "free-and-fixed": (
        ([0.5], [1]),
        {"free": ("a",), "a": 1},
        "a is both free and fixed at 1; give one of the two",
    ),
    "late": (
        ([0.5, 2.0], [1, 0]),
        {"deadline": 1.5},
        "a response came 2 s after the stimulus, beyond the deadline",
    ),
    "bounds": (
        ([0.5], [1]),
        {"bounds": {"z": (0.2, 1.4)}},
        "bounds of z must lie between 0 and 1, got 0.2 to 1.4",
    ),
    "link": (
        ([0.5], [1]),
        {"links": {"a": "probit"}},
        "the link of a must be identity, log or logit, got 'probit'",
    ),
    "outliers": (
        ([0.5], [1]),
        {"outliers": "normal"},
        "outliers must be 'uniform' or 'exponential', got 'normal'",
    ),
    "keyword": (([0.5], [1]), {"drift": 1}, "fit does not know 'drift'"),
    "formula": (([0.5], [1]), {"formulas": ["drift ~ 1"]}, "a formula is 'PARAMETER ~ TERMS'"),
    "starts": (([0.5], [1]), {"starts": 0}, "starts must be a whole number of at least 1, got 0"),
}


@pytest.mark.parametrize(("data", "options", "message"), BAD.values(), ids=BAD)
def test_bad_data(data, options, message: str) -> None:
    with pytest.raises(FastdiffError) as raised:
        fit(*data, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(FastdiffError, match=r"fitting needs SciPy: pip install 'fastdiff\[decision\]'"):
        fit([0.5], [1])
