"""The table of the README: fastdiff against eager PyTorch, turn by turn in one run, ratios of medians.

    python benchmarks/ratios.py [--only OP] [--rounds N] [--no-models]

Prints Markdown and writes ``benchmarks/results/<device>-torch<version>.json``.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from timing import Timing, interleave
from tqdm import tqdm
from whole_models import BATCH, SIDES, forward, forward_backward, setting

import fastdiff
from fastdiff.bench.machine import backends_in_words, device_name
from fastdiff.files import atomic_path
from fastdiff.ops._case import Case
from fastdiff.ops.cases import CASES

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    group: str
    direction: str
    name: str
    dtype: str
    eager: Timing
    fastdiff: Timing
    gigabytes_per_second: float | None = None

    @property
    def ratio(self) -> float:
        return self.eager.median / self.fastdiff.median


def measure_ops(device: str, only: str | None, rounds: int) -> list[Row]:
    rows = []
    cases = [c for c in CASES if c.benchmark and only in (None, c.op)]
    for case in tqdm(cases, desc="ops", leave=False):
        for name, dtype in DTYPES.items():
            rows.append(_forward_row(case, name, case.inputs(dtype, device), rounds))
            if case.differentiable:
                rows.append(_backward_row(case, name, case.inputs(dtype, device), rounds))
    return rows


def _forward_row(case: Case, dtype: str, kwargs: dict[str, Any], rounds: int) -> Row:
    eager = case.baseline or case.eager
    sides = {"eager": lambda: eager(**kwargs), "fastdiff": lambda: case.fused(**kwargs)}
    with torch.inference_mode():
        times = interleave(sides, rounds=rounds)
    speed = case.elements * DTYPES[dtype].itemsize / times["fastdiff"].median / 1e9 if case.elements else None
    return Row(case.op, "forward", case.name, dtype, times["eager"], times["fastdiff"], speed)


def _backward_row(case: Case, dtype: str, kwargs: dict[str, Any], rounds: int) -> Row:
    kwargs |= {name: kwargs[name].detach().requires_grad_() for name in case.differentiable}
    leaves = [kwargs[name] for name in case.differentiable]
    sides = {}
    for side, function in (("eager", case.eager), ("fastdiff", case.fused)):
        y = function(**kwargs)
        y = y if isinstance(y, torch.Tensor) else y[0]
        grad = torch.empty_like(y).copy_(torch.randn(y.shape))
        sides[side] = functools.partial(torch.autograd.grad, y, leaves, grad, retain_graph=True)
    times = interleave(sides, rounds=rounds)
    return Row(case.op, "backward", case.name, dtype, times["eager"], times["fastdiff"])


def measure_models(device: str, rounds: int) -> list[Row]:
    """U-Nets in float32; eager PyTorch in both memory layouts, of which the faster one counts."""
    rows = []
    for preset, batch in BATCH.items():
        settings = {side: setting(preset, side, device) for side in SIDES}
        for direction, run in (("forward", forward), ("forward and backward", forward_backward)):
            times = interleave(
                {side: functools.partial(run, s) for side, s in settings.items()}, rounds=rounds
            )
            eager = min((times[side] for side in SIDES if side != "fastdiff"), key=lambda t: t.median)
            name = f"{preset}, batch {batch}"
            rows.append(Row("U-Net", direction, name, "float32", eager, times["fastdiff"]))
    return rows


def summary(rows: list[Row]) -> str:
    """Per op, direction and dtype: the median ratio over the cases, and the smallest and largest."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.group, row.direction, row.dtype), []).append(row.ratio)
    lines = ["| | | dtype | cases | times as fast as eager (least to most) |", "|---|---|---|---:|---|"]
    for key, ratios in groups.items():
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        span = f" ({low:.2f} to {high:.2f})" if len(ratios) > 1 else ""
        lines.append(f"| {' | '.join(key)} | {len(ratios)} | **{middle:.2f}**{span} |")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    lines = ["| | | case | dtype | eager ms | fastdiff ms | ratio |", "|---|---|---|---|---:|---:|---:|"]
    for row in rows:
        times = f"{row.eager.median * 1e3:.3f} | {row.fastdiff.median * 1e3:.3f}"
        lines.append(
            f"| {row.group} | {row.direction} | {row.name} | {row.dtype} | {times} | **{row.ratio:.2f}x** |"
        )
    return "\n".join(lines)


def main(only: str | None = None, rounds: int = 15, models: bool = True) -> None:
    """Measure and print.

    Args:
        only: an op's name: leave the others and the models out.
        rounds: turns each side takes.
        models: also measure whole U-Nets.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = measure_ops(device, only, rounds)
    if models and only is None:
        rows += measure_models(device, max(5, rounds // 3))
    about = {
        "device": device_name(device),
        "processor": processor(),
        "backend": backends_in_words(device),
        "torch": torch.__version__,
        "fastdiff": fastdiff.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    print(summary(rows), table(rows), sep="\n\n")
    if only is None:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{about['processor']}-{about['backend']}").strip("-").lower()
        with atomic_path(RESULTS / f"{name}-torch{torch.__version__.split('+')[0]}.json") as path:
            content = {"about": about, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
            Path(path).write_text(json.dumps(content, indent=1) + "\n")


def processor() -> str:
    """The processor's or GPU's model name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    tyro.cli(main)
