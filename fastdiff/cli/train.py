"""``fastdiff train``, whose options are the fields of TrainConfig."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from fastdiff.cli import INTERRUPTED
from fastdiff.training.config import TrainConfig


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a denoiser, an upsampler or a classifier of noisy images on your images.

    Writes checkpoints, a log and, at the end, OUT/model.safetensors. After Ctrl-C, or even if it is killed, the same
    command continues where it stopped. On several GPUs: torchrun --nproc-per-node=N -m fastdiff train ...
    """

    tells_lines: ClassVar[bool] = True  # in place of a bar, where there is no terminal
    # The short forms of these options; defaults and help are TrainConfig's.
    out: Annotated[Path, arg(aliases=["-o"])]
    steps: Annotated[int, arg(aliases=["-s"])] = TrainConfig.steps
    batch_size: Annotated[int, arg(aliases=["-b"])] = TrainConfig.batch_size
    config: Path | None = None
    """File of options in JSON, such as OUT/config.json of another run; options on the command line take precedence."""

    def run(self) -> int:
        from fastdiff.training import train

        log = logging.getLogger("fastdiff")
        level = log.level
        try:
            log.setLevel(logging.ERROR if self.quiet else level)
            return 0 if train(self).model else INTERRUPTED
        finally:
            log.setLevel(level)
