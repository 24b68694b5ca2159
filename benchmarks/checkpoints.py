"""What does a step of each published checkpoint cost? Counts of all presets, and the table of docs/checkpoints.md.

    python benchmarks/checkpoints.py [--measure adm-64 adm-128 ...]

Without ``--measure``: counts every preset (fastdiff/assets/costs.json), then writes the table of docs/checkpoints.md
from the counts and from results files. With it: times one step of each named preset on the CPU, with random weights and
as ``fastdiff sample`` runs it, each in a process of its own, and adds the row to benchmarks/results.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from parts import RESULTS, ROOT

import fastdiff
from fastdiff.bench import costs, machine, results
from fastdiff.bench.clock import repeated
from fastdiff.bench.count import count
from fastdiff.bench.report import table
from fastdiff.bench.sides import fill_zeros
from fastdiff.checkpoint.released import RELEASED
from fastdiff.files import atomic_path
from fastdiff.models import ModelConfig, UNet, UNetConfig, build_model
from fastdiff.scalars import duration
from fastdiff.zoo import PRESETS

PAGE = ROOT / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
CPU = "checkpoints-*.json"
GPU = RESULTS / "gpu-nvidia-h100-80gb-hbm3.json"  # of make gpu
GPU_BATCH, GPU_SIDE = 32, "fastdiff, bfloat16"


@dataclass(frozen=True)
class Options:
    """Count all presets and write the table of docs/checkpoints.md; or measure some on the CPU first."""

    measure: tuple[str, ...] = ()
    """Presets to measure on one core of this CPU."""
    one: tuple[str, Path] | None = None
    """Preset and file to measure in this process, for a JSON row: what the program calls itself with."""


def measured(preset: str, file: Path) -> dict[str, Any]:
    """Processor time of a step (one image, float32), and the most memory that the process has held."""
    model: Any = fastdiff.load(file, preset=preset)
    model.to(memory_format=torch.channels_last)
    if isinstance(model, UNet):
        fastdiff.optimize(model, free_weights=True)
    turn = repeated(forward(model, model.config), calls=1, timer=time.process_time)
    seconds = turn()[0]
    peak = re.findall(
        r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()
    )  # getrusage's has the parent's in it
    return {"processor_seconds": round(seconds, 4), "peak_gb": round(int(peak[0]) * 1024 / 1e9, 3)}


def forward(model: Any, config: ModelConfig) -> Callable[[], object]:
    """A call with one image."""
    image = torch.randn(1, config.in_channels, config.image_size, config.image_size)
    inputs = [image, torch.tensor([500.0])]
    if isinstance(config, UNetConfig) and config.low_res is not None:
        inputs.append(image)
    if isinstance(config, UNetConfig) and config.num_classes is not None:
        inputs.append(torch.zeros(1, dtype=torch.int64))

    def call() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return call


def add_rows(names: tuple[str, ...]) -> None:
    file = RESULTS / results.file_name("checkpoints")
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)  # for the description
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "random.pt")
            torch.manual_seed(0)
            torch.save(fill_zeros(build_model(PRESETS[name].model)).state_dict(), path)
            one = [sys.executable, __file__, "--one", name, str(path)]
            done = subprocess.run(one, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        rows[name] = json.loads(done.stdout)
        print(name, rows[name], flush=True)
        results.write(file, machine.describe(), rows=rows)


def gpu_seconds(preset: str) -> float | None:
    """Seconds of a step, for each image of a batch."""
    row = json.loads(GPU.read_text())["rows"].get(f"models/{preset}/batch{GPU_BATCH}")
    return row and row["seconds"][GPU_SIDE]["median"] / row["steps"] / GPU_BATCH


def same_network(preset: str, names: Iterable[str]) -> str | None:
    """The name of a preset that differs by dropout and classes at most, if one is among them."""

    def alike(name: str) -> ModelConfig:
        model = PRESETS[name].model
        return replace(model, dropout=0.0, **({"num_classes": None} if isinstance(model, UNetConfig) else {}))

    return next((name for name in names if alike(name) == alike(preset)), None)


def markdown() -> str:
    """The table of docs/checkpoints.md: measured where a results file has it, else estimated and marked by ~."""
    (file,) = RESULTS.glob(CPU)
    cpu = json.loads(file.read_text())["rows"]
    counted = costs.costs()
    cpu_rate = counted["adm-256"].macs / cpu["adm-256"]["processor_seconds"]
    gpu_rate = counted["adm-128"].macs / (gpu_seconds("adm-128") or 1)
    rows = []
    for name, row in RELEASED.items():
        cost, here, gpu = counted[name], cpu.get(same_network(name, cpu)), gpu_seconds(name)
        size = f"{row.size / 1e9:.3f} GB" if row.size else f"~{4 * cost.parameters / 1e9:.3f} GB"
        rows.append(
            (
                f"`{name}`",
                f"[{row.file}]({row.address})",
                size,
                f"{cost.parameters / 1e6:.1f} M",
                f"{cost.macs / 1e9:.0f}",
                f"{here['peak_gb']:.1f} GB" if here else "not measured",
                _seconds(here and here["processor_seconds"], cost.macs / cpu_rate),
                _seconds(gpu, cost.macs / gpu_rate),
                (row.checksum or "-").partition(":")[0].upper(),
            )
        )
    head = (
        "name",
        "file",
        "size",
        "parameters",
        "GMACs",
        "memory, CPU",
        "step, CPU",
        "step, GPU",
        "checksum",
    )
    return table(head, rows)


def _seconds(measured: float | None, estimated: float) -> str:
    return duration(measured) if measured else f"~{duration(estimated)}"


def with_table(page: str, text: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n\n{END}{rest.split(END)[1]}"


def main(options: Options) -> None:
    if options.one is not None:
        print(json.dumps(measured(*options.one)))
        return
    if options.measure:
        add_rows(options.measure)
    found = {name: count(preset.model) for name, preset in PRESETS.items()}
    rows = {name: {"macs": c.macs, "parameters": c.parameters} for name, c in found.items()}
    with atomic_path(costs.FILE) as path:
        path.write_text(results.text({"presets": rows}))
    costs.costs.cache_clear()
    page = with_table(PAGE.read_text(), markdown())
    with atomic_path(PAGE) as path:
        path.write_text(page)
    print(f"wrote {costs.FILE}\nwrote {PAGE}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
