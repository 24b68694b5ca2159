"""``optimize(model)``: in place, until ``restore()``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.backend import Backend, forced
from fastdiff.errors import FastdiffError
from fastdiff.inference.diffusers_unet import FusedUNet2D, unet2d_class
from fastdiff.inference.freeing import FreedWeights, copy_what_stays
from fastdiff.inference.packed import PackedConv
from fastdiff.inference.trunk import FusedTrunk, FusedUNet
from fastdiff.models import UNet
from fastdiff.ops._library import DTYPES
from fastdiff.ops.conv2d import forward_op as conv2d_op


class Optimized:
    """Handle of an optimized model: its memory, packing again, and undoing."""

    def __init__(self, fused: FusedTrunk, *, free_weights: bool) -> None:
        self.model, self.dtype = fused.model, fused.dtype
        self._fused = fused
        self._freed: list[FreedWeights] = []
        if free_weights:
            copy_what_stays(self.model, fused.unpacked())
        for packed in fused.unpacked():
            packed.refresh()
            if free_weights and isinstance(packed, PackedConv):
                self._freed.append(FreedWeights(packed))  # now: no two copies of all the weights at any time
        setattr(self.model, fused.method, fused)

    def refresh(self) -> None:
        """Pack all weights again now, whether or not a change is seen."""
        for packed in self._fused.packed():
            packed.refresh(anew=not packed.is_freed())

    def restore(self) -> None:
        """Restore the original model, freed weights included. A second call does nothing."""
        if self.model.__dict__.get(self._fused.method) is self._fused:
            delattr(self.model, self._fused.method)
        for freed in self._freed:
            freed.give_back()
        self._freed = []

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights, in bytes."""
        return sum(t.nbytes for packed in self._fused.packed() for t in packed.tensors())

    @property
    def freed_bytes(self) -> int:
        """Memory of the original weights that were freed, in bytes."""
        return sum(freed.nbytes for freed in self._freed)

    @property
    def extra_bytes(self) -> int:
        """Additional memory of the model, in bytes; negative if freed weights were larger than the packed ones."""
        return self.packed_bytes - self.freed_bytes

    def __repr__(self) -> str:
        layers = sum(isinstance(packed, PackedConv) for packed in self._fused.packed())
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self.model).__name__} optimized for the CPU: {layers} layers in {dtype},"
            f" {self.extra_bytes / 2**20:.1f} MiB more than before; .restore() undoes it"
        )


def optimize(model: Any, dtype: torch.dtype | None = None, *, free_weights: bool = False) -> Optimized:
    """Make a U-Net fast on the CPU: weights packed once, norms folded into convolutions, no concatenation.

        fastdiff.optimize(model, torch.bfloat16)     # in place; model(x, t) as before
        handle = fastdiff.optimize(model)            # in the model's own dtype
        handle.restore()                             # undone

    Applies to calls without gradient (``torch.no_grad``, ``torch.inference_mode``), in eval mode, with inputs that are
    not float64; in all other cases the model runs as before. Parameters and state_dict do not change.

    Every call checks the model first. A layer with hooks, an adapter or another unknown part runs unfused in its place,
    which is logged once. Under a tracer (``torch.export``, ``torch.jit.trace``, ``torch.func``) the whole model runs
    unfused; ``torch.compile`` leaves the call out of its graph. Changed weights are packed again, also those written
    through ``.data``: a write to a whole output or input channel is seen at once, a write to single elements within a
    few hundred calls, or with ``handle.refresh()``.

    Args:
        model: a ``fastdiff.models.UNet``, also one for super-resolution, or diffusers' ``UNet2DModel``, also inside a
            pipeline; on the CPU.
        dtype: float32, bfloat16 or float16 of activations and packed weights; sums and statistics are float32 always.
            None = the dtype in which the model's convolutions are.
        free_weights: free the memory of the original weights until they are needed: ``state_dict()`` and ``restore()``
            bring them back from the packed ones, to the bit. Only in the model's own dtype.

    Returns:
        A handle that reports the memory and restores the model.

    Raises:
        FastdiffError: an unsupported model, device or dtype; a layer or option of diffusers that is not covered, by
            name; a model that is optimized already.
    """
    fused, method = _fused_class(model)
    if method in model.__dict__:
        mine = isinstance(model.__dict__[method], FusedTrunk)
        raise FastdiffError(
            "this model is optimized already; restore() it first"
            if mine
            else f"something else has taken the place of this model's {method}; undo that first"
        )
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise FastdiffError(f"optimize is for models on the CPU, this one is on {device}")
    if reason := conv2d_op.why_not(Backend.CPU):
        raise FastdiffError(f"optimize needs the compiled kernels: {reason}")
    if isinstance(model, UNet) and type(model).denoise is not UNet.denoise:
        raise FastdiffError(f"optimize does not cover a denoise of its own, as {type(model).__name__} has")
    own = model.dtype
    dtype = dtype or own
    if dtype not in DTYPES:
        raise FastdiffError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    if free_weights and dtype != own:
        raise FastdiffError(
            f"weights can only be freed if they are packed in their own dtype, {own}: {dtype} would lose digits."
            f" Leave out free_weights, or convert the model first: model.to({dtype})"
        )
    return Optimized(fused(model, dtype), free_weights=free_weights)


def _fused_class(model: Any) -> tuple[Callable[[Any, torch.dtype], FusedTrunk], str]:
    """The function that makes the fused form of this model, and the method that it replaces."""
    if isinstance(model, UNet):
        return FusedUNet, "denoise"
    if unet2d_class(model) is not None:
        return FusedUNet2D, "forward"
    raise FastdiffError(
        f"optimize takes a fastdiff U-Net or diffusers' UNet2DModel, got {type(model).__name__}"
    )


def is_for(model: Any) -> bool:
    """True if ``optimize`` applies to this model now and makes it faster, so that sampling may use it by itself."""
    return (
        isinstance(model, UNet)
        and "denoise" not in model.__dict__
        and type(model).denoise is UNet.denoise
        and forced() is None
        and conv2d_op.why_not(Backend.CPU) is None
        and model.dtype in DTYPES
        and next(model.parameters()).device.type == "cpu"
    )


def for_inference(model: Any, dtype: torch.dtype | None = None) -> Any:
    """An optimized view of the model, which itself stays unchanged; the model itself if it cannot be optimized.

    The view has the same modules and parameters, and follows their changes.
    """
    if not is_for(model):
        return model
    view = copy.copy(model)
    view.__dict__["denoise"] = FusedUNet(view, dtype or model.dtype)
    return view
