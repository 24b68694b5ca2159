"""How fast is training? ``fastdiff train`` on its own ops beside the same run of the bundled model on eager PyTorch.

    python benchmarks/training.py [--rounds N] [--batch-size N] [--data FILE]

Everything counts that a run does between two checkpoints: images drawn and noised, loss, backward, clipping, AdamW and
the moving average. The sides take turns of a few steps in one run; medians with 20% and 80% quantiles. Prints Markdown
and writes ``benchmarks/results/training-<machine>.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from parts import RESULTS

from fastdiff.bench import machine, results
from fastdiff.bench.clock import interleave
from fastdiff.bench.report import table
from fastdiff.bench.sides import call_on
from fastdiff.choices import Precision
from fastdiff.training import TrainConfig
from fastdiff.training.loop import Trainer

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
EAGER = "eager PyTorch, channels_last"


@dataclass(frozen=True)
class Options:
    """Time training runs of the bundled model."""

    data: Path | None = None
    """Images, as for `fastdiff train`. Default: random images, which take the same time."""
    batch_size: int = 64
    """Images per step."""
    rounds: int = 9
    """Number of turns of each side."""
    seconds: float = 2.0
    """Duration of a turn in seconds; a turn makes at least one step."""
    threads: int | None = None
    """Number of threads. Default: PyTorch's."""
    out: Path | None = None
    """Results file. Default: benchmarks/results/training-<machine>.json."""


def random_images(path: Path) -> Path:
    """An .npz of the shapes of Fashion-MNIST on its black square."""
    g = np.random.default_rng(0)
    np.savez(path, images=g.integers(0, 256, (2000, 32, 32), np.uint8), labels=np.arange(2000) % 10)
    return path


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or random_images(Path(folder) / "random.npz")
        sides: dict[str, Callable[[], object]] = {}
        for precision in PRECISIONS:
            for name, backend in ((EAGER, "eager"), ("fastdiff", None)):
                out = Path(folder) / f"{precision}-{name}"
                config = TrainConfig(
                    data=data,
                    out=out,
                    image_size=32,
                    batch_size=options.batch_size,
                    precision=precision,
                    device="cpu",
                    progress=False,
                )
                sides[f"{precision}, {name}"] = call_on(backend, Trainer(config).update)
        times = interleave(sides, rounds=options.rounds, seconds=options.seconds)
    rows: list[dict[str, Any]] = []
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
    head = ("training run", "eager PyTorch, images/s", "fastdiff, images/s", "times as fast")
    speeds = ("eager_images_per_second", "fastdiff_images_per_second")
    cells = [[*(f"{row[side]:.1f}" for side in speeds), f"**{row['ratio']:.2f}**"] for row in rows]
    print(table(head, [[row["precision"], *rest] for row, rest in zip(rows, cells, strict=True)]))
    about = machine.describe() | {"batch_size": options.batch_size}
    results.write(options.out or RESULTS / results.file_name("training"), about, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
