"""Training losses of a denoiser."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from fastdiff.choices import Loss
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.likelihood import bound_term, mean_flat
from fastdiff.diffusion.process import Model, Process
from fastdiff.diffusion.weighting import LossWeighting
from fastdiff.errors import FastdiffError


def training_losses(
    process: Process,
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    noise: Tensor,
    loss: Loss = "mse",
    weighting: LossWeighting | None = None,
    **cond: Any,
) -> dict[str, Tensor]:
    """Losses of one batch, per sample.

    With mse = w_t mean((target - prediction)^2) and vb = one term of the bound in bits per dimension:

    =============== ================================================================================
    mse             mse; + vb if the variance is learned
    rescaled_mse    mse; + T/1000 vb if the variance is learned (ADM's released models)
    hybrid          mse + vb; the variance must be learned
    rescaled_hybrid mse + T/1000 vb = L_simple + 0.001 L_vlb (IDDPM equation 16); it must be learned
    kl              vb alone
    rescaled_kl     T vb: an unbiased estimate of the whole bound
    =============== ================================================================================

    Beside an mse, vb trains only the variance: the mean it sees is detached (IDDPM, section 3.1).

    Args:
        model: called once, as ``model(x_t, process.model_time(t), **cond)``.
        x0: [N,C,*] data in [-1, 1]. t: [N], int64 steps, or sigmas of a process in continuous time. noise: like x0.
        weighting: w_t of the squared error; None: 1. As in P2's code, vb has no weight.

    Returns:
        ``loss`` [N], and its parts ``mse`` and ``vb`` [N] where they are used.

    Raises:
        FastdiffError: unknown loss, a hybrid loss without learned variance, the bound of a process that has none, a
            weighting of vb alone, wrong shapes.
    """
    check_loss(process, loss)
    check_weighting(loss, weighting)
    if noise.shape != x0.shape:
        raise FastdiffError(f"noise must have the shape of x0 {list(x0.shape)}, got {list(noise.shape)}")
    x_t = process.q_sample(x0, t, noise)
    output = model(x_t, process.model_time(t), **cond)
    if loss in ("kl", "rescaled_kl"):
        assert isinstance(process, GaussianDiffusion)
        vb = bound_term(process, output, x0, x_t, t, clip=False).bits
        return {"loss": vb * process.steps if loss == "rescaled_kl" else vb, "vb": vb}

    prediction, variance = process.split(output, x_t)
    mse = mean_flat((process.target(x0, t, noise) - prediction) ** 2)
    if weighting is not None and weighting.kind != "none":
        mse = mse * weighting(process, t, x0)
    if variance is None:
        return {"loss": mse, "mse": mse}
    assert isinstance(process, GaussianDiffusion)
    frozen = torch.cat([prediction.detach(), variance], dim=1)
    vb = bound_term(process, frozen, x0, x_t, t, clip=False).bits
    weight = process.steps / 1000 if loss.startswith("rescaled") else 1.0
    return {"loss": mse + weight * vb, "mse": mse, "vb": vb}


def check_weighting(loss: str, weighting: LossWeighting | None) -> None:
    """Raise FastdiffError for a weighting of the squared error where the loss has none."""
    if weighting is not None and weighting.kind != "none" and "kl" in loss:
        raise FastdiffError(
            f"loss weighting {weighting.kind!r} is of the squared error, and loss {loss!r} has none; "
            "use a loss with an mse, or leave the weighting out"
        )


def check_loss(process: Process, loss: str) -> None:
    """Raise FastdiffError for an unknown loss, or one that the process does not have."""
    if loss not in get_args(Loss):
        raise FastdiffError(f"unknown loss {loss!r}; known: {', '.join(get_args(Loss))}")
    if "kl" in loss and not isinstance(process, GaussianDiffusion):
        raise FastdiffError(
            f"loss {loss!r} is the bound of a process in discrete steps, and this one is of kind "
            f"{process.config.parametrisation!r}; use 'mse'"
        )
    if "hybrid" in loss and not process.config.learns_variance:
        raise FastdiffError(
            f"loss {loss!r} trains a learned variance, but the diffusion's variance is "
            f"{process.config.variance!r}; use 'mse' or 'kl', or variance 'learned_range'"
        )
