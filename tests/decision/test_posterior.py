"""The posterior's density against closed forms and differences, and what is made of the sampler's draws."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from fastdiff.decision import default_priors, fit, posterior, sample_posterior, simulate
from fastdiff.decision.fit import make_problem
from fastdiff.decision.hierarchical import group_problem, subject_problems
from fastdiff.decision.log_posterior import LogPosterior, Stacked
from fastdiff.errors import FastdiffError

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


@pytest.fixture(scope="module")
def trials():
    """Two conditions, some responses missing: rt, choice, condition; subjects, as if there were three."""
    v = np.repeat([0.5, 1.5], 60)
    rt, choice = simulate(v, 1.4, t0=0.3, seed=4, deadline=1.2)
    return rt.numpy(), choice.numpy(), v, np.tile(["x", "y", "z"], 40)


def _group(trials, priors=None, **design):
    rt, choice, condition, subject = trials
    whole, labels, codes = group_problem(rt, choice, subject, condition, None, 1.2, design)
    return LogPosterior(whole, priors, Stacked.of(whole, codes, len(labels)))


def _assert_gradient(density: LogPosterior, theta: np.ndarray) -> None:
    value, gradient = density(theta)
    assert len(theta) == density.size and math.isfinite(value)
    for i in range(len(theta)):
        step = np.eye(len(theta))[i] * 1e-5
        slope = (density(theta + step)[0] - density(theta - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-5), i


def test_gradient_of_one_subject(trials) -> None:
    """All parameters, every link, a bound."""
    rt, choice, condition, _ = trials
    problem = make_problem(rt, choice, condition, deadline=1.2, by=("v", "a"), bounds={"t0": (0.1, 0.5)},
                           free=("v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier"))  # fmt: skip
    _assert_gradient(LogPosterior(problem), problem.start())


def test_gradient_of_a_group(trials) -> None:
    density = _group(trials, free=("v", "a", "z", "t0", "sv"))
    assert density.own_names == ["v", "a", "z", "t0"] and density.size == 6 + 5 + 3 * 5
    theta = np.random.default_rng(0).normal(-0.5, 0.1, density.size)
    _assert_gradient(density, theta)
    density.centring = torch.linspace(0, 1, 5, dtype=torch.float64)
    _assert_gradient(density, theta)


def test_one_subjects_density_is_likelihood_times_priors(trials) -> None:
    """Term by term with SciPy's distributions and the links' slopes."""
    rt, choice, condition, _ = trials
    free = ("v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier")
    problem = make_problem(rt, choice, condition, deadline=1.2, free=free)
    density = LogPosterior(problem)

    def expected(x: np.ndarray) -> float:
        v, (log_a, logit_z, log_t0, log_sv, logit_sz, log_st0, logit_p) = x[:2], x[2:]
        share = 1 / (1 + np.exp(-x))
        total = -problem.value_and_gradient(x)[0] + stats.norm(0, 3).logpdf(v).sum()
        total += stats.gamma(4, scale=1.5 / 4).logpdf(np.exp(log_a)) + log_a
        total += stats.norm(0, 0.5).logpdf(logit_z)
        total += stats.gamma(4, scale=0.4 / 4).logpdf(np.exp(log_t0)) + log_t0
        total += stats.halfnorm(0, 2).logpdf(np.exp(log_sv)) + log_sv
        total += stats.beta(1, 3).logpdf(share[6]) + np.log(share[6] * (1 - share[6]))
        total += stats.halfnorm(0, 0.3).logpdf(np.exp(log_st0)) + log_st0
        total += stats.beta(1, 15).logpdf(share[8] / 2) + np.log(share[8] * (1 - share[8]))
        assert (logit_sz, logit_p) == (x[6], x[8])
        return total

    assert default_priors()["a"].mean == 1.5 and default_priors(0.1)["a"].stddev == pytest.approx(0.075)
    one, other = problem.start(), problem.start() + np.linspace(-0.2, 0.3, 9)
    assert density(one)[0] - density(other)[0] == pytest.approx(expected(one) - expected(other), rel=1e-10)


def test_a_groups_density_is_its_subjects_and_the_normal_between_them(trials) -> None:
    rt, choice, condition, subject = trials
    design = {"free": ("v", "a", "t0", "p_outlier")}
    density = _group(trials, **design)
    problems = subject_problems(rt, choice, subject, condition, None, 1.2, design)
    single = LogPosterior(make_problem(rt, choice, condition, deadline=1.2, **design))
    theta = np.random.default_rng(0).normal(-0.5, 0.2, density.size)
    mu, log_sigma, x = theta[:5], theta[5:9], theta[9:].reshape(3, 4)

    expected = float(single.log_prior(torch.from_numpy(mu)))
    expected += stats.norm(mu[:4], np.exp(log_sigma)).logpdf(x).sum() + 0.5 * 12 * math.log(2 * math.pi)
    expected += stats.halfnorm(0, [2, 2, 0.5, 0.5]).logpdf(np.exp(log_sigma)).sum() + log_sigma.sum()
    for one, coordinates in zip(problems.values(), x, strict=True):
        expected -= one.value_and_gradient(np.append(coordinates, mu[4]))[0]  # p_outlier is shared
    assert density(theta)[0] == pytest.approx(expected, rel=1e-10)


def test_centring_is_a_change_of_variables(trials) -> None:
    """The density of y is that of x times dx/dy, here by differences, whatever the centring."""
    design = {"free": ("v", "a", "t0")}
    plain, moved = _group(trials, **design), _group(trials, **design)
    moved.centring = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    rng = np.random.default_rng(1)
    for _ in range(2):
        theta = rng.normal(-0.4, 0.2, moved.size)

        def centred(y: torch.Tensor) -> torch.Tensor:
            mu, log_sigma, x = moved.split(y)
            return torch.cat([mu, log_sigma, x[:, moved.own].flatten()])

        jacobian = torch.autograd.functional.jacobian(centred, torch.from_numpy(theta))
        expected = plain(centred(torch.from_numpy(theta)).numpy())[0] + float(
            torch.linalg.slogdet(jacobian)[1]
        )
        assert moved(theta)[0] == pytest.approx(expected, rel=1e-10)


def test_priors_by_name(trials) -> None:
    pytest.importorskip("formulaic", reason="formulaic is not installed")
    rt, choice, condition, _ = trials
    problem = make_problem(rt, choice, condition, deadline=1.2, columns={"x": np.linspace(0, 50, 120)},
                           free=("a", "t0"), formulas=["v ~ 1 + x"])  # fmt: skip
    start = problem.start()
    zero, one = np.array([0, 0, *start[2:]]), np.array([3.0, 3.0 / 50, *start[2:]])

    def prior(x: np.ndarray, **priors) -> float:
        return float(LogPosterior(problem, priors).log_prior(torch.from_numpy(x)))

    # by default one deviation each: 3, over the column's largest value
    assert prior(zero) - prior(one) == pytest.approx(1.0)
    assert prior(zero, v=Normal(0.0, 1.5)) - prior(one, v=Normal(0.0, 1.5)) == pytest.approx(2 + 2 * 0.02**2)
    by_coordinate = {"v:x": Normal(0.0, 0.03)}
    assert prior(zero, **by_coordinate) - prior(one, **by_coordinate) == pytest.approx(0.5 + 2.0)
    with pytest.raises(
        FastdiffError, match="no free parameter 'z' for a prior; there are: a, t0, v, v:Intercept"
    ):
        LogPosterior(problem, {"z": Normal(0.0, 1.0)})
    with pytest.raises(FastdiffError, match="the prior of a must be a distribution"):
        LogPosterior(problem, {"a": 1.0})
    wide, narrow = (_group(trials, {"a_std": Normal(0.0, s)}, free=("v", "a", "t0")) for s in (1.0, 0.5))
    theta = torch.zeros(wide.size, dtype=torch.float64)
    assert float(wide.log_prior(theta) - narrow.log_prior(theta)) == pytest.approx(1.5 - math.log(2))


def test_what_subjects_may_share(trials) -> None:
    problem = make_problem(*trials[:3], deadline=1.2, free=("v", "a"))
    stacked = Stacked.of(problem, torch.arange(120) % 3, 3)
    with pytest.raises(FastdiffError, match="shared does not know 'w'"):
        LogPosterior(problem, None, stacked, ("w",))
    with pytest.raises(
        FastdiffError, match="all free parameters are shared by the subjects; leave out subject"
    ):
        LogPosterior(problem, None, stacked, ("v", "a"))
    assert LogPosterior(problem, None, stacked, ("v",)).own_names == ["a"]


def test_each_trials_likelihood_and_simulated_experiments(trials) -> None:
    rt, choice, condition, _ = trials
    problem = make_problem(rt, choice, condition, deadline=1.2)
    natural = problem.natural(torch.from_numpy(problem.start()))
    each = problem.pointwise(natural)
    assert float(each.sum()) == pytest.approx(-problem.value_and_gradient(problem.start())[0], rel=1e-12)
    assert len(set(each[problem.trials.missing].tolist())) == 2  # one for each condition
    times, sides = problem.simulate(natural, np.random.default_rng(0))
    assert times.shape == sides.shape == (120,) and set(sides) == {0, 1}


def _stand_in(monkeypatch: pytest.MonkeyPatch, shift: float = 0.0, diverging: int = 0) -> None:
    """Independent draws from Laplace's approximation in place of the sampler's."""

    def draws(function, size, progress, *, chains, draws, tune, seed, target_accept):
        value, gradient = function(np.zeros(size))
        assert math.isfinite(value) and gradient.shape == (size,)
        u = np.random.default_rng(seed).normal(size=(chains, draws, size))
        u += shift * np.arange(chains)[:, None, None]
        bad = np.zeros((chains, draws), dtype=bool)
        bad[0, :diverging] = True
        return u, {"diverging": bad, "lp": -0.5 * (u**2).sum(-1)}

    monkeypatch.setattr(posterior, "_nuts", draws)


def test_laplaces_approximation_makes_the_density_a_standard_normal(trials, monkeypatch) -> None:
    """Where the sampler starts from: the density in its coordinates, near the centre."""
    rt, choice, condition, _ = trials
    seen = {}

    def capture(function, size, progress, **settings):
        seen["curvature"] = posterior.curvature(function, np.zeros(size))
        seen["gradient"] = function(np.zeros(size))[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(posterior, "_nuts", capture)
    monkeypatch.setattr(posterior, "_arviz", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        sample_posterior(rt, choice, condition, deadline=1.2)
    np.testing.assert_allclose(seen["gradient"], 0, atol=2e-2)
    np.testing.assert_allclose(seen["curvature"], -np.eye(5), atol=1e-2)


def test_one_subjects_inference_data(trials, monkeypatch) -> None:
    az = pytest.importorskip("arviz", reason="arviz is not installed")
    _stand_in(monkeypatch)
    rt, choice, condition, _ = trials
    found = sample_posterior(rt, choice, condition, deadline=1.2, draws=200)
    sizes = {name: dict(value.sizes) for name, value in found.data.posterior.items()}
    assert sizes == {"v": {"chain": 4, "draw": 200, "condition": 2},
                     **dict.fromkeys(("a", "z", "t0"), {"chain": 4, "draw": 200})}  # fmt: skip
    assert found.data.posterior["condition"].values.tolist() == ["0.5", "1.5"]
    assert dict(found.data.log_likelihood["response"].sizes) == {"chain": 4, "draw": 200, "trial": 120}
    predicted, seen = found.data.posterior_predictive, found.data.observed_data
    assert predicted["rt"].shape == predicted["choice"].shape == (4, 25, 120)
    assert float(predicted["rt"].max()) <= 1.2 and np.array_equal(
        predicted["choice"] == -1, predicted["rt"].isnull()
    )
    assert abs(float((predicted["choice"] == -1).mean() - (seen["choice"] == -1).mean())) < 0.08

    best = fit(rt, choice, condition, deadline=1.2)
    table = found.table()
    for name, value, error in (("a", best.estimates["a"], best.standard_errors["a"]),
                               ("v[1.5]", best.estimates["v"][1], best.standard_errors["v"][1])):  # fmt: skip
        assert table.loc[name, "mean"] == pytest.approx(value, abs=0.5 * error)
        assert table.loc[name, "sd"] == pytest.approx(error, rel=0.25)
    # A model with K well identified parameters has about K effective ones.
    assert found.loo.p_loo == pytest.approx(5, abs=1.5) and found.waic.p_waic == pytest.approx(5, abs=1.5)
    assert found.loo.elpd_loo == pytest.approx(best.log_likelihood - 5, abs=2.5)
    assert found.warnings == [] and "elpd_loo" in found.summary()
    compared = az.compare({"one": found.data, "same": found.data}, ic="waic")
    assert compared["elpd_diff"].abs().max() == 0
    known = found.as_dict()
    assert known["chains"] == 4 and known["draws"] == 200 and known["loo"]["p"] == float(found.loo.p_loo)


def test_a_groups_inference_data(trials, monkeypatch) -> None:
    pytest.importorskip("arviz", reason="arviz is not installed")
    _stand_in(monkeypatch)
    rt, choice, condition, subject = trials
    found = sample_posterior(rt, choice, condition, subject=subject, deadline=1.2, free=("v", "a", "t0", "p_outlier"),
                             draws=100, log_likelihood=False)  # fmt: skip
    assert found.names == ["v", "v_std", "a", "a_std", "t0", "t0_std", "p_outlier"]
    assert found.data.posterior["v_subject"].dims == ("chain", "draw", "subject", "condition")
    assert found.data.posterior["subject"].values.tolist() == ["x", "y", "z"] == list(found.subjects)
    assert float(found.data.posterior["t0_subject"].mean()) == pytest.approx(0.3, abs=0.03)
    with pytest.raises(FastdiffError, match="loo needs the trials' log-likelihoods"):
        _ = found.loo


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_formulas_have_their_coefficients(trials, monkeypatch) -> None:
    pytest.importorskip("arviz", reason="arviz is not installed")
    pytest.importorskip("formulaic", reason="formulaic is not installed")
    _stand_in(monkeypatch)
    rt, choice, condition, _ = trials
    found = sample_posterior(rt, choice, condition, deadline=1.2, columns={"x": np.linspace(0, 1, 120)}, sz=0.2,
                             formulas=["v ~ x"], draws=50)  # fmt: skip
    assert found.data.posterior["v"].dims == ("chain", "draw", "v_term")
    assert found.data.posterior["v_term"].values.tolist() == ["Intercept", "x"]
    assert float(found.data.posterior["z"].min()) > 0 and found.links["v"] == "identity"


def test_what_speaks_against_the_draws(trials, monkeypatch) -> None:
    pytest.importorskip("arviz", reason="arviz is not installed")
    _stand_in(monkeypatch, shift=0.4, diverging=3)
    rt, choice, condition, _ = trials
    with pytest.warns(UserWarning, match="r_hat is above 1.01 for v"):
        found = sample_posterior(rt, choice, condition, deadline=1.2, draws=40)
    assert any("3 divergences: raise target_accept" in text for text in found.warnings)
    assert any("effective sample size" in text for text in found.warnings)


def test_the_sampler_draws_a_normal_distribution() -> None:
    """The same draws for the same seed; an error inside the density comes out."""
    pytest.importorskip("nutpie", reason="nutpie is not installed")
    settings = {"chains": 2, "draws": 500, "tune": 200, "target_accept": 0.8}
    counted = []
    u, stats_ = posterior._nuts(
        lambda u: (-0.5 * float(u @ u), -u), 3, lambda *n: counted.append(n), seed=1, **settings
    )
    assert u.shape == (2, 500, 3) and len(counted) == 1400 and counted[-1][1] == 1400
    assert np.abs(u.mean((0, 1))).max() < 0.2 and u.std((0, 1)) == pytest.approx(1.0, abs=0.15)
    assert set(stats_) >= {"diverging", "lp", "energy"} and stats_["lp"].shape == (2, 500)
    again, _ = posterior._nuts(lambda u: (-0.5 * float(u @ u), -u), 3, None, seed=1, **settings)
    assert np.array_equal(again, u)

    for calls in (0, 300):
        left = iter(range(calls))

        def broken(u: np.ndarray, left=left):
            if next(left, None) is None:
                raise FastdiffError("what is wrong")
            return -0.5 * float(u @ u), -u

        with pytest.raises(FastdiffError, match="what is wrong"):
            posterior._nuts(broken, 3, None, seed=1, **settings)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_sampler_finds_the_parameters() -> None:
    pytest.importorskip("arviz", reason="arviz is not installed")
    pytest.importorskip("nutpie", reason="nutpie is not installed")
    rt, choice = simulate(1.2, 1.4, t0=0.3, n=80, seed=2)
    found = sample_posterior(rt, choice, z=0.5, chains=2, draws=50, tune=50, seed=1)
    table = found.table()
    for name, truth in {"v": 1.2, "a": 1.4, "t0": 0.3}.items():
        assert abs(table.loc[name, "mean"] - truth) < 4 * table.loc[name, "sd"]
    assert found.divergences <= 2 and table["r_hat"].max() < 1.1


def test_without_the_libraries(trials, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(FastdiffError, match=r"need ArviZ and nutpie: pip install 'fastdiff\[posterior\]'"):
        sample_posterior(*trials[:3], deadline=1.2)
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.raises(FastdiffError, match=r"need nutpie: pip install 'fastdiff\[posterior\]'"):
        posterior._nuts(lambda u: (0.0, u), 2, None, chains=1, draws=4, tune=1, seed=0, target_accept=0.8)


@pytest.mark.parametrize("given", [{"chains": 0}, {"draws": 3}, {"tune": 0}, {"target_accept": 1.0}], ids=str)
def test_bad_settings(given) -> None:
    (name,) = given
    with pytest.raises(FastdiffError, match=f"{name} must be"):
        sample_posterior([0.5], [1], **given)
