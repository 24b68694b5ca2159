"""The costs that are kept in a file, and the pages made of them, are those of the zoo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastdiff.bench import count
from fastdiff.bench.costs import costs, macs_per_second
from fastdiff.checkpoint.released import RELEASED
from fastdiff.zoo import PRESETS

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"fashion-mnist", "fashion-mnist-classifier", "adm-64-classifier", "ddpm-cifar10", "adm-512-uncond"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.proof] * (name not in QUICK)) for name in PRESETS]
)
def test_kept_counts_are_counted(name: str) -> None:
    """If not: python benchmarks/checkpoints.py"""
    kept, counted = costs()[name], count(PRESETS[name].model)
    assert (kept.macs, kept.parameters) == (counted.macs, counted.parameters)


def test_every_preset_is_kept() -> None:
    assert list(costs()) == list(PRESETS)


def test_a_step_is_estimated() -> None:
    """Between 1 and 10,000 GMAC/s: any processor's core to a hundred of them."""
    assert 1e9 < macs_per_second("cpu") < 1e13


def test_the_page_has_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """If not: python benchmarks/checkpoints.py"""
    pytest.importorskip("tyro", reason="tyro is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "checkpoints", raising=False)
    import checkpoints  # pyright: ignore[reportMissingImports]

    page = checkpoints.PAGE.read_text()
    assert checkpoints.with_table(page, checkpoints.markdown()) == page
    for name, row in RELEASED.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"({row.address})" in line
        if row.checksum and row.checksum.startswith("sha256"):
            assert row.checksum.partition(":")[2] in page
