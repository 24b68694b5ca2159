"""Layers whose weights are packed once, and again when they change."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import FastdiffError
from fastdiff.ops import conv2d, pack_conv2d, unpack_conv2d
from fastdiff.ops.conv2d import ALGORITHMS, forward_op

_PACKING = threading.Lock()  # several threads may share a model: one of them packs, the others wait


def _state(parameter: Tensor) -> tuple[int, int, torch.dtype]:
    """A value that changes whenever the parameter does (its address, for inference tensors, which have no version)."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version, parameter.dtype


class Packed:
    """Base of packed layers: made from weights and biases, and made again when one of them has changed."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[Any]) -> None:
        self.dtype, self.layers = dtype, layers
        self._made_from: list[tuple[int, int, torch.dtype]] = []

    def _states(self) -> list[tuple[int, int, torch.dtype]]:
        return [_state(p) for p in self.parameters()]

    def refresh(self, *, anew: bool = False) -> None:
        """Pack again if a parameter has changed; ``anew``: also if no change is seen."""
        state = self._states()
        if state and (anew or state != self._made_from):
            with _PACKING, torch.no_grad():
                self._make()
            self._made_from = state

    def parameters(self) -> list[Tensor]:
        """The parameters it is made from."""
        return [p for layer in self.layers for p in (layer.weight, layer.bias) if p is not None]

    def copied(self) -> list[Tensor]:
        """Those parameters of which a packed copy is read at each call in place of the parameter itself."""
        return self.parameters()

    def ready(self) -> None:
        """Pack if it has not been done yet. Changes are detected for the whole model, not here."""
        if not self._made_from:
            self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which pack again themselves."""
        return {**self.__dict__, "_made_from": [], **self._unmade()}

    def _make(self) -> None:
        raise NotImplementedError

    def _unmade(self) -> dict[str, Any]:
        """The attributes that ``_make`` sets, with their values before it."""
        raise NotImplementedError

    def is_freed(self) -> bool:
        """True if one of the layers' weights is freed (see freeing.py)."""
        return any(is_freed(layer.weight) for layer in self.layers)

    def tensors(self) -> list[Tensor]:
        """The tensors that it holds in addition to the model's own parameters."""
        raise NotImplementedError


class PackedWeight(Packed):
    """[Cout, Cin, k, k] for conv2d. ``shape`` is all that the kernel needs of the weight itself."""

    def _pack(self, weight: Tensor) -> None:
        weight = weight.detach()
        weight = weight.reshape(*weight.shape[:2], *(weight.shape[2:] if weight.dim() == 4 else (1, 1)))
        self.packed = pack_conv2d(weight, self.dtype)
        # With a kernel, one element expanded to the shape; else the weight, for the reference. (The element is NaN, so
        # that a call which reaches the reference by mistake cannot go unnoticed.)
        shape_only = torch.full((1,), torch.nan, dtype=self.dtype).expand(weight.shape)
        self.weight = weight.to(self.dtype) if self.packed is None else shape_only

    def _unmade(self) -> dict[str, Any]:
        return {"packed": None, "weight": torch.empty(0), "bias": None}

    def tensors(self) -> list[Tensor]:
        return [self.weight if self.packed is None else self.packed]


def is_freed(weight: Tensor) -> bool:
    """True if a weight is freed (see freeing.py)."""
    return weight.numel() > 1 and weight.untyped_storage().nbytes() == weight.element_size()


