"""reverse_step as eager PyTorch users run it today: one operation after the other, tables looked up at each step.

The chain is that of guided-diffusion's ``p_sample``: the row's coefficients are gathered for every sample, cast, and
broadcast; then come the variance, x_0, the mean, the noise. What such code computes besides and never uses (the
posterior's own variance, exp of the log-variance) is left out, so that the baseline is not made slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.ops.philox import reference as philox
from fastdiff.ops.reverse_step.reference import Arguments
from fastdiff.ops.reverse_step.table import COLUMNS


def reverse_step(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The whole of the op, with Philox noise and flags: in float64 the truth of the tests."""
    x, outputs = given.x, [o for o in (given.model_output, given.uncond) if o is not None]
    if given.seeds is not None:
        noise = philox.normal(given.seeds, x.shape[1:], step=given.index, stream=given.stream, dtype=x.dtype)
        given = given._replace(noise=noise)
    finite = torch.stack([torch.isfinite(o).flatten(1).all(1) for o in outputs]).all(0)
    return *_chain(given), (~finite).int()


def with_randn(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The baseline: no more than users do.

    Noise is ``torch.randn_like``, not that of the seeds; no flag is raised.
    """
    if given.seeds is not None:
        given = given._replace(noise=torch.randn_like(given.x))
    return *_chain(given), torch.zeros(len(given.x), dtype=torch.int32, device=given.x.device)


def _chain(given: Arguments) -> tuple[Tensor, Tensor]:
    x, model_output, uncond = given.x, given.model_output, given.uncond
    t = given.index.expand(x.shape[0])
    dtype = torch.promote_types(x.dtype, torch.float32)

    def at(column: str) -> Tensor:
        """The column's entry for each sample's step, broadcast to x's shape."""
        entries = given.table[:, COLUMNS.index(column)][t].to(dtype)
        return entries.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)

    out, v = model_output[:, : x.shape[1]], model_output[:, x.shape[1] :]
    if uncond is not None:
        base = uncond[:, : x.shape[1]]
        out = base + at("guidance") * (out - base)
    if given.variance == "learned_range":
        fraction = (v + 1) / 2
        v = fraction * at("log_max") + (1 - fraction) * at("log_min")
    x0 = at("out_x") * x + at("out_m") * out
    if given.clip:
        x0 = x0.clamp(-1, 1)
    sample = at("x") * x + at("x0") * x0
    for column, history in (("h1", given.h1), ("h2", given.h2)):
        if history is not None:
            sample = sample + at(column) * history
    if given.noise is not None:
        std = at("std") if given.variance == "none" else at("noise_on") * torch.exp(0.5 * v)
        sample = sample + std * given.noise
    return sample.to(x.dtype), x0.to(x.dtype)
