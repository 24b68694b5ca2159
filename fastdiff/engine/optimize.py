"""optimize(model): in place, undone by restore(model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fastdiff.engine.unet import FusedUNet
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet

M = TypeVar("M", bound=nn.Module)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Report:
    """What ``optimize`` did, in bytes and words."""

    packed_bytes: int


def optimize(model, dtype=None):
    model.denoise = FusedUNet(model, dtype or model.dtype)
    return model


def restore(model):
    del model.denoise
