"""Mistakes in the model's parameters: one clear sentence each, the same for every function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.decision import cdf, ez, log_pdf, log_pdf_and_slopes, moments, pdf, simulate
from fastdiff.errors import FastdiffError

BAD = {
    "boundary": ({"a": 0.0}, "a must be positive: the boundaries lie at 0 and a, got 0"),
    "boundary-of-one-trial": ({"a": [1.0, -2.0]}, "got -2"),
    "noise": ({"s": -1.0}, "s (the noise) must be positive, got -1"),
    "start-outside": ({"z": 1.2}, "the start z, with its range sz, must lie between 0 and 1, got 1.2"),
    "start-on-boundary": ({"z": 0.0}, "must lie between 0 and 1, got 0"),
    "start-absolute": ({"z": 3.0, "z_mode": "absolute"}, "must lie between 0 and a, got 3"),
    "range-too-wide": ({"z": 0.3, "sz": 0.7}, "must lie between 0 and 1, got 0.3"),
    "nan": ({"v": math.nan}, "v must be finite, got nan"),
    "infinite": ({"a": math.inf}, "a must be finite, got inf"),
    "text": ({"v": "fast"}, "v must be a number or an array of numbers, got 'fast'"),
    "sv": ({"sv": -0.1}, "sv must be at least 0, got -0.1"),
    "st0": ({"st0": -0.1}, "st0 must be at least 0"),
    "t0": ({"t0": -0.1}, "the non-decision time t0, with its range st0, must not be below 0, got -0.1"),
    "t0-mid": ({"t0": 0.1, "st0": 0.3, "t0_mode": "mid"}, "must not be below 0, got -0.05"),
    "z-mode": ({"z_mode": "middle"}, "z_mode must be 'relative' or 'absolute', got 'middle'"),
    "t0-mode": ({"t0_mode": "upper"}, "t0_mode must be 'lower' or 'mid', got 'upper'"),
    "shapes": (
        {"v": [1.0, 2.0], "a": [1.0, 2.0, 3.0]},
        "must broadcast against one another, got v [2], a [3]",
    ),
}


FUNCTIONS = {
    "simulate": simulate,
    "moments": moments,
    "pdf": lambda **k: pdf(0.5, 1, **k),
    "cdf": lambda **k: cdf(0.5, 1, **k),
    "log_pdf-of-an-array": lambda **k: log_pdf(np.array([0.5]), 1, **k),
    "log_pdf_and_slopes": lambda **k: log_pdf_and_slopes(np.array([0.5]), 1, **k),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_parameters(function, change, message: str) -> None:
    with pytest.raises(FastdiffError) as raised:
        function(**{"v": 1.0, "a": 2.0, **change})
    assert message in str(raised.value) and "\n" not in str(raised.value)


SIMULATE = {
    "no-trials": ({"n": 0}, "n must be a whole number of at least 1, got 0"),
    "half-a-trial": ({"n": 2.5}, "n must be a whole number of at least 1, got 2.5"),
    "empty": ({"v": torch.empty(0)}, "there are no trials to simulate"),
    "other-n": ({"v": [1.0, 2.0], "n": 3}, "each parameter must have one value or n = 3, got shape [2]"),
    "table": ({"v": [[1.0, 2.0]]}, "one value for all trials or one for each, got shape [1, 2]"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
    "method": ({"method": "milstein"}, "method must be one of exact, bridge, euler, got 'milstein'"),
    "dt": ({"dt": 0.0}, "dt must be a positive number of seconds, got 0.0"),
    "t_max": ({"t_max": math.nan}, "t_max must be a positive number of seconds, got nan"),
    "path-of-exact": ({"return_paths": True}, "the exact method has no path"),
}


@pytest.mark.parametrize(("change", "message"), SIMULATE.values(), ids=SIMULATE)
def test_simulate(change, message: str) -> None:
    with pytest.raises(FastdiffError) as raised:
        simulate(**{"v": 1.0, "a": 2.0, **change})
    assert message in str(raised.value)


@pytest.mark.parametrize("choice", [-1, 2, math.nan, "upper"])
def test_choices(choice) -> None:
    with pytest.raises(FastdiffError, match="choice must be"):
        pdf(0.5, choice, 1.0, 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0, 0.5, 0.1), "between 0 and 1 other than 1/2"),
        ((0.5, 0.5, 0.1), "between 0 and 1 other than 1/2"),
        ((0.8, 0.5, 0.0), "positive variance"),
        ((0.8, 0.5, 0.1, 0.0), "positive noise"),
        ((0.8, math.nan, 0.1), "mean must be finite"),
    ],
)
def test_ez(given, message: str) -> None:
    with pytest.raises(FastdiffError, match=message):
        ez(*given)
