"""Training runs of the bundled model: ``fastdiff train`` on its own ops beside the same run on eager PyTorch.

    python benchmarks/training.py [--rounds N] [--batch-size N] [--data FILE]

Everything counts that a run does between two checkpoints: images drawn and noised, loss, backward, clipping, AdamW and
the moving average. The sides take turns of a few steps in one run; medians with 20% and 80% quantiles. Prints Markdown
and writes ``benchmarks/results/training-<processor>.json``.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from engine import slug
from ratios import RESULTS, processor
from timing import interleave

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.files import atomic_path
from fastdiff.ops import _library
from fastdiff.training import TrainConfig
from fastdiff.training.config import Precision
from fastdiff.training.loop import Trainer

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
EAGER = "eager PyTorch, channels_last"


@dataclass(frozen=True)
class Options:
    """Time training runs of the bundled model."""

    data: Path | None = None  # images as for `fastdiff train`; left out, random ones: they take the same time
    batch_size: int = 64
    rounds: int = 9  # turns each side takes
    seconds: float = 2.0  # a turn lasts at least a step, and about this
    threads: int | None = None  # None = as many as PyTorch takes


def random_images(path: Path) -> Path:
    """An .npz of the shapes of Fashion-MNIST on its black square."""
    g = np.random.default_rng(0)
    np.savez(path, images=g.integers(0, 256, (2000, 32, 32), np.uint8), labels=np.arange(2000) % 10)
    return path


def run(config: TrainConfig, backend: str | None) -> Callable[[], object]:
    """Makes one step of a run of its own at each call."""
    trainer = Trainer(config)

    def step() -> None:
        with use_backend(backend) if backend else contextlib.nullcontext():
            trainer._update()

    return step


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or random_images(Path(folder) / "random.npz")
        sides = {}
        for precision in PRECISIONS:
            for name, backend in ((EAGER, "eager"), ("fastdiff", None)):
                out = Path(folder) / f"{precision}-{name}"
                sides[f"{precision}, {name}"] = run(
                    TrainConfig(
                        data=data, out=out, batch_size=options.batch_size, precision=precision, progress=False
                    ),
                    backend,
                )
        times = interleave(sides, rounds=options.rounds, seconds=options.seconds)
    rows = []
    for precision in PRECISIONS:
        eager, own = (times[f"{precision}, {name}"] for name in (EAGER, "fastdiff"))
        rows.append(
            {
                "precision": precision,
                "eager_images_per_second": options.batch_size / eager.median,
                "fastdiff_images_per_second": options.batch_size / own.median,
                "ratio": eager.median / own.median,
                "seconds_a_step": {EAGER: asdict(eager), "fastdiff": asdict(own)},
            }
        )
    print(
        "| training run | eager PyTorch, images/s | fastdiff, images/s | times as fast |\n|---|---:|---:|---:|"
    )
    for row in rows:
        own, eager = row["fastdiff_images_per_second"], row["eager_images_per_second"]
        print(f"| {row['precision']} | {eager:.1f} | {own:.1f} | **{row['ratio']:.2f}** |")
    about = {
        "device": processor(),
        "kernels": str(_library.instruction_set()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fastdiff": fastdiff.__version__,
        "date": datetime.date.today().isoformat(),
        "batch_size": options.batch_size,
        "command": shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]]),
    }
    with atomic_path(RESULTS / f"training-{slug(processor())}.json") as path:
        path.write_text(json.dumps({"about": about, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
