"""A picture of what a model has learned so far."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdiff.images import grid
from fastdiff.models import UNet
from fastdiff.sampling.api import sample, to_uint8
from fastdiff.sampling.cascade import upsample

ROWS, COLUMNS = 4, 10
HELD = 8  # images that an upsampler's picture shows
STEPS = 20


def samples(model: UNet) -> Image.Image:
    """A grid of samples, always from the same noise, with the classes in turn if the model has any."""
    n = ROWS * COLUMNS
    classes = None
    if model.config.num_classes is not None:
        classes = torch.arange(n) % model.config.num_classes
    images = sample(model, n, classes=classes, sampler="dpmpp", steps=STEPS, progress=False)
    return grid(to_uint8(images).cpu().numpy(), columns=COLUMNS, tile=64)


def enlarged(model: UNet, originals: Tensor, small: Tensor, labels: Tensor | None) -> Image.Image:
    """Three rows: small images, each pixel a square; enlarged by the model; as they were.

    Args:
        model: an upsampler.
        originals: [N,C,H,W] in [-1, 1]. small: the same, reduced. labels: their classes.
    """
    made = upsample(model, small, classes=labels, sampler="dpmpp", steps=STEPS, progress=False)
    squares = torch.nn.functional.interpolate(small, size=originals.shape[2:], mode="nearest")
    rows = [to_uint8(images).cpu().numpy() for images in (squares, made, originals)]
    return grid(np.concatenate(rows), columns=len(originals), tile=64)
