"""The model bound to conditioning and times, so that the loop depends on no architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.plan import Plan

# With more embedding rows (steps x classes) than this, embeddings are computed step by step to save memory.
MAX_EMBEDDINGS = 1 << 14

# Names that no argument of a model can have.
_TIMES, _EMBEDDINGS, _CLASS_INDEX = "the times", "the embeddings", "the class index"


class Denoiser:
    """``denoiser(step, x)`` calls the model for step ``step`` of a plan.

    Conditioning and times go to the device here, before the loop. A model that has ``embed(times, y)`` and
    ``denoise(x, embedding)`` has its embeddings of all steps and classes computed at once. Everything that a call
    reads besides x and the step is in ``tensors``, so that a CUDA graph of the call can be given another batch.

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
        self._batch = 2 * len(x) if self._guided else len(x)
        whole = bool((plan.times == plan.times.round()).all())
        times = plan.times.to(x.device, torch.int64 if whole else x.dtype)
        self.tensors: dict[str, Tensor] = {}
        if _can_embed(model) and set(cond) <= {"y"}:
            self._embed(times, cond.get("y"))
        if not self.tensors:
            self.tensors = {_TIMES: times, **cond}

    def _embed(self, times: Tensor, y: Tensor | None) -> None:
        """Embeddings [S,K,E] of every step with each of K classes, and which of them [N] a sample has.

        K is a power of two or the batch size, padded with the last class, so that batches with other classes mostly
        have tensors of the same shapes. K = 1 without classes.
        """
        if y is None:
            index = torch.zeros(self._batch, dtype=torch.int64, device=times.device)
            self.tensors = {_EMBEDDINGS: self._model.embed(times)[:, None], _CLASS_INDEX: index}
            return
        classes, index = y.unique(return_inverse=True)
        steps, known = len(times), len(classes)
        if known and steps * known <= MAX_EMBEDDINGS:
            size = min(1 << (known - 1).bit_length(), self._batch)
            classes = torch.cat([classes, classes[-1:].expand(size - known)])
            made = self._model.embed(times.repeat_interleave(size), classes.repeat(steps))
            self.tensors = {_EMBEDDINGS: made.unflatten(0, (steps, -1)), _CLASS_INDEX: index}

    def clone(self) -> Denoiser:
        """A copy with its own tensors."""
        twin = copy.copy(self)
        twin.tensors = {name: value.clone() for name, value in self.tensors.items()}
        return twin

    def __call__(self, step: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None) of the model, views of one tensor.

        ``step`` is an int64 scalar on x's device, whose value the host never reads.
        """
        x_in = torch.cat([x, x]) if self._guided else x
        if self._dtype is not None:
            x_in = x_in.to(self._dtype)
        here = step.reshape(1)
        if _EMBEDDINGS in self.tensors:
            of_classes = self.tensors[_EMBEDDINGS].index_select(0, here)[0]
            output = self._model.denoise(x_in, of_classes.index_select(0, self.tensors[_CLASS_INDEX]))
        else:
            cond = {name: value for name, value in self.tensors.items() if name != _TIMES}
            t = self.tensors[_TIMES].index_select(0, here)
            output = self._model(x_in, t.expand(self._batch), **cond)
        _check_output(output, x_in)
        return (output[: len(x)], output[len(x) :]) if self._guided else (output, None)


def _can_embed(model: Model) -> bool:
    # The type is checked: a compiled or wrapped model forwards attributes to the inner model and would be bypassed.
    return all(callable(getattr(type(model), name, None)) for name in ("embed", "denoise"))


def _working_dtype(model: Model) -> torch.dtype | None:
    """The dtype of a module's parameters; None if there are none or several, where the module casts by itself."""
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
