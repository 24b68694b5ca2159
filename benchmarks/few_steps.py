"""What do few steps cost in quality, and what do they save? The bundled few-step model beside its teacher.

    python benchmarks/few_steps.py [--n N] [--nfe 2 4 8 20] [--few 1 2 4] [--samplers dpmpp ...] [--kept-in FOLDER]

The teacher makes N images by each sampler at each number of network calls, the few-step model by its own, all from the
same seeds and classes: FID, precision and recall on the bundled classifier's features. Then both are timed in
alternation. Samples are kept in FOLDER, so that a run goes on where it was stopped. Prints Markdown and writes
benchmarks/results/few_steps-<machine>.json, which benchmarks/plots.py draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from parts import RESULTS
from parts.plots import few_steps as pictures
from samplers import Data, Setting, compared, load, markdown, steps_for

import fastdiff
from fastdiff.bench import machine
from fastdiff.bench import results as files
from fastdiff.bench.clock import repeated, timings
from fastdiff.choices import SamplerName
from fastdiff.evaluation import read_images
from fastdiff.ops.philox import sample_seeds

TEACHER, FEW = "fashion-mnist", "fashion-mnist-few"
# Models are trained for consistency and LCM; restart without restarts is heun; dpm_adaptive chooses how many calls.
_OTHERS = ("consistency", "lcm", "restart", "dpm_adaptive")
COMPARED: tuple[SamplerName, ...] = tuple(name for name in get_args(SamplerName) if name not in _OTHERS)
ROWS = 2  # of each way in the picture of samples


def speed(ways: list[Setting], images: int, rounds: int) -> list[dict[str, Any]]:
    """Images a second of each way to sample, in alternation."""
    classes = torch.arange(images) % 10

    def call(way: Setting) -> Any:
        method: Any = way.sampler
        sampler = fastdiff.Sampler(way.model, sampler=method, steps=way.steps)
        return lambda: sampler(images, classes=classes, progress=False)

    found = timings({f"{way.name}, {way.steps}": repeated(call(way)) for way in ways}, rounds)
    return [
        {
            "model": way.name,
            "sampler": way.sampler,
            "steps": way.steps,
            "images_per_second": images / t.median,
        }
        for way, t in zip(ways, found.values(), strict=True)
    ]


def shown(ways: list[Setting]) -> dict[str, Any]:
    """Images [10 ROWS,H,W] uint8 of each way, by its caption: all classes, from the same seeds."""
    count = 10 * ROWS
    made = {}
    for way in ways:
        method: Any = way.sampler
        calls = "1 step" if way.steps == 1 else f"{way.steps} steps"
        x = fastdiff.sample(
            way.model,
            count,
            classes=torch.arange(count) % 10,
            seeds=sample_seeds(count),
            sampler=method,
            steps=way.steps,
            progress=False,
        )
        made[f"{calls}{' of the teacher' * (way.name == TEACHER)}"] = fastdiff.to_uint8(x).numpy()[..., 0]
    return made


def edited(model: Any, data: Path) -> dict[str, Any]:
    """Columns of images [4,H,W] uint8 by caption: test images, their block averages, and enlargements of those."""
    chosen = torch.tensor([0, 1, 18, 8])  # an ankle boot, a pullover, a bag and a sandal
    found = read_images(data, (1, 32, 32), fit="pad", num_classes=10)
    assert found.labels is not None, "the data must have labels"
    pixels = found.fetch(chosen)
    small = torch.nn.functional.avg_pool2d(pixels.float() / 127.5 - 1, 4)
    classes = found.labels[chosen].repeat_interleave(3)
    large = fastdiff.super_resolve(model, small, 3, classes=classes, progress=False)
    made = fastdiff.to_uint8(large).reshape(4, 3, 32, 32).numpy()
    squares = fastdiff.to_uint8(small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    first = {"the image": pixels[:, 0].numpy(), "its averages": squares[..., 0].numpy()}
    return first | {f"enlarged, {k + 1}": made[:, k] for k in range(3)}


def main(
    n: int = 1000,
    nfe: tuple[int, ...] = (2, 4, 8, 20),
    few: tuple[int, ...] = (1, 2, 4),
    samplers: tuple[SamplerName, ...] = COMPARED,
    reference: Path = Data.reference,
    real: Path = Data.real,
    kept_in: Path = Path("out/few_steps"),
    batch: int = 64,
    rounds: int = 5,
    pictures_in: Path | None = None,
    results: Path | None = None,
) -> None:
    """Sample, evaluate, time and print.

    Args:
        n: Number of images of each way to sample.
        nfe: Numbers of the teacher's network calls per image.
        few: Numbers of the few-step model's.
        samplers: Samplers of the teacher.
        reference: Images that the samples are compared with.
        real: Images that are compared with the reference as samples are.
        kept_in: Folder of the samples.
        batch: Images that are sampled at once when the clock runs.
        rounds: Turns of the clock.
        pictures_in: Folder for few_steps_samples.png and few_steps_editing.png. Default: they are not drawn.
        results: Results file. Default: benchmarks/results/few_steps-<machine>.json.
    """
    teacher, student = load(TEACHER), load(FEW)
    own = [Setting(student, FEW, "consistency", steps) for steps in few]
    best = Setting(teacher, TEACHER, "dpmpp", 20)
    if pictures_in is not None:
        pictures.samples(shown([*own, best]), list(student.class_names), pictures_in)
        pictures.editing(edited(student, reference), pictures_in)
    taught = [Setting(teacher, TEACHER, s, steps_for(teacher, s, calls)) for calls in nfe for s in samplers]
    content = compared([*own, *taught], n, Data(reference, real, kept_in=kept_in))
    about = machine.describe() | {"models": [TEACHER, FEW], "features": content.pop("features")}
    content["speed"] = speed([best, Setting(student, FEW, "consistency", 2)], batch, rounds)
    target = results or RESULTS / files.file_name("few_steps")
    files.write(target, about, **content)
    print(markdown(content))
    for row in content["speed"]:
        print(f"\n{row['model']}, {row['steps']} steps: {row['images_per_second']:.1f} images/s")
    print(f"\nwrote {target.name}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
