"""Other packages' conventions, with numbers that these packages give."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.decision import from_hddm, from_pyddm, from_rtdists, from_ssms, moments, pdf
from fastdiff.errors import FastdiffError


def test_ssms() -> None:
    """Boundaries at -a and a; the start is uniform in a (2 z - 1) +- sz, the non-decision time in t +- st."""
    model = from_ssms(1.0, 1.0, 0.6, 0.4, sv=0.5, sz=0.2, st=0.1)
    expected = {"v": 1.0, "a": 2.0, "z": 0.6, "t0": 0.3, "sv": 0.5, "sz": 0.2, "st0": 0.2}
    assert model == pytest.approx(expected)
    # 1 / (1 + exp(-2 v a)) for a start in the middle
    assert float(moments(**from_ssms(1.0, 1.0)).p_upper) == pytest.approx(1 / (1 + np.exp(-2)))


def test_hddm() -> None:
    """HDDM's t is the middle of its range: a density that begins at t - st / 2."""
    model = from_hddm(1.0, 2.0, 0.4, 0.5, st=0.2)
    assert model["t0"] == pytest.approx(0.3) and model["st0"] == 0.2
    assert pdf([0.29, 0.5], 1, **model)[0] == 0 and pdf(0.5, 1, **model) > 0


def test_rtdists() -> None:
    """z and sz are lengths; without z the start is in the middle."""
    model = from_rtdists(a=2.0, v=1.0, t0=0.3, z=0.8, sz=0.4, s=1.0)
    assert model["z"] == pytest.approx(0.4) and model["sz"] == pytest.approx(0.2)
    assert from_rtdists(a=2.0, v=1.0)["z"] == 0.5
    with pytest.raises(FastdiffError, match="d must be 0, got 0.1"):
        from_rtdists(a=2.0, v=1.0, d=0.1)


def test_pyddm() -> None:
    model = from_pyddm(1.0, 1.0, starting_position=-0.2, nondecision=0.3)
    assert model == pytest.approx({"v": 1.0, "a": 2.0, "z": 0.4, "t0": 0.3, "s": 1.0})


def test_arrays() -> None:
    assert from_ssms(np.array([0.5, 1.0]), 1.0)["v"].tolist() == [0.5, 1.0]


def test_numpy_scalars_are_numbers() -> None:
    """What indexing an array gives."""
    row = np.array([1.0, 2.0, 0.5])
    assert float(pdf(np.float64(1.0), 1, row[0], row[1], row[2])) == float(pdf(1.0, 1, 1.0, 2.0, 0.5))
