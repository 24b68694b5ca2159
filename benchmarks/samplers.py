"""How good is each sampler after how many steps? FID on the bundled model, by the bundled classifier's features.

    python benchmarks/samplers.py [--n N] [--nfe 5 10 20 50] [--reference FILE] [--real FILE] [--kept-in FOLDER]

Every sampler makes the same N images (the same seeds and classes) at each number of network evaluations; Heun calls the
network twice a step. Samples are kept in FOLDER, so that a run goes on where it was stopped. Prints Markdown and writes
benchmarks/results/samplers-<machine>.json, which benchmarks/plots.py draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from parts import RESULTS
from tqdm import tqdm

import fastdiff
from fastdiff.bench import machine
from fastdiff.bench import results as files
from fastdiff.bench.report import table
from fastdiff.choices import SamplerName
from fastdiff.evaluation import Images, Reference, load_features, read_images
from fastdiff.evaluation.metrics import METRICS, EvaluationOptions, compare
from fastdiff.files import atomic_path
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.samplers import SAMPLERS

DATA = Path("/usr/share/datasets/fashion-mnist")
COMPARED: tuple[SamplerName, ...] = ("ancestral", "ddim", "euler", "heun", "dpmpp")
MODEL, PART, BATCH = "fashion-mnist", 250, 50  # images in a file, and at a time


def calls_of(model: Any, sampler: Any, steps: int) -> int:
    return fastdiff.Sampler(model, sampler=sampler, steps=steps).calls


def steps_for(model: Any, sampler: str, nfe: int) -> int:
    """The most steps that ``nfe`` network calls are enough for."""
    return max(steps for steps in range(1, nfe + 1) if calls_of(model, sampler, steps) <= nfe)


def samples(model: Any, sampler: str, steps: int, n: int, folder: Path) -> Images:
    """[n,1,32,32] uint8, classes in turn, from the files that are there and the sampler."""
    parts = []
    for first in range(0, n, PART):
        file, count = folder / f"{sampler}-{steps}" / f"{first:06d}.npy", min(PART, n - first)
        if not file.exists() or len(np.load(file, mmap_mode="r")) < count:
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = torch.arange(first, first + count)
            options: dict[str, Any] = {
                "sampler": sampler,
                "steps": steps,
                "batch_size": BATCH,
                "progress": False,
            }
            seeds = sample_seeds(count, first=first)
            x = fastdiff.sample(model, count, classes=rows % 10, seeds=seeds, **options)
            with atomic_path(file) as path, open(path, "wb") as opened:
                np.save(opened, fastdiff.to_uint8(x).numpy())
        parts.append(torch.from_numpy(np.load(file)[:count]).movedim(-1, 1))
    return Images(torch.cat(parts), f"{sampler}, {steps} steps")


def main(
    n: int = 1000,
    nfe: tuple[int, ...] = (5, 10, 20, 50),
    reference: Path = DATA / "t10k-images-idx3-ubyte.gz",
    real: Path = DATA / "train-images-idx3-ubyte.gz",
    kept_in: Path = Path("out/samplers"),
    features_of: str = "fashion-mnist-classifier",
    samplers: tuple[SamplerName, ...] = COMPARED,
    results: Path | None = None,
) -> None:
    """Sample, evaluate and print.

    Args:
        n: Number of images per sampler and number of network calls.
        nfe: Numbers of network calls per image (NFE).
        reference: Images that the samples are compared with.
        real: Images that are compared with the reference as samples are.
        kept_in: Folder of the samples.
        features_of: Classifier whose features are compared.
        samplers: Samplers to compare.
        results: Results file. Default: benchmarks/results/samplers-<machine>.json.
    """
    model: Any = fastdiff.load(MODEL).to(memory_format=torch.channels_last)  # pyright: ignore
    features = load_features(features_of)
    options = EvaluationOptions(batch_size=100, progress=False)
    shape = features.shape
    others = Reference(str(reference.name), images=read_images(reference, shape, fit="pad"))
    first = compare(
        read_images(real, shape, fit="pad").first(n), others, features, options=options, keep=True
    )
    assert first.statistics is not None
    settings = [(s, steps_for(model, s, calls)) for calls in nfe for s in samplers]
    rows: list[dict[str, Any]] = []
    for sampler, steps in tqdm(settings, unit="setting"):
        found = compare(
            samples(model, sampler, steps, n, kept_in), first.statistics, features, options=options
        )
        calls = calls_of(model, sampler, steps)
        rows.append({"sampler": sampler, "steps": steps, "nfe": calls, **found.values})
    about = machine.describe() | {"model": MODEL, "features": features.name}
    content = {
        "n": n,
        "reference": others.name,
        "real": {"name": f"{n} images of {real.name}", **first.values},
        "rows": rows,
    }
    target = results or RESULTS / files.file_name("samplers")
    files.write(target, about, **content)
    print(markdown(content))
    print(f"\nwrote {target.name}")


def markdown(content: dict[str, Any]) -> str:
    """One row per sampler and number of calls."""
    heads = ["sampler", "steps", "network calls", *(METRICS[name].title for name in METRICS)]
    body = [
        [r["sampler"], str(r["steps"]), str(r["nfe"]), *(_number(r[name]) for name in METRICS)]
        for r in sorted(content["rows"], key=lambda r: (list(SAMPLERS).index(r["sampler"]), r["nfe"]))
    ]
    real = content["real"]
    body.append(["real images", "", "", *(_number(real[name]) for name in METRICS)])
    return table(heads, body)


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
