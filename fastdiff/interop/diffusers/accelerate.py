"""``accelerate(pipe_or_model)``: diffusers' layers and scheduler on the fused ops, in place, until ``restore()``.

Only the ``forward`` of single layers is replaced, as an attribute of the layer: parameters, keys, configuration and
``save_pretrained`` stay what they were. Classes are known by their names, so that a model is enough and nothing of
diffusers is imported; a scheduler derives from diffusers' own, which a pipeline has imported.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastdiff.errors import FastdiffError
from fastdiff.interop.diffusers import layers

_RESIDUAL = "residual block: GroupNorm + SiLU, twice"
_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


class Accelerated:
    """What ``accelerate`` has replaced and what it has left alone, and the way back. Also a context manager."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.replaced: dict[str, str] = {}  # layer's name -> what runs there now
        self.left: dict[str, str] = {}  # layer's name -> why it is as it was
        self._undo: list[Callable[[], object]] = []

    def restore(self) -> None:
        """Everything as it was. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        name = type(self.target).__name__
        lines = [f"{name} on fastdiff's ops; .restore() undoes it"]
        lines += [f"  {count:>4} x {what}" for what, count in Counter(self.replaced.values()).most_common()]
        lines += [f"  left alone: {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def forward(self, name: str, layer: nn.Module, function: Callable[..., Any], what: str) -> None:
        """Let ``function(layer, ...)`` stand in for the layer's forward."""
        layer.forward = types.MethodType(function, layer)
        self._undo.append(lambda: layer.__dict__.pop("forward", None))
        self.replaced[name] = what

    def attribute(self, name: str, owner: Any, attribute: str, value: Any, what: str) -> None:
        before = getattr(owner, attribute)
        setattr(owner, attribute, value)
        self._undo.append(lambda: setattr(owner, attribute, before))
        self.replaced[name] = what


def accelerate(pipe_or_model: Any) -> Accelerated:
    """Run diffusers' group norms, SiLUs, attention and scheduler step on fastdiff's fused ops, in one line.

        handle = fastdiff.accelerate(pipe)     # in place; pipe(...) as before
        print(handle)                          # what was replaced, what was left alone and why
        handle.restore()                       # undone

    For inference and training, on CPU and GPU. Residual blocks run GroupNorm, scale and shift, and SiLU as one op;
    attention layers attend on strided views; other group norms keep the memory layout they are given; a pipeline's
    scheduler is exchanged for one whose step is one pass (DDPM, DDIM, DPM-Solver multistep, Euler). For inference of a
    ``UNet2DModel`` on the CPU, ``fastdiff.optimize`` goes further: it also replaces the convolutions.

    Args:
        pipe_or_model: a ``DiffusionPipeline``, or a model (``UNet2DModel``, ``UNet2DConditionModel``,
            ``AutoencoderKL``, or any module built of their blocks).

    Returns:
        A handle that lists what was done and undoes it.

    Raises:
        FastdiffError: there is nothing to accelerate, or it has been done already.
    """
    handle = Accelerated(pipe_or_model)
    try:
        for name, model in _models(pipe_or_model):
            _accelerate_model(handle, name, model)
        _accelerate_scheduler(handle)
    except BaseException:
        handle.restore()
        raise
    if not handle.replaced:
        raise FastdiffError(
            f"{type(pipe_or_model).__name__} has no layer that accelerate replaces (group norms and attention of"
            " diffusers' U-Nets and autoencoders, and their schedulers)"
        )
    return handle


def _models(target: Any) -> Iterator[tuple[str, nn.Module]]:
    """The model itself, or a pipeline's models."""
    if isinstance(target, nn.Module):
        yield "", target
    elif isinstance(getattr(target, "components", None), dict):
        yield from ((n, m) for n, m in target.components.items() if isinstance(m, nn.Module))
    else:
        raise FastdiffError(f"accelerate takes a diffusers pipeline or a model, got {type(target).__name__}")


def _accelerate_model(handle: Accelerated, prefix: str, model: nn.Module) -> None:
    modules: dict[str, Any] = {
        f"{prefix}.{name}".strip("."): module for name, module in model.named_modules()
    }
    if done := next((name for name, module in modules.items() if _is_ours(module)), None):
        raise FastdiffError(f"{done} runs on fastdiff already; restore() it first")
    for name, module in modules.items():
        if type(module).__name__ == "ResnetBlock2D":
            _accelerate_residual(handle, name, module)
        elif type(module).__name__ == "Attention":
            _accelerate_attention(handle, name, module)
        elif layers.has_norm_and_silu(module):
            out = f"{name}." if name else ""
            handle.forward(
                f"{out}conv_norm_out", module.conv_norm_out, layers.norm_silu_forward, "GroupNorm + SiLU"
            )
            handle.forward(
                f"{out}conv_act", module.conv_act, layers.identity_forward, "SiLU, done by the norm before it"
            )
    within = tuple(f"{n}." for n, what in handle.replaced.items() if what == _RESIDUAL)
    for name, module in modules.items():
        if type(module) is nn.GroupNorm and name not in handle.replaced and not name.startswith(within):
            handle.forward(name, module, layers.norm_forward, "GroupNorm")


def _accelerate_residual(handle: Accelerated, name: str, module: nn.Module) -> None:
    if reason := layers.why_not_residual(module):
        handle.left[name] = reason
    else:
        handle.forward(name, module, layers.residual_forward, _RESIDUAL)


def _accelerate_attention(handle: Accelerated, name: str, module: Any) -> None:
    if reason := layers.why_not_attention(module):
        handle.left[name] = reason
    else:
        handle.attribute(name, module, "processor", layers.FusedAttnProcessor(module.processor), "attention")


def _is_ours(module: nn.Module) -> bool:
    function = getattr(module.__dict__.get("forward"), "__func__", None)
    return getattr(function, "__module__", "").startswith("fastdiff.")


def _accelerate_scheduler(handle: Accelerated) -> None:
    scheduler = getattr(handle.target, "scheduler", None)
    name = type(scheduler).__name__
    if scheduler is None or isinstance(handle.target, nn.Module) or name.startswith("Fast"):
        return
    if name not in _SCHEDULERS:
        handle.left["scheduler"] = f"{name} is not among {', '.join(_SCHEDULERS)}"
        return
    from fastdiff.interop import diffusers as ours

    try:
        fast = getattr(ours, f"Fast{name}").from_config(scheduler.config)
    except FastdiffError as error:
        handle.left["scheduler"] = str(error)
        return
    handle.attribute("scheduler", handle.target, "scheduler", fast, f"{name}: one pass a step")
