"""The examples run, and say what is true."""

from __future__ import annotations

import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

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


def test_barrier_option_by_the_bridge_is_the_closed_form(barrier_option) -> None:
    option = barrier_option.Option()
    price, error = barrier_option.simulated(option, "bridge", steps=25, trials=400_000)
    assert price == pytest.approx(barrier_option.closed_form(option), abs=4 * error)


def test_barrier_option_by_euler_is_that_of_a_barrier_further_out(barrier_option) -> None:
    option, steps = barrier_option.Option(), 50
    price, error = barrier_option.simulated(option, "euler", steps=steps, trials=400_000)
    assert price > barrier_option.closed_form(option) + 10 * error
    shift = 0.5826 * option.volatility * math.sqrt(option.maturity / steps)
    further = replace(option, barrier=option.barrier * math.exp(-shift))
    assert price == pytest.approx(barrier_option.closed_form(further), abs=4 * error)


def test_barrier_option_without_a_barrier_is_black_and_scholes(barrier_option) -> None:
    assert barrier_option.closed_form(barrier_option.Option(barrier=1e-3)) == pytest.approx(8.26, abs=0.005)


def test_barrier_option_runs(barrier_option, capsys: pytest.CaptureFixture[str]) -> None:
    barrier_option.main(trials=20_000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["closed", "bridge", "euler"]


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
