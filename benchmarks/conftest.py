"""Settings of every benchmark: device, versions and ceilings go into the JSON beside the timings."""

from __future__ import annotations

from typing import Any

import pytest
from parts.compiler import Compiler

from fastdiff.bench import machine
from fastdiff.bench.ceilings import ceilings

_STATISTICS = ("min", "median", "iqr", "rounds", "iterations")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compile-budget", type=float, default=300.0, help="seconds that torch.compile may take in all"
    )


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest) -> Compiler:
    return Compiler(float(request.config.getoption("--compile-budget") or 0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ops first: they cost the compiler least, whose budget may not last for everything."""
    items.sort(key=lambda item: item.path.name != "test_ops.py")


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Asked for when there is something to write."""
    device = machine.default_device()
    machine_info["fastdiff"] = machine.describe(device) | ceilings(device)


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what pictures and comparisons need: no single timings, no list of the processor's flags."""
    output_json["machine_info"] = {
        k: v for k, v in output_json["machine_info"].items() if k in ("fastdiff", "python_version", "system")
    }
    output_json.pop("commit_info", None)
    for entry in output_json["benchmarks"]:
        stats = {k: v for k, v in entry["stats"].items() if k in _STATISTICS}
        kept = {k: entry[k] for k in ("name", "group", "extra_info")}
        entry.clear()
        entry.update(kept, stats=stats)
