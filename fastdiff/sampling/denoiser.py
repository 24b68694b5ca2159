"""The model with everything but the state fixed, so that the loop knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.plan import Plan

# More embedding rows (steps x classes) than this are not worth their memory; they are then made step by step.
MAX_EMBEDDINGS = 1 << 14


class Denoiser:
    """``denoiser(step, x)`` calls the model as step ``step`` of a plan asks.

    Conditioning and times go to the device here, before the loop. A model that has ``embed(times, y)`` and
    ``denoise(x, embedding)`` has its embeddings of all steps and classes computed at once.

    With guidance (``null_class`` given) the model runs once on a doubled batch, the second half with every
    class replaced by the null class.

    Args:
        model: ``model(x, t, **cond)``; t is int64 if all times of the plan are whole, else x's dtype.
        cond: further arguments, one row per sample; class labels under ``y``.
        x: the initial state, for batch size, device and dtype.

    Raises:
        FastdiffError: at a call, an output that is not [N,C,*] or [N,2C,*].
    """

    def __init__(
        self, model: Model, plan: Plan, x: Tensor, cond: Mapping[str, Tensor], null_class: int | None = None
    ) -> None:
        self._model: Any = model
        self._dtype = _working_dtype(model)
        self._guided = null_class is not None
        if null_class is not None:
            cond = {name: torch.cat([value, value]) for name, value in cond.items()}
            cond["y"][len(x) :] = null_class
        self._cond = cond
        self._batch = 2 * len(x) if self._guided else len(x)
        whole = bool((plan.times == plan.times.round()).all())
        self._times = plan.times.to(x.device, torch.int64 if whole else x.dtype)
        self._embeddings = self._class_index = None
        if _can_embed(model) and set(cond) <= {"y"}:
            self._embed(cond.get("y"))

    def _embed(self, y: Tensor | None) -> None:
        """Embeddings [S,K,E] of every step with each of the K classes present (K = 1 without classes)."""
        if y is None:
            self._class_index = torch.zeros(self._batch, dtype=torch.int64, device=self._times.device)
            self._embeddings = self._model.embed(self._times)[:, None]
            return
        classes, self._class_index = y.unique(return_inverse=True)
        steps = len(self._times)
        if steps * len(classes) <= MAX_EMBEDDINGS:
            times = self._times.repeat_interleave(len(classes))
            self._embeddings = self._model.embed(times, classes.repeat(steps)).unflatten(0, (steps, -1))

    def __call__(self, step: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None) of the model, views of one tensor."""
        x_in = torch.cat([x, x]) if self._guided else x
        if self._dtype is not None:
            x_in = x_in.to(self._dtype)
        if self._embeddings is None:
            output = self._model(x_in, self._times[step].expand(self._batch), **self._cond)
        else:
            output = self._model.denoise(x_in, self._embeddings[step][self._class_index])
        _check_output(output, x_in)
        return (output[: len(x)], output[len(x) :]) if self._guided else (output, None)


def _can_embed(model: Model) -> bool:
    # Asked of the type: a compiled or wrapped model forwards attributes, and would be bypassed.
    return all(callable(getattr(type(model), name, None)) for name in ("embed", "denoise"))


def _working_dtype(model: Model) -> torch.dtype | None:
    """The dtype of a module's parameters; None if there are none or several: it then casts by itself."""
    if not isinstance(model, nn.Module):
        return None
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _check_output(output: Tensor, x: Tensor) -> None:
    n, channels, *space = x.shape
    if list(output.shape) not in ([n, channels, *space], [n, 2 * channels, *space]):
        raise FastdiffError(
            f"the model returned {list(output.shape)} for x {list(x.shape)}; "
            f"{channels} channels are accepted, or {2 * channels} with learned variance"
        )
