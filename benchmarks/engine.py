"""Whole U-Nets on the CPU: fastdiff.optimize against eager PyTorch and, where asked, other engines.

    python benchmarks/engine.py [--settings PRESET:BATCH ...] [--compile] [--openvino] [--diffusers]

Per setting all sides take turns in one run; medians with 20% and 80% quantiles. Prints Markdown and, if all settings
are measured, writes ``benchmarks/results/engine-<processor>.json``, which benchmarks/plots/engine.py draws.
"""

from __future__ import annotations

import datetime
import gc
import json
import platform
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import engine_peers as peers
import torch
import tyro
from engine_machine import direct_gflop, flags, profile, speed
from engine_report import Result, Row, heading
from engine_sides import Network, Side, eager_sides, error, fastdiff_sides, network, truth
from ratios import RESULTS, processor
from timing import interleave

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path
from fastdiff.ops import _library

SETTINGS = ("ddpm-cifar10:4", "ddpm-cifar10:1", "iddpm-imagenet-64:1", "fashion-mnist:16", "adm-64:1")
SMALL = 150e6  # parameters up to which a float64 copy is no question


@dataclass(frozen=True)
class Options:
    """Time whole U-Nets on the CPU."""

    settings: tuple[str, ...] = SETTINGS  # PRESET:BATCH each
    compile: bool = False  # also torch.compile with frozen weights; needs a C++ compiler
    openvino: bool = False  # also OpenVINO, if it is installed
    diffusers: bool = False  # also diffusers' own U-Net beside ddpm-cifar10, if it is installed
    error: bool = False  # errors against float64 also of models over 150 M parameters
    rounds: int = 9  # turns each side takes
    seconds: float = 0.3  # a turn lasts at least a call, and about this
    threads: int | None = None  # None = as many as PyTorch takes
    out: Path | None = None  # JSON file, also for a choice of settings


def sides(own: Network, preset: str, options: Options) -> tuple[list[Side], list[str]]:
    """Everything that was asked for, and why something is missing."""
    batch = len(own.inputs[0])
    found, skipped = [*eager_sides(own), *fastdiff_sides(own)], []
    if options.compile:
        _try("torch.compile", lambda: peers.compiled_sides(own), found, skipped)
    if options.openvino and not peers.is_installed("openvino"):
        skipped.append("OpenVINO is not installed")
    elif options.openvino:
        _try("OpenVINO", lambda: peers.openvino_sides(own), found, skipped)
    if options.diffusers and preset == "ddpm-cifar10":
        if peers.is_installed("diffusers"):
            more, reason = peers.diffusers_sides(batch)
            found += more
            skipped += [f"fastdiff.optimize on diffusers' U-Net: {reason}"] if reason else []
        else:
            skipped.append("diffusers is not installed")
    return found, skipped


def _try(name: str, build: Callable[[], list[Side]], found: list[Side], skipped: list[str]) -> None:
    """Another engine's failure is its own: it is reported, and the rest is measured."""
    try:
        found += build()
    except Exception as reason:
        skipped.append(f"{name} failed: {type(reason).__name__}: {str(reason).splitlines()[0]}")


def check(found: list[Side], skipped: list[str], options: Options) -> tuple[list[Side], list[float | None]]:
    """The sides whose results are numbers, and how far from float64 they are, where that is asked for."""
    truths: dict[int, torch.Tensor] = {}
    kept: list[Side] = []
    off: list[float | None] = []
    for side in found:
        got = side.run()
        if not got.isfinite().all():
            skipped.append(f"{side.name}, {side.dtype}: its result is not finite")
            continue
        kept.append(side)
        if side.network.parameters > SMALL and not options.error:
            off.append(None)
            continue
        if id(side.network) not in truths:
            truths[id(side.network)] = truth(side.network)
        off.append(error(got, truths[id(side.network)]))
    return kept, off


def measure(setting: str, options: Options, peak: float) -> Result:
    """One setting: build, check, time turn by turn, profile."""
    preset, _, number = setting.partition(":")
    if not number.isdigit() or int(number) < 1:
        raise FastdiffError(f"a setting is PRESET:BATCH, such as {SETTINGS[0]}; got {setting!r}")
    own, batch = network(preset, int(number)), int(number)
    gflop = direct_gflop(own)
    found, skipped = sides(own, preset, options)
    found, off = check(found, skipped, options)
    for reason in skipped:
        print(f"{setting}: skipped: {reason}", file=sys.stderr)
    gc.collect()
    names = [f"{side.name}, {side.dtype}" for side in found]
    times = interleave(
        {name: side.run for name, side in zip(names, found, strict=True)},
        rounds=options.rounds,
        seconds=options.seconds,
    )
    rows = []
    for name, side, distance in zip(names, found, off, strict=True):
        per_second = batch / times[name].median
        rows.append(
            Row(
                side=side.name,
                dtype=side.dtype,
                seconds=times[name],
                ratio=times[names[0]].median / times[name].median,
                images_per_second=per_second,
                direct_gflops=per_second * gflop,
                of_peak=per_second * gflop / peak,
                error=distance,
                build_seconds=side.build_seconds,
            )
        )
    shares = {side.dtype: profile(side) for side in found if side.name == "fastdiff"}
    return Result(preset, batch, own.parameters, gflop, rows, shares, skipped)


def slug(name: str) -> str:
    """Letters, digits and hyphens; the best of the processor's abilities is in it, for some hide their names."""
    has = flags()
    best = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in has), platform.machine())
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{name}-{best}").strip("-").lower()


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.threads:
        torch.set_num_threads(options.threads)
    about = {
        "device": processor(),
        "flags": " ".join(flags()),
        "kernels": str(_library.instruction_set()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **peers.versions(),
        "fastdiff": fastdiff.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/engine.py", *sys.argv[1:]]),
    }
    with torch.no_grad():
        machine = speed(options.rounds)
        print(heading(about, machine), flush=True)
        results = []
        for setting in options.settings:
            results.append(measure(setting, options, machine["matmul_float32_gflops"]))
            print("", results[-1].markdown(), sep="\n", flush=True)
            gc.collect()
    complete = set(SETTINGS) <= set(options.settings)
    target = options.out or (RESULTS / f"engine-{slug(processor())}.json" if complete else None)
    if target:
        with atomic_path(target) as path:
            content = {"about": about, "machine": machine, "settings": [r.json() for r in results]}
            path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except FastdiffError as wrong:
        sys.exit(f"error: {wrong}")
