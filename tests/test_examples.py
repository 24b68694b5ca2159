"""The examples run, and say what is true."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastdiff.errors import FastdiffError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def barrier_option():
    pytest.importorskip("tyro", reason="tyro is not installed")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import barrier_option  # pyright: ignore[reportMissingImports]

        yield barrier_option
    finally:
        sys.path.remove(str(EXAMPLES))


# Haug's table of single barriers ("Option Pricing Formulas", 1998, page 72) as QuantLib 1.44's test suite quotes it
# (test-suite/barrieroption.cpp, testHaugValues): spot 100, half a year, rate 8 %, dividend 4 %, volatility 25 %,
# rebate 3; strikes 90, 100, 110.
HAUG = {
    ("call", "out", "lower", 95.0): (9.0246, 6.7924, 4.8759),
    ("call", "out", "upper", 105.0): (2.6789, 2.3580, 2.3453),
    ("call", "in", "lower", 95.0): (7.7627, 4.0109, 2.0576),
    ("call", "in", "upper", 105.0): (14.1112, 8.4482, 4.5910),
    ("put", "out", "lower", 95.0): (2.2798, 2.2947, 2.6252),
    ("put", "out", "upper", 105.0): (3.7760, 5.4932, 7.5187),
    ("put", "in", "lower", 95.0): (2.9586, 6.5677, 11.9752),
    ("put", "in", "upper", 105.0): (1.4653, 3.3721, 7.0846),
}


@pytest.mark.parametrize(("what", "prices"), HAUG.items(), ids=["-".join(map(str, key)) for key in HAUG])
def test_barrier_option_has_the_textbook_prices(barrier_option, what, prices) -> None:
    kind, knock, side, barrier = what
    for strike, price in zip((90.0, 100.0, 110.0), prices, strict=True):
        option = barrier_option.Option(kind=kind, knock=knock, **{"lower": None, "upper": None, side: barrier},
                                       strike=strike, rate=0.08, dividend=0.04, rebate=3)  # fmt: skip
        assert barrier_option.closed_form(option) == pytest.approx(price, abs=6e-5)


# Haug's table of two barriers (the second edition, 2007, page 156) as QuantLib quotes it (doublebarrieroption.cpp,
# testEuropeanHaugValues): rate 10 %, strike and spot 100. Barriers, years, volatility; call and put, out.
HAUG_TWO = [
    (50.0, 150.0, 0.25, 0.15, 4.3515, 1.8825),
    (50.0, 150.0, 0.25, 0.35, 7.0373, 5.7191),
    (60.0, 140.0, 0.50, 0.25, 6.3383, 4.6236),
    (70.0, 130.0, 0.25, 0.35, 3.7765, 4.6472),
    (80.0, 120.0, 0.50, 0.15, 3.5805, 1.8883),
    (90.0, 110.0, 0.25, 0.15, 1.2055, 0.9473),
    (90.0, 110.0, 0.25, 0.25, 0.3098, 0.3449),
    (90.0, 110.0, 0.50, 0.35, 0.0011, 0.0013),
]


def test_barrier_option_with_two_barriers_has_the_textbook_prices(barrier_option) -> None:
    for lower, upper, maturity, volatility, call, put in HAUG_TWO:
        for kind, price in (("call", call), ("put", put)):
            option = barrier_option.Option(
                kind=kind, lower=lower, upper=upper, rate=0.1, maturity=maturity, volatility=volatility
            )
            assert barrier_option.closed_form(option) == pytest.approx(price, abs=6e-5)


# Computed with QuantLib 1.44 (AnalyticBarrierEngine, AnalyticDoubleBarrierEngine with 10 terms). For 600 options drawn
# at random the closed form agrees with it to 1e-7, but for strikes outside two barriers, which its formula excludes.
QUANTLIB = [
    ({"strike": 80.0, "lower": 95.0}, 9.44417969),
    ({"kind": "put", "knock": "in", "lower": None, "upper": 107.0, "rebate": 2.0}, 2.47849368),
    ({"kind": "put", "lower": 80.0, "strike": 110.0, "dividend": 0.07, "rate": 0.02}, 6.71503648),
    ({"lower": None, "upper": 140.0, "strike": 120.0, "volatility": 0.4, "maturity": 1.0}, 0.19927783),
    ({"kind": "put", "lower": 85.0, "upper": 115.0, "strike": 105.0, "dividend": 0.02}, 1.50812749),
    ({"knock": "in", "lower": 70.0, "upper": 125.0, "strike": 90.0}, 7.81796974),
]


@pytest.mark.parametrize(("given", "price"), QUANTLIB)
def test_barrier_option_has_the_prices_of_quantlib(barrier_option, given, price) -> None:
    assert barrier_option.closed_form(barrier_option.Option(**given)) == pytest.approx(price, abs=1e-8)


def test_barrier_option_with_the_strike_outside_both_barriers(barrier_option) -> None:
    """Out, a put less a call is linear in the strike, whatever the barriers; outside them one of both is worthless."""

    def price(kind: str, strike: float) -> float:
        return barrier_option.closed_form(
            barrier_option.Option(kind=kind, lower=85.0, upper=115.0, strike=strike, dividend=0.02)
        )

    inside = {strike: price("put", strike) - price("call", strike) for strike in (90.0, 110.0)}
    slope = (inside[110.0] - inside[90.0]) / 20
    for strike in (75.0, 130.0):
        expected = inside[90.0] + slope * (strike - 90)
        assert price("put", strike) - price("call", strike) == pytest.approx(expected, rel=1e-10)
        assert min(price("put", strike), price("call", strike)) == 0


def test_barrier_option_in_and_out_make_the_vanilla_option(barrier_option) -> None:
    for kind in ("call", "put"):
        for strike in (85.0, 100.0, 130.0):
            both = [
                barrier_option.Option(kind=kind, knock=k, upper=120.0, strike=strike) for k in ("in", "out")
            ]
            far = barrier_option.Option(kind=kind, lower=1e-6, strike=strike)
            total = sum(map(barrier_option.closed_form, both))
            assert total == pytest.approx(barrier_option.closed_form(far), rel=1e-12)


MODELS = {
    "down-and-out-call": {},
    "up-and-in-put": {"kind": "put", "knock": "in", "lower": None, "upper": 107.0, "rebate": 2.0},
    "double-out-put": {"kind": "put", "upper": 115.0, "strike": 105.0, "rebate": 3.0, "dividend": 0.02},
    "strike-below-barrier": {"strike": 80.0, "lower": 95.0},
}


@pytest.mark.parametrize("method", ["exact", "bridge"])
@pytest.mark.parametrize("given", MODELS.values(), ids=MODELS)
def test_barrier_option_simulated(barrier_option, given, method) -> None:
    """The price, and Greeks against differences of the closed form."""
    option = barrier_option.Option(**given)
    found = barrier_option.simulated(option, method, steps=60, trials=30_000, seed=3)
    assert abs(found["price"].value - barrier_option.closed_form(option)) < 4 * found["price"].error + 2e-3
    for name, field in {"delta": "spot", "vega": "volatility", "rho": "rate"}.items():
        at = getattr(option, field)
        sides = [replace(option, **{field: at * (1 + h)}) for h in (1e-4, -1e-4)]
        slope = (barrier_option.closed_form(sides[0]) - barrier_option.closed_form(sides[1])) / (2e-4 * at)
        assert found[name].error > 0 and abs(found[name].value - slope) < 4 * found[name].error + 2e-2, name


def test_barrier_option_by_euler_is_that_of_a_barrier_further_out(barrier_option) -> None:
    option, steps = barrier_option.Option(), 50
    found = barrier_option.simulated(option, "euler", steps=steps, trials=200_000, seed=1)
    price = found["price"]
    assert set(found) == {"price"} and price.value > barrier_option.closed_form(option) + 10 * price.error
    assert price.value == pytest.approx(barrier_option.discretely_watched(option, steps), abs=4 * price.error)
    moved = barrier_option.simulated(option, "euler", steps=steps, trials=200_000, seed=1, correct=True)[
        "price"
    ]
    assert moved.value == pytest.approx(barrier_option.closed_form(option), abs=4 * moved.error)


@pytest.mark.parametrize(
    "given",
    [{"lower": None}, {"lower": 100.0}, {"upper": 90.0}, {"volatility": 0.0}, {"rebate": -1.0}],
    ids=["no-barrier", "at-the-spot", "upper-below", "no-volatility", "rebate"],
)
def test_barrier_option_mistakes(barrier_option, given) -> None:
    with pytest.raises(FastdiffError):
        barrier_option.Option(**given)


def test_barrier_option_runs(barrier_option, capsys: pytest.CaptureFixture[str]) -> None:
    barrier_option.main(barrier_option.Option(knock="in", rebate=1.0), trials=5_000)
    printed = capsys.readouterr().out
    first = [line.split()[0].strip(",") for line in printed.splitlines()[1:]]
    assert first == ["closed", "watched", "exact", "bridge", "euler", "euler"] and "nan" not in printed


@pytest.mark.parametrize(
    ("name", "needs"),
    [("k_diffusion_denoiser", None), ("guided_diffusion_model", None), ("diffusers_unet", "diffusers")],
)
def test_models_of_other_projects(name: str, needs: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if needs:
        pytest.importorskip(needs, reason=f"{needs} is not installed")
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    result = names["main"]()
    images = result[0] if isinstance(result, tuple) else result
    assert images.isfinite().all() and float(images.std()) > 0.01
    printed = capsys.readouterr().out
    said = {
        "k_diffusion_denoiser": "100% of their pixels",
        "diffusers_unet": "DDIMScheduler: one pass a step",
    }
    assert said.get(name, "[2, 3, 64, 64]") in printed
