"""The table of the README: fastdiff against eager PyTorch, turn by turn in one run, ratios of medians.

    python benchmarks/ratios.py [--only OP] [--rounds N] [--no-models]

Prints Markdown and writes ``benchmarks/results/<device>-torch<version>.json``.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from timing import Timing, interleave
from tqdm import tqdm

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.cli.info import backend_name, device_name
from fastdiff.files import atomic_path
from fastdiff.ops.cases import CASES
from fastdiff.zoo import PRESETS

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = {"fashion-mnist": 16, "ddpm-cifar10": 4}  # preset -> batch


@dataclass(frozen=True)
class Row:
    """One comparison."""

    group: str
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
            kwargs = case.inputs(dtype, device)
            with torch.inference_mode():
                eager = case.baseline or case.eager
                times = interleave(
                    {"eager": lambda: eager(**kwargs), "fastdiff": lambda: case.fused(**kwargs)},  # noqa: B023
                    rounds=rounds,
                )
            speed = case.elements * dtype.itemsize / times["fastdiff"].median / 1e9 if case.elements else None
            rows.append(Row(case.op, case.name, name, times["eager"], times["fastdiff"], speed))
    return rows


def measure_models(device: str, rounds: int) -> list[Row]:
    """One forward pass of a U-Net: eager as a user runs it today (contiguous), fastdiff in channels_last."""
    from fastdiff.models import UNet

    rows = []
    for preset, batch in MODELS.items():
        config = PRESETS[preset].model
        torch.manual_seed(0)
        model = UNet(config).to(device).eval()
        fast = UNet(config).to(device).eval().to(memory_format=torch.channels_last)
        x = torch.randn(batch, config.in_channels, config.image_size, config.image_size, device=device)
        cond: dict[str, Any] = {}
        if config.num_classes:
            cond["y"] = torch.arange(batch, device=device) % config.num_classes
        t = torch.full((batch,), 500, device=device)

        def eager(model: Any = model, x: Any = x, t: Any = t, cond: Any = cond) -> Any:
            with use_backend("eager"):
                return model(x, t, **cond)

        last = x.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            times = interleave(
                {"eager": eager, "fastdiff": lambda: fast(last, t, **cond)},  # noqa: B023
                rounds=rounds,
            )
        rows.append(
            Row("U-Net forward", f"{preset}, batch {batch}", "float32", times["eager"], times["fastdiff"])
        )
    return rows


def table(rows: list[Row]) -> str:
    lines = ["| | case | dtype | eager ms | fastdiff ms | ratio |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        times = f"{row.eager.median * 1e3:.3f} | {row.fastdiff.median * 1e3:.3f}"
        lines.append(f"| {row.group} | {row.name} | {row.dtype} | {times} | **{row.ratio:.2f}x** |")
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
        "backend": backend_name(device),
        "torch": torch.__version__,
        "fastdiff": fastdiff.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    print(table(rows))
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
