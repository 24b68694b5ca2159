"""guided-diffusion's master parameters: float32 copies of a model's, flattened into one vector and one matrix.

``MixedPrecisionTrainer`` here keeps one for one instead; these are for scripts that call the functions themselves.
A group is ([(name, parameter), ...], shape of its master): parameters of up to one dimension, then the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Group = tuple[list[tuple[str, Tensor]], Any]


def get_param_groups_and_shapes(named_model_params: Iterable[tuple[str, Tensor]]) -> list[Group]:
    """Vectors with the shape (-1,), matrices and filters with (1, -1)."""
    named = list(named_model_params)
    return [([p for p in named if p[1].dim() <= 1], (-1,)), ([p for p in named if p[1].dim() > 1], (1, -1))]


def make_master_params(param_groups_and_shapes: Sequence[Group]) -> list[nn.Parameter]:
    """A float32 copy of each group."""
    return [
        nn.Parameter(_flat(p.detach() for _, p in group).view(shape))
        for group, shape in param_groups_and_shapes
    ]


def model_grads_to_master_grads(
    param_groups_and_shapes: Sequence[Group], master_params: Sequence[Tensor]
) -> None:
    """The model's gradients as the masters'; zero where there is none."""
    for master, (group, shape) in zip(master_params, param_groups_and_shapes, strict=True):
        master.grad = _flat(param_grad_or_zeros(p) for _, p in group).view(shape)


@torch.no_grad()
def master_params_to_model_params(
    param_groups_and_shapes: Sequence[Group], master_params: Sequence[Tensor]
) -> None:
    """The masters' values into the model."""
    for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
        for (_, p), value in zip(group, unflatten_master_params(group, master.view(-1)), strict=True):
            p.copy_(value)


def unflatten_master_params(param_group: Sequence[tuple[str, Tensor]], master_param: Tensor) -> list[Tensor]:
    """A master's parts, shaped as the group's parameters: views."""
    parts = master_param.reshape(-1).split([p.numel() for _, p in param_group])
    return [part.view(p.shape) for part, (_, p) in zip(parts, param_group, strict=True)]


def master_params_to_state_dict(
    model: nn.Module,
    param_groups_and_shapes: Sequence[Group],
    master_params: Sequence[Tensor],
    use_fp16: bool,
) -> dict[str, Tensor]:
    """The model's state_dict with the masters' values; without ``use_fp16`` masters are one for one."""
    state = model.state_dict()
    if use_fp16:
        for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
            parts = unflatten_master_params(group, master)
            state.update((name, part) for (name, _), part in zip(group, parts, strict=True))
    else:
        names = (name for name, _ in model.named_parameters())
        state.update(zip(names, master_params, strict=True))
    return state


def state_dict_to_master_params(model: nn.Module, state_dict: dict[str, Tensor], use_fp16: bool) -> list[Any]:
    """The masters that a state_dict has."""
    named = [(name, state_dict[name]) for name, _ in model.named_parameters()]
    return make_master_params(get_param_groups_and_shapes(named)) if use_fp16 else [p for _, p in named]


def zero_master_grads(master_params: Iterable[Tensor]) -> None:
    """Forget the masters' gradients."""
    for master in master_params:
        master.grad = None


def zero_grad(model_params: Iterable[Tensor]) -> None:
    """The model's gradients to zero, where there are any."""
    for p in model_params:
        if p.grad is not None:
            p.grad = torch.zeros_like(p.grad)


def param_grad_or_zeros(param: Tensor) -> Tensor:
    """A parameter's gradient, or zeros of its shape."""
    return torch.zeros_like(param) if param.grad is None else param.grad.detach()


def check_overflow(value: float) -> bool:
    """True if a number is infinite or NaN."""
    return not math.isfinite(value)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.float().reshape(-1) for t in tensors])
