"""fastdiff: train and sample ADM-class diffusion models with hand-written fused kernels.

import fastdiff

model = fastdiff.load("fashion-mnist")
images = fastdiff.sample(model, 16, classes=9, sampler="dpmpp", steps=20)   # [16, 1, 32, 32] in [-1, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fastdiff import decision as decision
    from fastdiff import dpm2015 as dpm2015
    from fastdiff.backend import Backend as Backend
    from fastdiff.backend import use_backend as use_backend
    from fastdiff.checkpoint import load as load
    from fastdiff.checkpoint import save as save
    from fastdiff.diffusion.config import DiffusionConfig as DiffusionConfig
    from fastdiff.diffusion.gaussian import GaussianDiffusion as GaussianDiffusion
    from fastdiff.errors import FastdiffError as FastdiffError
    from fastdiff.inference import optimize as optimize
    from fastdiff.interop.diffusers.accelerate import accelerate as accelerate
    from fastdiff.interop.export import export as export
    from fastdiff.ops import attention as attention
    from fastdiff.ops import bernoulli_step as bernoulli_step
    from fastdiff.ops import conv2d as conv2d
    from fastdiff.ops import group_norm_silu as group_norm_silu
    from fastdiff.ops import reverse_step as reverse_step
    from fastdiff.sampling.api import Sampler as Sampler
    from fastdiff.sampling.api import encode as encode
    from fastdiff.sampling.api import sample as sample
    from fastdiff.sampling.api import sample_batches as sample_batches
    from fastdiff.sampling.api import to_uint8 as to_uint8
    from fastdiff.sampling.cascade import cascade as cascade
    from fastdiff.sampling.cascade import upsample as upsample
    from fastdiff.sampling.conditions import Denoise as Denoise
    from fastdiff.sampling.conditions import Guide as Guide
    from fastdiff.sampling.conditions import Inpaint as Inpaint
    from fastdiff.sampling.conditions import Observe as Observe
    from fastdiff.sampling.interpolate import interpolate as interpolate
    from fastdiff.sampling.progress import Progress as Progress
    from fastdiff.sampling.restoration import colourise as colourise
    from fastdiff.sampling.restoration import denoise as denoise
    from fastdiff.sampling.restoration import inpaint as inpaint
    from fastdiff.sampling.restoration import super_resolve as super_resolve
    from fastdiff.zoo import PRESETS as PRESETS

# Imported on first use, so that `import fastdiff` costs next to nothing beyond torch.
_HOME = {
    "Backend": "backend",
    "use_backend": "backend",
    "load": "checkpoint",
    "save": "checkpoint",
    "DiffusionConfig": "diffusion.config",
    "GaussianDiffusion": "diffusion.gaussian",
    "optimize": "inference",
    "FastdiffError": "errors",
    "accelerate": "interop.diffusers.accelerate",
    "export": "interop.export",
    "attention": "ops",
    "bernoulli_step": "ops",
    "conv2d": "ops",
    "group_norm_silu": "ops",
    "reverse_step": "ops",
    "Sampler": "sampling.api",
    "encode": "sampling.api",
    "sample": "sampling.api",
    "sample_batches": "sampling.api",
    "to_uint8": "sampling.api",
    "cascade": "sampling.cascade",
    "upsample": "sampling.cascade",
    "interpolate": "sampling.interpolate",
    "Progress": "sampling.progress",
    "Denoise": "sampling.conditions",
    "Guide": "sampling.conditions",
    "Inpaint": "sampling.conditions",
    "Observe": "sampling.conditions",
    "colourise": "sampling.restoration",
    "denoise": "sampling.restoration",
    "inpaint": "sampling.restoration",
    "super_resolve": "sampling.restoration",
    "PRESETS": "zoo",
}

_ROOMS = {"decision", "dpm2015"}  # packages of their own, used as fastdiff.<room>.<name>

__all__ = ["__version__", *sorted(_HOME), *sorted(_ROOMS)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"fastdiff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastdiff.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
