"""Many subjects: each by itself, and as draws from a group, with outliers and a deadline in the data."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.decision import Outliers, fit, fit_hierarchical, fit_subjects, simulate
from fastdiff.errors import FastdiffError

pytest.importorskip("scipy.optimize", reason="scipy is not installed")

MEAN = {"v[easy]": 1.8, "v[hard]": 0.7, "a": np.log(1.5), "t0": np.log(0.3)}
SPREAD = {"v[easy]": 0.35, "v[hard]": 0.3, "a": 0.15, "t0": 0.12}
OPTIONS = {"free": ("v", "a", "t0"), "deadline": 2.0}


@pytest.fixture(scope="module")
def experiment():
    """12 subjects, 80 trials of each of two conditions, 5 % outliers, responses until 2 s."""
    rng = np.random.default_rng(5)
    subject, condition, rt, choice, truth = [], [], [], [], []
    for i in range(12):
        x = {name: rng.normal(MEAN[name], SPREAD[name]) for name in MEAN}
        truth.append([x["v[easy]"], x["v[hard]"], np.exp(x["a"]), np.exp(x["t0"])])
        for label in ("easy", "hard"):
            made = simulate(x[f"v[{label}]"], np.exp(x["a"]), t0=np.exp(x["t0"]), n=80, seed=len(rt))
            times, sides = made.rt.numpy().copy(), made.choice.numpy().copy()
            bad = rng.random(80) < 0.05
            times[bad], sides[bad] = rng.uniform(0.05, 5, bad.sum()), rng.integers(0, 2, bad.sum())
            late = times > 2.0
            times[late], sides[late] = np.inf, -1
            rt += times.tolist()
            choice += sides.tolist()
            condition += [label] * 80
            subject += [f"s{i}"] * 80
    return (np.array(rt), np.array(choice), subject, condition), np.array(truth)


@pytest.fixture(scope="module")
def apart(experiment):
    return fit_subjects(*experiment[0], **OPTIONS)


def test_each_subject_is_found(experiment, apart) -> None:
    _, truth = experiment
    found = apart.columns()
    for (values, errors), true in zip(found.values(), truth.T, strict=True):
        z = (values - true) / errors
        assert np.abs(z).max() < 4 and np.abs(z.mean()) < 1.2
    assert list(found) == [("v", "easy"), ("v", "hard"), ("a", ""), ("t0", "")]
    assert len(apart.table()) == 48 and "12 of 12 subjects converged" in apart.summary()


def test_a_subject_is_fitted_as_fit_does(experiment, apart) -> None:
    (rt, choice, subject, condition), _ = experiment
    here = np.array(subject) == "s3"
    outliers = Outliers(**apart.fits[3].outliers)
    one = fit(rt[here], choice[here], np.array(condition)[here], outliers=outliers, **OPTIONS)
    assert one.estimates == apart.fits[3].estimates
    assert outliers.scale == 5.0


def test_the_group_is_found_and_shrinks_its_subjects(experiment, apart) -> None:
    data, truth = experiment
    found = fit_hierarchical(*data, **OPTIONS, iterations=8)
    assert found.names == tuple(MEAN)
    for i, name in enumerate(MEAN):
        assert abs(found.mean[i] - MEAN[name]) < 3.5 * found.mean_errors[i], name
        assert SPREAD[name] / 2.5 < found.deviation[i] < 2 * SPREAD[name], name
    assert found.group["a"] == pytest.approx(np.exp(found.mean[2]))
    # Subjects given the group are nearer to the truth than subjects by themselves.
    together = np.array([list(found.natural(x).values()) for x in found.coordinates])
    alone = np.stack([values for values, _ in apart.columns().values()], 1)
    assert (((together - truth) / truth.std(0)) ** 2).mean() < (((alone - truth) / truth.std(0)) ** 2).mean()


def test_mistakes(experiment) -> None:
    (rt, choice, subject, condition), _ = experiment
    for options, message in (
        ({"p_outlier": 0}, "a hierarchical fit needs p_outlier above 0"),
        ({"subject": ["one"] * len(rt)}, "needs at least two subjects, got 1"),
    ):
        given = {"subject": subject, **OPTIONS, **options}
        with pytest.raises(FastdiffError, match=message):
            fit_hierarchical(rt, choice, condition=condition, **given)
    with pytest.raises(FastdiffError, match="workers must be a whole number"):
        fit_subjects(rt, choice, subject, workers=0)
