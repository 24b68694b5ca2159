"""``fastdiff train``, whose options are the fields of TrainConfig."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastdiff.cli import INTERRUPTED
from fastdiff.cli.shared import process
from fastdiff.training.config import TrainConfig


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a denoiser, an upsampler or a classifier of noisy images on your images.

    Writes checkpoints, a log and, at the end, OUT/model.safetensors. After Ctrl-C, or even if it is killed, the same
    command continues where it stopped. On several GPUs: torchrun --nproc-per-node=N -m fastdiff train ...
    """

    # The short forms of these options; defaults and help are TrainConfig's.
    out: Annotated[Path, arg(aliases=["-o"])]
    steps: Annotated[int, arg(aliases=["-s"])] = TrainConfig.steps
    batch_size: Annotated[int, arg(aliases=["-b"])] = TrainConfig.batch_size
    backend: Literal["auto", "eager", "reference", "cpu", "triton", "cuda"] = "auto"
    """Backend of the ops; "auto" picks the fastest one available."""

    augment: str | None = None
    """Augmentation by a Python function or object, such as transforms:train for the name train in transforms.py."""

    def run(self) -> int:
        from fastdiff.backend import use_backend
        from fastdiff.training import train
        from fastdiff.training.augment import import_augment

        with contextlib.nullcontext() if self.backend == "auto" else use_backend(self.backend):
            augment = None if self.augment is None else import_augment(self.augment)
            step, model = train(self, augment=augment)
        if process()[0]:
            return 0 if model else INTERRUPTED  # only the first process prints
        if model is None:
            print(
                f"stopped after step {step} of {self.steps}; run the command again to go on;"
                f" the model so far is {self.out / 'model.safetensors'}",
                file=sys.stderr,
            )
            return INTERRUPTED
        print(f"trained {step} steps\nwrote   {model}")
        return 0
