"""What does the bundled colour model draw, and how soon? Its pictures in docs/emoji.md, and seconds per image.

    python benchmarks/emoji.py [--pictures-in docs/img] [--model emoji] [--upsampler emoji-upsampler]

Draws emoji.png (the cascade to 128 pixels), emoji_cascade.png (both of its sizes), emoji_guidance.png (guidance scales)
and emoji_samplers.png (samplers after 4, 8 and 20 steps), each class in a column and each from the same noise in all
rows. Prints seconds per image of each model and writes benchmarks/results/emoji-<machine>.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from parts import RESULTS
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import fastdiff
from fastdiff.bench import machine
from fastdiff.bench import results as files
from fastdiff.bench.clock import repeated, timings
from fastdiff.images import grid
from fastdiff.sampling.options import SamplerOptions

GUIDANCE = 3.0  # of all pictures but the one that compares scales
SCALES = (1.0, 2.0, 3.0, 5.0)
SAMPLERS = ("ancestral", "ddim", "dpmpp", "unipc")
STEPS = (4, 8, 20)
ENLARGING: SamplerOptions = {"sampler": "ancestral", "steps": 8}  # means are kept
_LABEL = 110  # pixels of the column of labels


class Maker:
    """Images of both models, one or more of each class."""

    def __init__(self, model: str, upsampler: str, seed: int) -> None:
        self.base: Any = fastdiff.load(model)
        self.upsampler: Any = fastdiff.load(upsampler)
        self.names = list(self.base.class_names)
        self.seed = seed

    def small(self, rows: int = 1, scale: float = GUIDANCE, **options: Any) -> Tensor:
        """[rows x classes, 3, 64, 64] in [-1, 1]."""
        count = len(self.names)
        return fastdiff.sample(
            self.base,
            rows * count,
            classes=[*range(count)] * rows,
            seed=self.seed,
            guidance_scale=None if scale == 1 else scale,
            progress=False,
            **options,
        )

    def large(self, small: Tensor) -> Tensor:
        """The small images, enlarged: [N, 3, 128, 128] in [-1, 1]."""
        classes = torch.arange(len(small)) % len(self.names)
        return fastdiff.upsample(
            self.upsampler,
            small,
            classes=classes,
            seed=self.seed,
            keep_means=True,
            progress=False,
            **ENLARGING,
        )


def pixels(images: Tensor) -> np.ndarray:
    return fastdiff.to_uint8(images).numpy()


def labelled(rows: Mapping[str, Tensor], columns: list[str], tile: int = 64) -> Image.Image:
    """A row of images for each label, which stands on its left; the columns' names stand below."""
    strips = [
        grid(pixels(images), columns if last else None, columns=len(columns), tile=tile)
        for images, last in zip(rows.values(), [False] * (len(rows) - 1) + [True], strict=True)
    ]
    heights = [strip.height for strip in strips]
    picture = Image.new("RGB", (_LABEL + strips[0].width, sum(heights)), "white")
    draw, top = ImageDraw.Draw(picture), 0
    for label, strip in zip(rows, strips, strict=True):
        picture.paste(strip, (_LABEL, top))
        draw.text((8, top + heights[0] / 2), label, "#202020", ImageFont.load_default(13), anchor="lm")
        top += strip.height
    return picture


def draw(maker: Maker, folder: Path, rows: int) -> None:
    """The four pictures."""
    small = maker.small(rows)
    large, count = maker.large(small), len(maker.names)
    made = {"emoji": grid(pixels(large), columns=count, tile=128)}
    twice = small[:count].repeat_interleave(2, 2).repeat_interleave(2, 3)
    made["emoji_cascade"] = labelled({"64 pixels": twice, "128 pixels": large[:count]}, maker.names, 128)
    made["emoji_guidance"] = labelled(
        {f"guidance {scale:g}" if scale > 1 else "none": maker.small(1, scale) for scale in SCALES},
        maker.names,
    )
    ways = [(sampler, steps) for sampler in SAMPLERS for steps in STEPS]
    made["emoji_samplers"] = labelled(
        {f"{sampler}, {steps}": maker.small(sampler=sampler, steps=steps) for sampler, steps in ways},
        maker.names,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in made.items():
        picture.save(folder / f"{name}.png", optimize=True)


def speed(maker: Maker, rounds: int) -> dict[str, Any]:
    """Seconds of an image, of each model by itself, in a batch with one image of each class."""
    small = maker.small()
    sides = {"emoji": maker.small, "emoji-upsampler": lambda: maker.large(small)}
    found = timings({name: repeated(side) for name, side in sides.items()}, rounds)
    return {
        name: {
            "seconds_per_image": time.median / len(small),
            "pixels": size,
            "steps": steps,
            "guidance": scale,
        }
        for (name, time), size, steps, scale in zip(
            found.items(), (64, 128), (20, 8), (GUIDANCE, None), strict=True
        )
    }


def main(
    pictures_in: Path | None = None,
    model: str = "emoji",
    upsampler: str = "emoji-upsampler",
    rows: int = 2,
    rounds: int = 3,
    seed: int = 0,
    results: Path | None = None,
) -> None:
    """Draw with the bundled colour model, and time it.

    Args:
        pictures_in: Folder of the pictures. Default: they are not drawn.
        model: The denoiser.
        upsampler: The model that enlarges its images.
        rows: Rows of emoji.png.
        rounds: Turns of the clock.
        seed: Random seed of all pictures.
        results: Results file. Default: benchmarks/results/emoji-<machine>.json.
    """
    maker = Maker(model, upsampler, seed)
    if pictures_in is not None:
        draw(maker, pictures_in, rows)
    found = speed(maker, rounds)
    target = results or RESULTS / files.file_name("emoji")
    files.write(target, machine.describe(), rows=found)
    for name, row in found.items():
        print(
            f"{name}: {row['seconds_per_image']:.2f} s for an image of {row['pixels']} pixels, {row['steps']} steps"
        )
    print(f"wrote {target.name}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
