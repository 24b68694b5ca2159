"""How fast are whole U-Nets on the CPU? fastdiff.optimize beside eager PyTorch and, where asked, other engines.

    python benchmarks/models.py [--settings PRESET:BATCH ...] [--compile] [--openvino] [--diffusers]

Per setting all sides take turns in one run; medians with 20% and 80% quantiles. Prints Markdown and, if all settings
are measured, writes ``benchmarks/results/models-<machine>.json``, which benchmarks/plots.py draws.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from parts import RESULTS, peers
from parts.models_report import Result, Row, heading, shares_of_time
from parts.peers import Engine, eager_engines, fastdiff_engines
from torch import Tensor

from fastdiff.bench import machine, results
from fastdiff.bench.ceilings import ceilings
from fastdiff.bench.clock import interleave
from fastdiff.bench.count import count_macs
from fastdiff.bench.sides import Network, call_on, network
from fastdiff.errors import FastdiffError

SETTINGS = ("ddpm-cifar10:4", "ddpm-cifar10:1", "iddpm-imagenet-64:1", "fashion-mnist:16", "adm-64:1")
SMALL = 150e6  # parameters up to which a float64 copy is no question


@dataclass(frozen=True)
class Options:
    """Time whole U-Nets on the CPU."""

    settings: tuple[str, ...] = SETTINGS
    """Networks and batch sizes, each as PRESET:BATCH."""
    compile: bool = False
    """Also time torch.compile with frozen weights, which needs a C++ compiler."""
    openvino: bool = False
    """Also time OpenVINO, if it is installed."""
    diffusers: bool = False
    """Also time diffusers' own U-Net beside ddpm-cifar10, if diffusers is installed."""
    error: bool = False
    """Compute the errors against float64 also for models over 150 M parameters."""
    rounds: int = 9
    """Number of turns of each side."""
    seconds: float = 0.3
    """Duration of a turn in seconds; a turn makes at least one call."""
    threads: int | None = None
    """Number of threads. Default: PyTorch's."""
    out: Path | None = None
    """Results file, written also if only some of the default settings are measured."""


def engines(own: Network, preset: str, options: Options) -> tuple[list[Engine], list[str]]:
    """Everything that was asked for, and why something is missing."""
    batch = len(own.inputs[0])
    found, skipped = [*eager_engines(own), *fastdiff_engines(own)], []
    if options.compile:
        _try("torch.compile", lambda: peers.compiled_engines(own), found, skipped)
    if options.openvino and not peers.is_installed("openvino"):
        skipped.append("OpenVINO is not installed")
    elif options.openvino:
        _try("OpenVINO", lambda: peers.openvino_engines(own), found, skipped)
    if options.diffusers and preset == "ddpm-cifar10":
        if peers.is_installed("diffusers"):
            more, reason = peers.diffusers_engines(batch)
            found += more
            skipped += [f"fastdiff.optimize on diffusers' U-Net: {reason}"] if reason else []
        else:
            skipped.append("diffusers is not installed")
    return found, skipped


def _try(name: str, build: Callable[[], list[Engine]], found: list[Engine], skipped: list[str]) -> None:
    """Another engine's failure is its own: it is reported, and the rest is measured."""
    try:
        found += build()
    except Exception as reason:
        skipped.append(f"{name} failed: {type(reason).__name__}: {str(reason).splitlines()[0]}")


def check(
    found: list[Engine], skipped: list[str], options: Options
) -> tuple[list[Engine], list[float | None]]:
    """The sides whose results are numbers, and how far from float64 they are, where that is asked for."""
    truths: dict[int, Tensor] = {}
    kept: list[Engine] = []
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
    gflop = direct_gflop(own, batch)
    found, skipped = engines(own, preset, options)
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
    shares = {side.dtype: shares_of_time(side.run) for side in found if side.name == "fastdiff"}
    return Result(preset, batch, own.parameters, gflop, rows, shares, skipped)


def direct_gflop(net: Network, batch: int) -> float:
    """GFLOP per image of convolutions, computed directly, and linear layers; a multiplication and a sum count as two.

    Attention's products, norms and activations are not counted.
    """
    macs = count_macs(net.model, net)
    return 2 * (macs["convolution"] + macs["linear"]) / batch / 1e9


def truth(net: Network) -> Tensor:
    """The prediction in float64."""
    return call_on("eager", net.cast(torch.float64))()


def error(got: Tensor, want: Tensor) -> float:
    """Relative distance |got - want| / |want|."""
    return float((got.double() - want).norm() / want.norm())


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.threads:
        torch.set_num_threads(options.threads)
    about = machine.describe("cpu", *peers.PACKAGES)
    with torch.no_grad():
        peak = ceilings("cpu", rounds=options.rounds)
        print(heading(about, peak), flush=True)
        found = []
        for setting in options.settings:
            found.append(measure(setting, options, peak["matmul_gflops"]["float32"]))
            print("", found[-1].markdown(), sep="\n", flush=True)
            gc.collect()
    complete = set(SETTINGS) <= set(options.settings)
    target = options.out or (RESULTS / results.file_name("models") if complete else None)
    if target:
        settings, rows = [r.about() for r in found], [row for r in found for row in r.json_rows()]
        results.write(target, about, machine=peak, settings=settings, rows=rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except FastdiffError as wrong:
        sys.exit(f"error: {wrong}")
