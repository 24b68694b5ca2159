"""One of several processes, under torchrun: ``world.py RUNS.json`` trains one run after another in one group.

A run is the options of a TrainConfig; ``_interrupt`` or ``_fail`` = [rank, step] lets that process be interrupted, or
break, before that step. What a run raised is left in OUT/error-RANK.txt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.update import Update

MAKE_STEP = Update.__call__


def main(runs: list[dict[str, Any]]) -> None:
    dist.init_process_group("gloo")
    # torchrun ends the processes beside a broken one by this; what they raise is to be seen first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for run in runs:
        disturb(run.pop("_interrupt", None), run.pop("_fail", None))
        run |= {name: Path(run[name]) for name in ("data", "val_data", "out")}
        config = TrainConfig(**run)
        try:
            train(config)
        except (FastdiffError, ZeroDivisionError) as error:
            (config.out / f"error-{dist.get_rank()}.txt").write_text(f"{type(error).__name__}: {error}")
            os._exit(2)  # as a process that breaks
    dist.destroy_process_group()


def disturb(interrupt: list[int] | None, fail: list[int] | None) -> None:
    """The next run is interrupted, or fails, on one rank before one step."""

    def step(self: Update) -> Tensor:
        here = [dist.get_rank(), self.state.step]
        if here == interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        if here == fail:
            raise ZeroDivisionError
        return MAKE_STEP(self)

    Update.__call__ = step


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
