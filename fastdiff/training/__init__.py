"""Training: data, loop, averaged weights, checkpoints that resume exactly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.training.config import TrainConfig as TrainConfig
    from fastdiff.training.config_file import read_config as read_config
    from fastdiff.training.loop import TrainResult as TrainResult
    from fastdiff.training.loop import train as train
    from fastdiff.training.optimizer import AdamWEMA as AdamWEMA

# Imported on first use: the command line reads ``training.config`` without PyTorch.
_HOME = {"TrainConfig": "config", "read_config": "config_file", "TrainResult": "loop", "train": "loop"}
_HOME |= {"AdamWEMA": "optimizer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
