"""``fastdiff train``: the options are the fields of TrainConfig."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Literal

from fastdiff.backend import use_backend
from fastdiff.training import TrainConfig, train


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a denoiser, an upsampler or a classifier on your images: writes checkpoints, a log and, at the end, OUT/model.safetensors.

    Stopped by Ctrl-C, or even killed, the same command goes on where it was.
    """

    backend: Literal["auto", "eager", "reference", "cpu", "triton", "cuda"] = "auto"
    """What the ops run on; "auto" picks the fastest that can."""

    def run(self) -> int:
        with contextlib.nullcontext() if self.backend == "auto" else use_backend(self.backend):
            step, model = train(self)
        if model is None:
            print(
                f"stopped after step {step} of {self.steps}; run the command again to go on", file=sys.stderr
            )
            return 130
        print(f"trained {step} steps\nwrote   {model}")
        return 0
