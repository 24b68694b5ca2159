"""The linear ballistic accumulator against integrals at 30 digits, exact identities and another simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.decision import lba
from fastdiff.errors import FastdiffError

# rt, response, A, b, t0, mean_v, sd_v, posdrift; log-density by mpmath at 30 digits, as the integral over the drift
# of drift / A times its normal density (winner) and of the start left over (losers), without any of the closed forms.
VALUES = [
    (0.8, 1, 0.5, 1.0, 0.2, (1.2, 1.0), (1.0, 1.0), True, -0.7490960443524937),
    (0.8, 2, 0.5, 1.0, 0.2, (1.2, 1.0), (1.0, 1.0), True, -0.8649998029712063),
    (0.8, 1, 0.5, 1.0, 0.2, (1.2, 1.0), (1.0, 1.0), False, -0.7345646025763068),
    (1.5, 1, 0.5, 1.0, 0.5, (1.2, 1.0), (0.2, 0.2), True, -3.099840386738301),
    (0.45, 2, 0.8, 1.0, 0.3, (3.0, 2.0, 0.5), (1.0, 0.7, 1.2), True, 0.4021330533703362),
    (30.0, 1, 0.5, 1.0, 0.2, (1.2, 1.0), (1.0, 1.0), True, -13.477818736461087),
    (0.7, 2, 0.0, 1.0, 0.2, (2.4, 1.6), (1.0, 1.0), True, -0.6375665252189717),
    (0.7, 1, 0.001, 1.0, 0.2, (2.4, 1.6), (1.0, 1.0), False, -0.03658343073515305),
    (0.22, 1, 0.3, 1.0, 0.2, (3.0, 2.0), (1.0, 1.0), True, -511.6240862250948),
    (0.6, 1, 1.0, 1.0, 0.1, (-1.0, 0.3), (0.5, 1.0), True, -2.2653964112090472),
    (5.0, 1, 0.5, 1.0, 0.2, (4.0, 3.0), (0.3, 0.3), True, -132.02411259778012),
]
MODEL = {"A": 0.5, "b": 1.0, "t0": 0.2, "mean_v": (1.2, 1.0), "sd_v": (1.0, 0.8)}


@pytest.mark.parametrize("case", VALUES, ids=[f"{i}" for i in range(len(VALUES))])
def test_values(case) -> None:
    rt, response, A, b, t0, mean_v, sd_v, posdrift, expected = case
    found = lba.log_pdf(rt, response, A, b, t0, mean_v, sd_v, posdrift=posdrift)
    assert float(found) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_start_without_range_is_a_ratio_of_normals() -> None:
    """A = 0: rt - t0 = b / drift, by hand."""
    found = lba.pdf([0.7], [1], A=0, b=1.0, t0=0.2, mean_v=(2.0, -30.0), sd_v=1.0, posdrift=False)
    assert float(found) == pytest.approx(1 / 0.25 * math.exp(0) / math.sqrt(2 * math.pi), rel=1e-13)
    near = lba.log_pdf([0.7], [1], A=1e-9, b=1.0, t0=0.2, mean_v=(2.0, -30.0), sd_v=1.0, posdrift=False)
    assert float(near) == pytest.approx(float(found.log()), rel=1e-8)


@pytest.mark.parametrize("st0", [0.0, 0.2])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_defective_densities_integrate_to_one(st0: float, threshold: float) -> None:
    """Given positive drifts; otherwise to 1 less the probability that no drift is positive. Also at b = A."""
    model = {**MODEL, "b": threshold, "st0": st0}
    ends = [math.inf, math.inf]
    assert float(lba.cdf(ends, [1, 2], **model).sum()) == pytest.approx(1, abs=1e-9)
    never = torch.special.ndtr(torch.tensor([-1.2, -1.25], dtype=torch.float64)).prod()
    assert float(lba.cdf(ends, [1, 2], **model, posdrift=False).sum()) == pytest.approx(
        1 - float(never), abs=1e-8
    )


def test_the_density_is_the_slope_of_the_cdf_and_st0_its_difference() -> None:
    t, one = torch.tensor([0.3, 0.45, 0.6, 1.0, 2.0], dtype=torch.float64), torch.ones(5)
    slope = (lba.cdf(t + 1e-4, one, **MODEL) - lba.cdf(t - 1e-4, one, **MODEL)) / 2e-4
    torch.testing.assert_close(lba.pdf(t, one, **MODEL), slope, rtol=1e-4, atol=1e-7)
    mean = (lba.cdf(t, one, **MODEL) - lba.cdf(t - 0.15, one, **MODEL)) / 0.15
    torch.testing.assert_close(lba.pdf(t, one, **MODEL, st0=0.15), mean, rtol=1e-8, atol=1e-12)
    assert lba.log_pdf([0.2, 0.1], [1, 2], **MODEL).tolist() == [-math.inf, -math.inf]


def test_simulated_trials_have_the_distribution() -> None:
    """Shares and quantiles, with and without st0, three accumulators, and drifts that need not be positive."""
    for model, posdrift in (
        ({**MODEL, "st0": 0.15}, True),
        ({**MODEL, "mean_v": (0.4, 0.2, -0.5), "sd_v": 1.0}, False),
    ):
        trials = lba.simulate(**model, n=40_000, seed=1, posdrift=posdrift)
        assert trials.seed == 1 and bool((trials.rt > 0.2).all())
        assert bool((trials.choice == -1).any()) == (not posdrift)
        for response in range(1, len(model["mean_v"]) + 1):
            for t in (0.6, 1.0, 2.0, math.inf):
                share = float(((trials.choice == response) & (trials.rt <= t)).double().mean())
                expected = float(lba.cdf(t, response, **model, posdrift=posdrift))
                assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 40_000)), (response, t)


def test_the_distribution_of_another_simulator() -> None:
    """100 000 trials each of lba2 and lba3 of ssm-simulators 0.12.5 (seed 3): shares and quantiles of all times."""
    for drifts, shares, quantiles in (
        ((0.7, 0.5), (0.83563, 0.16437), (0.73971702, 0.97368738, 1.25655349)),
        ((0.7, 0.5, 0.25), (0.83732, 0.15917, 0.00351), (0.7400501, 0.97376806, 1.25610449)),
    ):
        responses = list(range(1, len(drifts) + 1))
        model = {"A": 0.4, "b": 0.9, "t0": 0.0, "mean_v": drifts, "sd_v": 0.1}
        found = [float(lba.cdf(math.inf, r, **model)) for r in responses]
        assert found == pytest.approx(shares, abs=4 * math.sqrt(0.14 / 100_000))
        for q, t in zip((0.1, 0.5, 0.9), quantiles, strict=True):
            assert sum(float(lba.cdf(t, r, **model)) for r in responses) == pytest.approx(q, abs=0.006)


def test_gradients() -> None:
    """By differences, in every regime of the density at once: early, late, small A, far tails."""
    rt, response = torch.tensor([0.22, 0.5, 0.8, 3.0, 40.0]), [1, 2, 1, 2, 1]
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True)
              for x in (0.4, 0.9, 0.15, [1.5, 1.0], [1.0, 0.7])]  # fmt: skip
    for posdrift in (True, False):
        assert torch.autograd.gradcheck(
            lambda *p, posdrift=posdrift: lba.log_pdf(rt, response, *p, posdrift=posdrift), leaves, rtol=1e-5
        )
    small = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    lba.log_likelihood([0.6], [1], small, *(x.detach() for x in leaves[1:])).backward()
    assert small.grad is not None and math.isfinite(float(small.grad))


def test_fit_finds_the_parameters() -> None:
    pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    condition = np.repeat(["easy", "hard"], 1000)
    drifts = np.where((condition == "easy")[:, None], [[3.0, 1.0]], [[2.4, 1.8]])
    rt, choice = lba.simulate(1.2, 1.5, 0.2, drifts, seed=3)
    found = lba.fit(rt, choice, condition)
    truth = {"A": 1.2, "b": 1.5, "t0": 0.2, "mean_v[easy, 1]": 3.0, "mean_v[easy, 2]": 1.0,
             "mean_v[hard, 1]": 2.4, "mean_v[hard, 2]": 1.8}  # fmt: skip
    assert list(found.estimates) == list(truth)
    for name, value in truth.items():
        assert abs(found.estimates[name] - value) < 3.5 * found.standard_errors[name] < 1.0, name
    assert found.log_likelihood > float(lba.log_likelihood(rt, choice, 1.2, 1.5, 0.2, drifts))
    assert found.aic == pytest.approx(14 - 2 * found.log_likelihood) and "mean_v[hard, 2]" in found.summary()
    at = float(lba.log_likelihood(rt[:1000], choice[:1000], **found.of("easy")))
    at += float(lba.log_likelihood(rt[1000:], choice[1000:], **found.of("hard")))
    assert at == pytest.approx(found.log_likelihood)
    one = lba.fit(rt[:1000], choice[:1000])
    assert list(one.estimates) == ["A", "b", "t0", "mean_v[1]", "mean_v[2]"]
    assert float(lba.log_likelihood(rt[:1000], choice[:1000], **one.of())) == pytest.approx(
        one.log_likelihood
    )
    with pytest.raises(FastdiffError, match="no condition 'none'; there are: easy, hard"):
        found.of("none")


BAD = {
    "threshold": ({"b": 0.4}, "b, the threshold, must be at least A"),
    "start": ({"A": -0.1}, "A, the largest start, must be at least 0"),
    "deviation": ({"sd_v": 0.0}, "sd_v must be positive"),
    "one": ({"mean_v": 1.0}, "mean_v must have a drift for each of at least two accumulators"),
    "three": ({"sd_v": (1.0, 1.0, 1.0)}, "sd_v must have one value, or 2 in its last dimension, as mean_v"),
    "t0": ({"t0": -0.1}, "t0 must be at least 0"),
    "st0": ({"st0": -0.1}, "st0 must be a number of at least 0, got -0.1"),
    "response": ({"response": [1, 3]}, "response must be the number of an accumulator, 1 to 2, got 3"),
    "zero": ({"response": [0, 1]}, "1 to 2, got 0"),
    "rows": ({"b": [[1.0], [1.0], [1.0]]}, "b must have one row for each trial: 2, got 3"),
    "nan": ({"rt": [math.nan, 1.0]}, "rt must be finite"),
    "lengths": ({"rt": [1.0, 1.0, 1.0]}, "rt and response must have one shape, got [3] and [2]"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_mistakes(given, message: str) -> None:
    with pytest.raises(FastdiffError) as raised:
        lba.log_pdf(**{"rt": [0.6, 0.8], "response": [1, 2], **MODEL, **given})
    assert message in str(raised.value)


def test_mistakes_of_simulation_and_fit() -> None:
    with pytest.raises(FastdiffError, match="n must be a whole number"):
        lba.simulate(**MODEL, n=0)
    with pytest.raises(FastdiffError, match="needs at least two responses"):
        lba.fit([0.5, 0.6], [1, 1])
