"""``accelerate(pipe_or_model)``: diffusers' layers and scheduler on the fused ops, in place, until ``restore()``.

Only the ``forward`` of single layers and the scheduler's ``step`` are replaced, as attributes of these objects:
parameters, keys, attention processors, options and ``save_pretrained`` do not change, and later changes of them take
effect. Classes are recognised by their names, so that diffusers itself is not imported here.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastdiff.errors import FastdiffError
from fastdiff.interop.diffusers import layers

_RESIDUAL = "residual block: GroupNorm + SiLU, twice"
# Modules of the schedulers' steps, so that only those of a pipeline are imported.
_STEPS = {
    "DDIMScheduler": ("beta_schedulers", "ddim_step"),
    "DDPMScheduler": ("beta_schedulers", "ddpm_step"),
    "DPMSolverMultistepScheduler": ("sigma_schedulers", "dpm_solver_step"),
    "EulerDiscreteScheduler": ("sigma_schedulers", "euler_step"),
}


class Accelerated:
    """Handle that lists what ``accelerate`` has replaced or left alone, and undoes it. Also a context manager."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.replaced: dict[str, str] = {}  # layer's name -> what runs there now
        self.left: dict[str, str] = {}  # layer's name -> why it is as it was
        self._undo: list[Callable[[], object]] = []

    def restore(self) -> None:
        """Undo all replacements. A second call does nothing."""
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

    def replace(self, name: str, owner: Any, method: str, function: Callable[..., Any], what: str) -> None:
        """Replace one of the owner's methods by ``function(owner, ...)``."""
        # Not a bound method, which would be pickled by the name of an attribute that the owner does not have.
        setattr(owner, method, functools.partial(function, owner))
        self._undo.append(lambda: owner.__dict__.pop(method, None))
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
        FastdiffError: the object has nothing to accelerate, or is accelerated already.
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
            _accelerate_layer(
                handle, name, module, layers.why_not_residual, layers.residual_forward, _RESIDUAL
            )
        elif type(module).__name__ == "Attention":
            _accelerate_layer(
                handle, name, module, layers.why_not_attention, layers.attention_forward, "attention"
            )
    within = tuple(f"{n}." for n, what in handle.replaced.items() if what == _RESIDUAL)
    for name, module in modules.items():
        if type(module) is nn.GroupNorm and name not in handle.replaced and not name.startswith(within):
            handle.replace(name, module, "forward", layers.norm_forward, "GroupNorm")


def _accelerate_layer(
    handle: Accelerated,
    name: str,
    module: nn.Module,
    why_not: Callable[[Any], str | None],
    forward: Callable[..., Any],
    what: str,
) -> None:
    if reason := why_not(module):
        handle.left[name] = reason
    else:
        handle.replace(name, module, "forward", forward, what)


def _is_ours(module: nn.Module) -> bool:
    function = getattr(module.__dict__.get("forward"), "func", None)
    return getattr(function, "__module__", "").startswith("fastdiff.")


def _accelerate_scheduler(handle: Accelerated) -> None:
    scheduler = getattr(handle.target, "scheduler", None)
    name = type(scheduler).__name__
    if scheduler is None or isinstance(handle.target, nn.Module) or name.startswith("Fast"):
        return
    if "step" in scheduler.__dict__:
        handle.left["scheduler"] = "its step has been replaced already"
    elif name not in _STEPS or not type(scheduler).__module__.startswith("diffusers."):
        handle.left["scheduler"] = f"{name} is not among {', '.join(_STEPS)}"
    else:
        module, function = _STEPS[name]
        step = getattr(importlib.import_module(f"fastdiff.interop.diffusers.{module}"), function)
        handle.replace("scheduler", scheduler, "step", step, f"{name}: one pass a step")
