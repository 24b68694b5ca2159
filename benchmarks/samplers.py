"""How good is each sampler after how many steps? FID on the bundled model, by the bundled classifier's features.

    python benchmarks/samplers.py [--n N] [--nfe 5 10 20 50] [--reference FILE] [--real FILE] [--kept-in FOLDER]

Every sampler makes the same N images (the same seeds and classes) at each number of network evaluations; Heun calls the
network twice a step. Samples are kept in FOLDER, so that a run goes on where it was stopped. Prints Markdown and writes
benchmarks/results/samplers-<machine>.json, which benchmarks/plots.py draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


class Setting(NamedTuple):
    """A model, its name, and how it is sampled."""

    model: Any
    name: str
    sampler: str
    steps: int


@dataclass(frozen=True)
class Data:
    """Images that samples are compared with, and the features that are compared.

    Attributes:
        reference: images that the samples are compared with.
        real: images that are compared with the reference as samples are.
        kept_in: folder of the samples, with a folder for each model.
    """

    reference: Path = DATA / "t10k-images-idx3-ubyte.gz"
    real: Path = DATA / "train-images-idx3-ubyte.gz"
    features_of: str = "fashion-mnist-classifier"
    kept_in: Path = Path("out/samplers")


def compared(settings: Sequence[Setting], n: int, data: Data) -> dict[str, Any]:
    """The tables of a results file: one row per setting, and the real images."""
    features = load_features(data.features_of)
    options = EvaluationOptions(batch_size=100, progress=False)
    reference = Reference(data.reference.name, images=read_images(data.reference, features.shape, fit="pad"))
    real = read_images(data.real, features.shape, fit="pad").first(n)
    first = compare(real, reference, features, options=options, keep=True)
    assert first.statistics is not None
    rows: list[dict[str, Any]] = []
    for model, name, sampler, steps in tqdm(settings, unit="setting"):
        made = samples(model, sampler, steps, n, data.kept_in / name)
        found = compare(made, first.statistics, features, options=options)
        calls = calls_of(model, sampler, steps)
        rows.append({"model": name, "sampler": sampler, "steps": steps, "nfe": calls, **found.values})
    about = {"name": f"{n} images of {data.real.name}", **first.values}
    return {"n": n, "features": features.name, "reference": reference.name, "real": about, "rows": rows}


def load(name: str) -> Any:
    return fastdiff.load(name).to(memory_format=torch.channels_last)  # pyright: ignore


def main(
    n: int = 1000,
    nfe: tuple[int, ...] = (5, 10, 20, 50),
    reference: Path = Data.reference,
    real: Path = Data.real,
    kept_in: Path = Data.kept_in,
    features_of: str = Data.features_of,
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
    model = load(MODEL)
    settings = [Setting(model, MODEL, s, steps_for(model, s, calls)) for calls in nfe for s in samplers]
    content = compared(settings, n, Data(reference, real, features_of, kept_in))
    target = results or RESULTS / files.file_name("samplers")
    about = machine.describe() | {"model": MODEL, "features": content.pop("features")}
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
