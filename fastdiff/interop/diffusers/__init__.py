"""diffusers on the fused ops: ``accelerate`` for models and pipelines, schedulers whose step is one launch, and ADM
U-Nets as ``UNet2DModel`` and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.interop.diffusers.accelerate import Accelerated as Accelerated
    from fastdiff.interop.diffusers.accelerate import accelerate as accelerate
    from fastdiff.interop.diffusers.beta_schedulers import FastDDIMScheduler as FastDDIMScheduler
    from fastdiff.interop.diffusers.beta_schedulers import FastDDPMScheduler as FastDDPMScheduler
    from fastdiff.interop.diffusers.convert import from_unet2d as from_unet2d
    from fastdiff.interop.diffusers.convert import to_unet2d as to_unet2d
    from fastdiff.interop.diffusers.sigma_schedulers import (
        FastDPMSolverMultistepScheduler as FastDPMSolverMultistepScheduler,
    )
    from fastdiff.interop.diffusers.sigma_schedulers import (
        FastEulerDiscreteScheduler as FastEulerDiscreteScheduler,
    )

# The schedulers derive from diffusers' classes, so that they are made on first use.
_HOME = {
    "Accelerated": "accelerate",
    "accelerate": "accelerate",
    "FastDDIMScheduler": "beta_schedulers",
    "FastDDPMScheduler": "beta_schedulers",
    "FastDPMSolverMultistepScheduler": "sigma_schedulers",
    "FastEulerDiscreteScheduler": "sigma_schedulers",
    "from_unet2d": "convert",
    "to_unet2d": "convert",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
