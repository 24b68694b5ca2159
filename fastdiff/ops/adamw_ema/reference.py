"""adamw_ema in plain PyTorch, tensor by tensor: the specification and the fallback. Any layout and device."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.adamw_ema`."""

    params: Annotated[list[Tensor], "Tensor(a!)[]"]
    grads: list[Tensor]
    exp_avg: Annotated[list[Tensor], "Tensor(b!)[]"]
    exp_avg_sq: Annotated[list[Tensor], "Tensor(c!)[]"]
    steps: Annotated[list[Tensor], "Tensor(d!)[]"]
    emas: Annotated[list[Tensor], "Tensor(e!)[]"]  # here those of the first decay, then those of the second
    low: Annotated[list[Tensor], "Tensor(f!)[]"]
    grad_factor: Tensor | None
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decays: list[float]


def adamw_ema(given: Arguments) -> None:
    """In place; in the parameters' dtype."""
    params, grads, exp_avg, exp_avg_sq, steps, emas, low, grad_factor = given[:8]
    lr, beta1, beta2 = given.lr, given.beta1, given.beta2
    torch._foreach_add_(steps, 1.0)
    for i, (p, m, v) in enumerate(zip(params, exp_avg, exp_avg_sq, strict=True)):
        g = grads[i].to(p.dtype)
        if grad_factor is not None:
            g = g * grad_factor.to(p.dtype)
        # On the device and in float64, as torch.optim.AdamW has them on the host.
        step = steps[i].double()
        step_size = (lr / (1 - torch.pow(beta1, step))).to(p.dtype)
        root = (1 - torch.pow(beta2, step)).sqrt().to(p.dtype)
        p.mul_(1 - lr * given.weight_decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.sub_(step_size * m / (v.sqrt() / root + given.eps))
        for rate, decay in enumerate(given.decays):
            emas[rate * len(params) + i].lerp_(p, 1 - decay)
        if low:
            low[i].copy_(p)
