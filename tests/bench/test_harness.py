"""The clock, the description of the machine, sides and results files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from fastdiff.backend import use_backend
from fastdiff.bench import machine, results
from fastdiff.bench.ceilings import ceilings
from fastdiff.bench.clock import Timing, interleave, repeated, take_turns
from fastdiff.bench.sides import SIDES, fill_zeros, network
from fastdiff.errors import FastdiffError


def test_sides_take_turns() -> None:
    order: list[str] = []
    turns = {name: (lambda name=name: order.append(name) or [len(order)]) for name in "ab"}
    assert take_turns(turns, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == list("ababab")


def test_no_round_begins_after_the_limit_but_for_the_least() -> None:
    assert len(take_turns({"a": lambda: [0.0]}, 7, at_least=2, limit=0.0)["a"]) == 2


def test_a_turn_is_the_mean_of_its_calls() -> None:
    calls, ticks = itertools.count(), itertools.count(0, 12)
    turn = repeated(lambda: next(calls), calls=4, timer=lambda: float(next(ticks)))
    assert turn() == [3.0] and next(calls) == 5, "a call to warm up, then four"


def test_seconds_decide_how_many_calls_make_a_turn() -> None:
    calls, now = itertools.count(), iter([0.0, 0.5, *map(float, range(10))])
    repeated(lambda: next(calls), 2.0, timer=lambda: next(now))()
    assert next(calls) == 1 + 1 + 4


def test_timing_has_median_and_quantiles() -> None:
    assert Timing.of([float(i) for i in range(11)]) == Timing(5.0, 2.0, 8.0)
    times = interleave({"short": lambda: None, "long": lambda: sum(range(20000))}, rounds=5, seconds=1e-3)
    assert times["short"].median < times["long"].median


def test_ceilings_are_positive() -> None:
    found = ceilings(copies={"memory": 1 << 16}, size=32, rounds=2)
    speeds = [*found["copy_gb_per_s"].values(), *found["matmul_gflops"].values()]
    assert len(speeds) == 3 and min(speeds) > 0 and found["matmul_size"] == 32


def test_machine_is_described_once() -> None:
    about = machine.describe("cpu", "numpy", "no-such-package")
    assert {"processor", "device", "flags", "backend", "threads", "torch", "date"} <= about.keys()
    assert about["no-such-package"] == "not installed" and about["numpy"][0].isdigit()
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", machine.slug())


def test_results_have_a_row_a_line(tmp_path: Path) -> None:
    file = tmp_path / "ops-some-machine.json"
    rows = [{"op": "conv2d", "seconds": {"eager": 1.5}}, {"op": "attention", "seconds": {}}]
    results.write(file, {"processor": "P"}, n=3, rows=rows, by_key={"a/b": {"x": [1, 2]}}, nothing=[])
    content = json.loads(file.read_text())
    about = content.pop("about")
    assert (about["program"], about["processor"]) == ("ops", "P") and about["command"].startswith("python ")
    assert content == {"n": 3, "rows": rows, "by_key": {"a/b": {"x": [1, 2]}}, "nothing": []}
    lines = file.read_text().splitlines()
    assert '  {"op": "conv2d", "seconds": {"eager": 1.5}},' in lines and '  "a/b": {"x": [1, 2]}' in lines


def test_sides_run_one_network() -> None:
    net = network("fashion-mnist", 2)
    with torch.no_grad():
        want = net.cast(torch.float64)()
        for side in SIDES.values():
            cast = net.cast(torch.float32, side.memory_format)
            torch.testing.assert_close(side.call(cast)().double(), want, rtol=1e-3, atol=1e-4)
    twin = net.twin()
    assert all(a is b for a, b in zip(net.model.parameters(), twin.model.parameters(), strict=True))
    with use_backend("reference"):
        assert SIDES["fastdiff"].call(torch.zeros, 1)().shape == (1,)


def test_no_layer_works_for_nothing() -> None:
    layer = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(layer.weight)
    assert fill_zeros(layer) is layer and layer.weight.all()


def test_networks_of_images_alone() -> None:
    with pytest.raises(FastdiffError, match="no preset 'adm-64-classifier' to measure; known: fashion-mnist"):
        network("adm-64-classifier", 1)
