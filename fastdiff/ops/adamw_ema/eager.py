"""adamw_ema as users write it today: scaled gradients, ``torch.optim.AdamW``, then ``lerp_`` for each average."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def adamw_ema(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    steps: list[Tensor],
    emas: list[Tensor],
    low: list[Tensor],
    grad_factor: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decays: list[float],
) -> None:
    """The op's arguments; PyTorch's fused AdamW where the dtypes allow it."""
    scaled = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
    if grad_factor is not None:
        scaled = torch._foreach_mul(scaled, grad_factor.to(params[0].dtype))
    adamw(
        *(params, list(scaled), exp_avg, exp_avg_sq, [], steps),
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
    for rate, decay in enumerate(decays):
        average = emas[rate * len(params) : (rate + 1) * len(params)]
        torch._foreach_lerp_(average, params, 1 - decay)
    if low:
        torch._foreach_copy_(low, params)