class PackedConv(PackedWeight):
    """A 3x3 (stride 1, padding 1) or 1x1 convolution, or a linear layer over pixels.

    ``beside``: linear layers that read the same pixels; their outputs follow the first layer's, as one layer's.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype, *beside: nn.Module) -> None:
        super().__init__(dtype, [layer, *beside])

    def _make(self) -> None:
        if self.is_freed():
            raise FastdiffError(
                "this model's weights were freed by optimize(); restore() it before changing it"
            )
        if len(self.layers) == 1:
            self._pack(self.layers[0].weight)
            bias = self.layers[0].bias
            self.bias = bias if self._reads_bias() else bias.float()
            return
        self._pack(torch.cat([layer.weight for layer in self.layers]))
        biases = [layer.bias for layer in self.layers]
        self.bias = None if biases[0] is None else torch.cat(biases).float()

    def _reads_bias(self) -> bool:
        """True if the kernel takes the layer's own bias."""
        bias = self.layers[0].bias
        return len(self.layers) == 1 and (bias is None or bias.dtype in (self.dtype, torch.float32))

    def copied(self) -> list[Tensor]:
        return [self.layers[0].weight] if self._reads_bias() else self.parameters()

    def accept(self) -> None:
        """Record the parameter's present state as the packed one."""
        self._made_from = self._states()

    def unpacked(self) -> list[Tensor]:
        """The layers' weights, recovered from their packed form."""
        assert self.packed is not None
        shapes = [layer.weight.shape for layer in self.layers]
        parts = unpack_conv2d(self.packed, self.weight.shape).split([shape[0] for shape in shapes])
        # Copies, so that no part keeps the memory of all.
        parts = parts if len(parts) == 1 else [part.clone() for part in parts]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def __call__(
        self,
        x: Tensor,
        *,
        more: Tensor | None = None,
        affine: Tensor | None = None,
        silu: bool = False,
        upsample: bool = False,
        image_bias: Tensor | None = None,
        residual: Tensor | None = None,
        moments: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As ``fastdiff.ops.conv2d``, without its checks, which cannot fail here."""
        self.ready()
        if more is not None and x.shape[1] % 16:  # where the kernel takes no others beside them
            x, more = torch.cat([x, more], dim=1), None
        options = more, affine, silu, upsample, image_bias, residual, moments
        return forward_op(x, self.weight, self.bias, *options, self.packed, ALGORITHMS["auto"])


class PackedProjections(PackedWeight):
    """SiLU and the linear layers of all residual blocks as a single layer: they read the same embedding."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._widths = [layer.out_features for layer in layers]
        super().__init__(torch.float32, layers)

    def _make(self) -> None:
        self._pack(torch.cat([layer.weight for layer in self.layers]))
        self.bias = torch.cat([layer.bias for layer in self.layers]).float()

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.bias] if self.layers else []

    def __call__(self, emb: Tensor) -> list[Tensor]:
        """Embedding [N, E] -> [N, width] float32 for each layer."""
        if not self.layers:
            return []
        self.ready()
        x = emb.float()[..., None, None].contiguous(memory_format=torch.channels_last)
        out: Any = conv2d(x, self.weight, self.bias, packed=self.packed, silu=True)
        return list(out.flatten(1).split(self._widths, dim=1))


@functools.cache
def _reorders(dtype: torch.dtype) -> bool:
    """True if oneDNN can reorder weights of this dtype; 16-bit types, float16 above all, not on every processor."""
    try:
        _reorder(torch.zeros(1, 1, 1, 1, dtype=dtype), (0, 0), (1, 1), (1, 1), 1, (1, 1, 1, 1))
    except RuntimeError:
        return False
    return True


def _reorder(weight: Tensor, *shape: Any) -> Tensor:
    return torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *shape)  # pyright: ignore[reportAttributeAccessIssue]


class PackedStrided(Packed):
    """Any other convolution, by oneDNN, with the weight in its preferred order."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        self.layer: Any = layer
        super().__init__(dtype, [layer])
        # The images' shape and the weight in the order for it: one attribute, as threads may have different shapes.
        self._ordered: tuple[torch.Size | None, Tensor] = None, torch.empty(0)

    def _make(self) -> None:
        self._ordered = None, torch.empty(0)
        self.weight = self.layer.weight.detach().to(self.dtype)
        self.bias = None if self.layer.bias is None else self.layer.bias.detach().to(self.dtype)

    def _unmade(self) -> dict[str, Any]:
        return {"weight": torch.empty(0), "bias": None, "_ordered": (None, torch.empty(0))}

    def tensors(self) -> list[Tensor]:
        own = [] if self.weight.dtype == self.layer.weight.dtype else [self.weight]
        ordered_for, weight = self._ordered
        return own if ordered_for is None else [*own, weight]

    def __call__(self, x: Tensor) -> Tensor:
        self.ready()
        c = self.layer
        if not _reorders(self.dtype) or c.padding_mode != "zeros":
            return F.conv2d(x, self.weight, self.bias, c.stride, c.padding, c.dilation, c.groups)
        shape = c.padding, c.stride, c.dilation, c.groups
        ordered_for, weight = self._ordered
        if ordered_for != x.shape:
            weight = _reorder(self.weight, *shape, x.shape)
            self._ordered = x.shape, weight
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *shape, "none", [], "")
