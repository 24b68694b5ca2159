"""How often is a noisy-image classifier right, by noise level? The table in docs/evaluation.md.

    python benchmarks/evaluation.py [--classifier NAME] [--data FILE] [--n N] [--times 0 100 ...]

Each image is noised to time t once, by Philox noise of its own number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tyro

import fastdiff
from fastdiff.bench.report import table
from fastdiff.evaluation import read_images
from fastdiff.ops.philox import normal, sample_seeds

DATA = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
BATCH = 200


@torch.inference_mode()
def accuracy(model: Any, x0: torch.Tensor, labels: torch.Tensor, t: int) -> float:
    """Share of images whose class the classifier finds at time t."""
    diffusion, right = fastdiff.GaussianDiffusion(model.diffusion), 0
    for rows in torch.arange(len(x0)).split(BATCH):
        times = torch.full((len(rows),), t)
        noise = normal(sample_seeds(len(rows), first=int(rows[0])), x0.shape[1:], step=t)
        logits = model(diffusion.q_sample(x0[rows], times, noise), diffusion.model_time(times))
        right += int((logits.argmax(1) == labels[rows]).sum())
    return right / len(x0)


def main(
    classifier: str = "fashion-mnist-classifier",
    data: Path = DATA,
    n: int | None = None,
    times: tuple[int, ...] = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900),
) -> None:
    """Measure and print.

    Args:
        classifier: Name or file of a classifier.
        data: Images with labels.
        n: Number of images. Default: all.
        times: Timesteps, whose noise level the images get.
    """
    model: Any = fastdiff.load(classifier)
    c, size = model.config.in_channels, model.config.image_size
    found = read_images(data, (c, size, size), fit="pad", num_classes=model.config.num_outputs).first(n)
    assert found.labels is not None, "the data must have labels"
    x0 = found.fetch(torch.arange(len(found))).float() / 127.5 - 1
    alphas_bar = fastdiff.GaussianDiffusion(model.diffusion).alphas_bar
    signal = [f"{float(alphas_bar[t]) ** 0.5:.2f}" for t in times]
    right = [f"{accuracy(model, x0, found.labels, t):.1%}" for t in times]
    print(f"{classifier}: {len(x0)} images of {data.name}\n")
    print(table(["t", *map(str, times)], [["signal √ᾱ", *signal], ["right", *right]]))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
