"""Encoder, middle and decoder on fused blocks: what all U-Nets have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdiff.backend import Backend, forced, logger
from fastdiff.errors import FastdiffError
from fastdiff.inference import checks
from fastdiff.inference.blocks import FusedConv, FusedResBlock, PlainLayer, fused
from fastdiff.inference.features import Features, Pair
from fastdiff.inference.packed import Packed, PackedConv, PackedProjections, is_freed
from fastdiff.inference.watch import (
    Structure,
    Weights,
    drops_out,
    has_global_hooks,
    why_not_called,
    why_not_fused,
)
from fastdiff.models import UNet, trunk
from fastdiff.nn import ResBlock

_PLAIN = (Backend.EAGER, Backend.REFERENCE)  # wanted for comparison: then all of it
_BUILDING = threading.RLock()
_FREED = (
    "this model's weights were freed by optimize(): it runs in eval mode under torch.no_grad() or"
    " torch.inference_mode(), without hooks or exchanged layers inside, on inputs that are not float64;"
    " restore() it for anything else"
)
_said: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Layers:
    """A network's layers in the order in which they run.

    Args:
        down: blocks, each a list of layers; a block's output is also a skip connection.
        middle: layers.
        up: blocks, each taking one skip connection.
        out: the last layer.
    """

    down: Sequence[Sequence[Any]]
    middle: Sequence[Any]
    up: Sequence[Sequence[Any]]
    out: Any
    projections: PackedProjections = field(init=False)

    def __post_init__(self) -> None:
        residual = [f for f in self.every() if isinstance(f, FusedResBlock)]
        object.__setattr__(self, "projections", PackedProjections([f.parts.projection for f in residual]))

    def every(self) -> Iterator[Any]:
        for block in (*self.down, self.middle, *self.up, (self.out,)):
            yield from block

    def packed(self) -> list[Packed]:
        return [self.projections, *(p for layer in self.every() for p in layer.packed())]


class FusedTrunk:
    """Replacement of one of a model's methods, for calls without gradient.

    Before each call the model is checked, see ``watch.py``: a layer with hooks, or of an unknown kind, is called
    unfused, and changed weights are packed again.

    Args:
        model: the model, whose parameters are read again when they change.
        method: the name of the replaced method.
        dtype: dtype of the activations and the packed weights; statistics and sums are always float32.
    """

    def __init__(self, model: Any, method: str, dtype: torch.dtype) -> None:
        self.model, self.method, self.dtype = model, method, dtype
        self._replaced = getattr(type(model), method)
        # Layers in their fused form, with their packed weights, for as long as it fits them.
        self._known: dict[nn.Module, Any] = {}
        self._forget()
        self._build()

    def _make(self) -> Layers | str:
        """The model's layers as they are now, or the reason why the whole model has to run unfused."""
        raise NotImplementedError

    def _forget(self) -> None:
        self._layers: Layers | None = None
        self._structure: Structure | None = None
        self._weights: Weights | None = None

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which check the model themselves."""
        return {**self.__dict__, "_layers": None, "_structure": None, "_weights": None}

    def place(self, layer: nn.Module, make: Callable[..., Any], *, embedded: bool = False) -> Any:
        """The layer in its fused form ``make(layer, dtype)``, or unfused where that is not possible."""
        reason, made = self._why_not(layer), None
        if reason is None:
            try:
                made = make(layer, self.dtype)
            except FastdiffError as error:
                if self._structure is None and not self.is_lenient:
                    raise
                reason = _short(error)
        made = made or self.as_it_is(layer, reason=str(reason), embedded=embedded)
        known = self._known.get(layer)
        if known is None or type(known) is not type(made) or known.parts != made.parts:
            self._known[layer] = known = made
        return known

    # Whether a layer that is not known does not keep a model from being optimized.
    is_lenient = False

    def _why_not(self, layer: nn.Module) -> str | None:
        drops = not self.model.training and drops_out(layer)
        return why_not_fused(layer) or ("dropout in train mode" if drops else None)

    def as_it_is(self, *layers: nn.Module, reason: str, embedded: bool = False) -> PlainLayer:
        """Layers that are called unfused, which is logged once."""
        weights = (getattr(m, "weight", None) for layer in layers for m in layer.modules())
        if any(isinstance(w, Tensor) and is_freed(w) for w in weights):
            raise FastdiffError(_FREED)
        name = next((name for name, module in self.model.named_modules() if module is layers[0]), "")
        self.say(f"{name} runs as it is: {reason}")
        return PlainLayer(*layers, embedded=embedded)

    def say(self, what: str) -> None:
        """Log a layer that runs unfused, once per process."""
        key = type(self.model).__name__, what
        if key not in _said:
            _said.add(key)
            logger.warning("optimize: %s's %s", *key)

    def _build(self) -> None:
        structure = Structure(self.model)
        try:
            made = self._make()
        except FastdiffError as error:
            if self._structure is None or str(error) == _FREED:
                raise
            made = _short(error)
        if isinstance(made, str):
            self.say(f"{self.method} runs as it is: {made}")
            self._layers = None
        else:
            self._layers = made
            self._known = {layer: f for layer, f in self._known.items() if any(f is e for e in made.every())}
        self._weights = None
        self._structure = structure

    def layers(self) -> Layers | None:
        """The layers, up to date with the model; None if the model has to run unfused."""
        if self._structure is None or self._structure.has_changed():
            with _BUILDING:
                self._build()
        layers, weights = self._layers, self._weights
        if layers is not None and (weights is None or weights.have_changed()):
            with _BUILDING:
                changed = set() if weights is None else weights.changed()
                for packed in layers.packed():
                    packed.refresh(
                        anew=not (packed.is_freed() or changed.isdisjoint(map(id, packed.copied())))
                    )
                self._weights = Weights(_copied(layers.packed()))
        return layers

    def unpacked(self) -> list[Packed]:
        """All packed weights, as they are: new ones are not packed yet."""
        return [] if self._layers is None else self._layers.packed()

    def packed(self) -> list[Packed]:
        """All packed weights."""
        layers = self.layers()
        return [] if layers is None else layers.packed()

    def applies(self, x: Any) -> bool:
        """True if the fused layers apply to this input now."""
        return not (
            torch.is_grad_enabled()
            or self.model.training
            or forced() in _PLAIN
            or (isinstance(x, Tensor) and (x.dtype == torch.float64 or x.device.type != "cpu"))
            or _is_traced(x)
            or has_global_hooks()
        )

    def plain(self, *args: Any) -> Any:
        """Call the original method."""
        known = () if torch.compiler.is_compiling() else self._known.values()
        if any(isinstance(p, PackedConv) and p.is_freed() for f in known for p in f.packed()):
            raise FastdiffError(_FREED)
        return self._replaced(self.model, *args)

    def run(self, layers: Layers, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> [N, C', H, W] in x's dtype and layout."""
        h = Features(x.to(self.dtype, memory_format=torch.channels_last))
        given = _Embedding(emb, iter(layers.projections(emb)))
        skips = []
        for block in layers.down:
            h = given.through(block, Pair(h))
            skips.append(h)
        h = given.through(layers.middle, Pair(h))
        for block in layers.up:
            h = given.through(block, Pair(h, skips.pop()))
        out = given.through([layers.out], Pair(h)).x
        like = (
            torch.channels_last
            if x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        return out.to(x.dtype, memory_format=like)


@dataclass(frozen=True, slots=True)
class _Embedding:
    """The embedding [N, E], and its projections for the residual blocks, in their order."""

    emb: Tensor
    projected: Iterator[Tensor]

    def through(self, block: Iterable[Any], inputs: Pair) -> Features:
        for layer in block:
            if isinstance(layer, FusedResBlock):
                out = layer(inputs, next(self.projected))
            elif isinstance(layer, PlainLayer):
                out = layer(inputs, self.emb)
            else:
                out = layer(inputs)
            inputs = Pair(out)
        return inputs.left


def _short(error: FastdiffError) -> str:
    """The reason in an error message, without its consequence."""
    return str(error).partition(";")[0]


def _copied(packed: Iterable[Packed]) -> Iterator[Tensor]:
    """The parameters whose values are compared; freed ones have none."""
    for p in packed:
        if not p.is_freed():
            yield from p.copied()


def _is_traced(x: Any) -> bool:
    """True if a tracer, a transform or a derivative needs the operators of the model itself."""
    return (
        torch.compiler.is_exporting()
        or (isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter))
        or (not torch.compiler.is_dynamo_compiling() and _has_observers())
    )


