"""adamw_ema as users write it today: scaled gradients, ``torch.optim.AdamW``, then ``lerp_`` for each average."""

from __future__ import annotations

import torch
from torch.optim.adamw import adamw

from fastdiff.ops.adamw_ema.reference import Arguments


def adamw_ema(given: Arguments) -> None:
    """PyTorch's fused AdamW where the dtypes allow it."""
    params, grads, exp_avg, exp_avg_sq, steps, emas, low, grad_factor = given[:8]
    scaled = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
    if grad_factor is not None:
        scaled = torch._foreach_mul(scaled, grad_factor.to(params[0].dtype))
    adamw(
        *(params, list(scaled), exp_avg, exp_avg_sq, [], steps),
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=given.lr,
        beta1=given.beta1,
        beta2=given.beta2,
        eps=given.eps,
        weight_decay=given.weight_decay,
    )
    for rate, decay in enumerate(given.decays):
        average = emas[rate * len(params) : (rate + 1) * len(params)]
        torch._foreach_lerp_(average, params, 1 - decay)
    if low:
        torch._foreach_copy_(low, params)
