"""adamw_ema in plain PyTorch, tensor by tensor: the specification and the fallback. Any layout and device."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """emas: those of the first decay, then those of the second. In place; in the parameters' dtype."""
    torch._foreach_add_(steps, 1.0)
    for i, (p, m, v) in enumerate(zip(params, exp_avg, exp_avg_sq, strict=True)):
        g = grads[i].to(p.dtype)
        if grad_factor is not None:
            g = g * grad_factor.to(p.dtype)
        # On the device and in float64, as torch.optim.AdamW has them on the host.
        step = steps[i].double()
        step_size = (lr / (1 - torch.pow(beta1, step))).to(p.dtype)
        root = (1 - torch.pow(beta2, step)).sqrt().to(p.dtype)
        p.mul_(1 - lr * weight_decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.sub_(step_size * m / (v.sqrt() / root + eps))
        for rate, decay in enumerate(decays):
            emas[rate * len(params) + i].lerp_(p, 1 - decay)
        if low:
            low[i].copy_(p)