def _has_observers() -> bool:
    return (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or forward_ad._current_level >= 0
    )


class FusedUNet(FusedTrunk):
    """Replacement of ``UNet.denoise``: fastdiff's U-Net on fused blocks."""

    is_lenient = True

    def __init__(self, model: UNet, dtype: torch.dtype) -> None:
        super().__init__(model, "denoise", dtype)

    def _make(self) -> Layers:
        model = self.model
        return Layers(
            down=[self._block(block) for block in model.input_blocks],
            middle=self._block(model.middle_block),
            up=[self._block(block) for block in model.output_blocks],
            out=self._out(model.out),
        )

    def _block(self, block: nn.Module) -> list[Any]:
        if reason := why_not_called(block, trunk.Block):
            return [self.as_it_is(block, reason=reason, embedded=True)]
        layers: Any = block
        return [self.place(layer, fused, embedded=isinstance(layer, ResBlock)) for layer in layers]

    def _out(self, out: Any) -> FusedConv | PlainLayer:
        def make(layer: Any, dtype: torch.dtype) -> FusedConv:
            norm, _, conv = layer
            return FusedConv(checks.convolution(conv), dtype, norm=checks.norm(norm, silu=True))

        return self.place(out, make)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> prediction, as ``UNet.denoise``."""
        if not self.applies(x):
            return self.plain(x, emb)
        if torch.compiler.is_compiling():
            from fastdiff.inference.compiled import outside_of_graphs

            return outside_of_graphs(self, x, emb)
        layers, model = self.layers(), self.model
        if layers is None:
            return self.plain(x, emb)
        trunk.check_image(model.config, x, model._image_channels, emb)
        return self.run(layers, x, emb)
