"""``fastdiff train``: the options are the fields of TrainConfig."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Literal

from fastdiff.backend import use_backend
from fastdiff.cli import INTERRUPTED
from fastdiff.cli.parts import process
from fastdiff.training import TrainConfig, train


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a denoiser, an upsampler or a classifier of noisy images on your images.

    Writes checkpoints, a log and, at the end, OUT/model.safetensors. Stopped by Ctrl-C, or even killed, the same
    command goes on where it was. On several GPUs: torchrun --nproc-per-node=N -m fastdiff train ...
    """

    backend: Literal["auto", "eager", "reference", "cpu", "triton", "cuda"] = "auto"
    """What the ops run on; "auto" picks the fastest that can."""

    def run(self) -> int:
        with contextlib.nullcontext() if self.backend == "auto" else use_backend(self.backend):
            step, model = train(self)
        if process()[0]:
            return 0 if model else INTERRUPTED  # the first process speaks for all
        if model is None:
            print(
                f"stopped after step {step} of {self.steps}; run the command again to go on;"
                f" the model so far is {self.out / 'model.safetensors'}",
                file=sys.stderr,
            )
            return INTERRUPTED
        print(f"trained {step} steps\nwrote   {model}")
        return 0
