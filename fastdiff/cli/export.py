"""``fastdiff export``: a model in a format that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.cli.options import Checkpoint, DType, Preset, Weights
from fastdiff.files import writing


@dataclass(frozen=True)
class Export:
    """Write a model for other programs: safetensors, ONNX, torch.export, or a folder for diffusers.

    The end of TARGET says which: model.safetensors (weights and configuration), model.onnx and model.pt2 (the network
    alone, as a graph of plain operators, for any number of images), or a new folder (diffusers' UNet2DModel and
    DDPMScheduler). What a format cannot represent is an error, and what it does not hold is printed.
    """

    target: Annotated[Positional[Path], arg(metavar="TARGET")]
    """File that ends in .safetensors, .onnx or .pt2, or a new folder for diffusers."""
    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    dtype: DType = "float32"

    def run(self) -> int:
        import torch

        dtype = getattr(torch, self.dtype)
        model = fastdiff.load(self.checkpoint, preset=self.preset, weights=self.weights, dtype=dtype)
        with writing(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
        lost = fastdiff.export(model, self.target)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"exported   {parameters / 1e6:.1f} million parameters in {self.dtype}")
        print(f"wrote      {self.target}")
        if lost:
            print(f"note       {lost}")
        return 0
