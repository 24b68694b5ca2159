"""Sampling in another precision than the model's own: a copy of the model that follows its original."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from fastdiff.errors import FastdiffError
from fastdiff.inference.watch import Structure, Weights

# adm-fp16: what guided-diffusion ships. Convolutions of the trunk in float16; norms' statistics, linear layers,
#           embeddings, the output layer and the softmax of attention in float32.
# bfloat16: everything in bfloat16, statistics and softmax (inside the kernels) in float32.
# In both the state, and all of reverse_step's arithmetic, stays float32.
Precision = Literal["adm-fp16", "bfloat16"]
CASTS: dict[Any, torch.dtype] = {"adm-fp16": torch.float16, "bfloat16": torch.bfloat16}


def check_precision(model: Any, precision: str) -> None:
    """Raise FastdiffError unless this model can be cast to ``precision``."""
    if precision not in CASTS:
        raise FastdiffError(f"unknown precision {precision!r}; known: {', '.join(CASTS)}")
    if not isinstance(model, nn.Module):
        raise FastdiffError(f"precision casts a module's parameters, and a {type(model).__name__} has none")
    if precision == "adm-fp16" and not callable(getattr(model, "half_trunk", None)):
        raise FastdiffError(
            f"precision 'adm-fp16' is for fastdiff's U-Nets, got {type(model).__name__}; 'bfloat16' is for any module"
        )
    if "denoise" in model.__dict__:
        raise FastdiffError(
            "this model is optimized in a dtype of its own; restore() it, or leave out precision"
        )


class Cast:
    """A copy of a module in a precision and memory format, in eval mode.

    If the original's parameters change, the next call of :meth:`module` copies them in place, so that CUDA graphs with
    the copy's addresses stay valid; if its modules change, the whole model is copied again.
    """

    def __init__(self, model: nn.Module, precision: Precision, memory_format: torch.memory_format) -> None:
        self._original, self._precision, self._memory_format = model, precision, memory_format
        self._copied()

    def _copied(self) -> nn.Module:
        twin: Any = copy.deepcopy(self._original)
        twin = twin.half_trunk() if self._precision == "adm-fp16" else twin.to(CASTS[self._precision])
        self._copy: nn.Module = twin.to(memory_format=self._memory_format).eval().requires_grad_(False)
        self._structure, self._weights = Structure(self._original), Weights(_tensors(self._original))
        return self._copy

    def module(self) -> nn.Module:
        """The copy, up to date."""
        if self._structure.has_changed():
            return self._copied()
        if self._weights.have_changed():
            with torch.no_grad():
                for mine, theirs in zip(_tensors(self._copy), _tensors(self._original), strict=True):
                    mine.copy_(theirs)
            self._weights = Weights(_tensors(self._original))
        return self._copy


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
