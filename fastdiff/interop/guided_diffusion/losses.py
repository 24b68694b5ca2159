"""guided-diffusion's ``losses``, which are ``fastdiff.diffusion.likelihood``'s."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion import likelihood


def normal_kl(mean1: Any, logvar1: Any, mean2: Any, logvar2: Any) -> Tensor:
    """KL of two normals, in nats, elementwise; numbers and tensors broadcast, one at least is a tensor."""
    tensor = next((v for v in (mean1, logvar1, mean2, logvar2) if isinstance(v, Tensor)), None)
    if tensor is None:
        raise TypeError("normal_kl: one of the arguments must be a tensor")
    a, b, c, d = (
        v if isinstance(v, Tensor) else torch.tensor(v).to(tensor) for v in (mean1, logvar1, mean2, logvar2)
    )
    return likelihood.normal_kl(a, b, c, d)


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function."""
    return likelihood.normal_cdf(x)


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """Log probability of 8-bit levels, in nats, elementwise. ``log_scales`` are logs of standard deviations."""
    return likelihood.discretized_gaussian_log_likelihood(x, means, 2 * log_scales)
