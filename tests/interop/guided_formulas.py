"""The published formulas of guided-diffusion's process, step by step in float64: what the mirror is judged by.

Sources: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (IDDPM), Song, Meng & Ermon 2021 (DDIM), Dhariwal & Nichol 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Formulas:
    betas: np.ndarray  # of the process that is walked
    timesteps: list[int]  # the times that the model is given
    mean: str  # "epsilon", "x0", "previous"
    variance: str
    time_scale: float = 1.0

    def tables(self, i: int) -> dict[str, float]:
        abar = np.cumprod(1 - self.betas)
        before = abar[i - 1] if i else 1.0
        after = abar[i + 1] if i + 1 < len(abar) else 0.0
        beta = self.betas[i]
        posterior = [
            beta_ * (1 - b) / (1 - a) for beta_, a, b in zip(self.betas, abar, [1.0, *abar[:-1]], strict=True)
        ]
        return {
            "abar": abar[i],
            "before": before,
            "after": after,
            "beta": beta,
            "c0": beta * math.sqrt(before) / (1 - abar[i]),
            "ct": (1 - before) * math.sqrt(1 - beta) / (1 - abar[i]),
            "log_small": math.log(posterior[i] if i else posterior[1]),
            "small": posterior[i],
            "large": self.betas[i] if i else posterior[1],
        }

    def call(self, model: Callable[..., Tensor], x: Tensor, i: int) -> Tensor:
        told = torch.full((len(x),), self.timesteps[i])
        return model(x, told.float() * self.time_scale if self.time_scale != 1 else told)

    def moments(self, model: Any, x: Tensor, i: int, clip: bool, denoised_fn: Any = None) -> dict[str, Any]:
        k, out = self.tables(i), self.call(model, x, i)
        if self.variance.startswith("learned"):
            out, v = out.chunk(2, dim=1)
            log_variance = v
            if self.variance == "learned_range":
                f = (v + 1) / 2
                log_variance = f * math.log(k["beta"]) + (1 - f) * k["log_small"]
            variance = log_variance.exp()
        elif self.variance == "fixed_small":
            log_variance, variance = _exact(k["log_small"]), _exact(k["small"])
        else:
            log_variance, variance = _exact(math.log(k["large"])), _exact(k["large"])
        if self.mean == "epsilon":
            x0 = x / math.sqrt(k["abar"]) - math.sqrt(1 / k["abar"] - 1) * out
        elif self.mean == "x0":
            x0 = out
        else:
            x0 = (out - k["ct"] * x) / k["c0"]
        x0 = denoised_fn(x0) if denoised_fn else x0
        x0 = x0.clamp(-1, 1) if clip else x0
        mean = out if self.mean == "previous" else k["c0"] * x0 + k["ct"] * x
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "x0": x0, "out": out, **k}

    def ancestral(self, model, x, i, noise, clip, cond_fn=None, denoised_fn=None) -> tuple[Tensor, Tensor]:
        m = self.moments(model, x, i, clip, denoised_fn)
        mean = m["mean"]
        if cond_fn is not None:
            mean = mean + m["variance"] * self.call(cond_fn, x, i)
        return mean + (i > 0) * torch.exp(0.5 * m["log_variance"]) * noise, m["x0"]

    def ddim(self, model, x, i, noise, clip, eta=0.0, cond_fn=None) -> tuple[Tensor, Tensor]:
        m = self.moments(model, x, i, clip)
        abar, before, x0 = m["abar"], m["before"], m["x0"]
        eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        if cond_fn is not None:
            eps = eps - math.sqrt(1 - abar) * self.call(cond_fn, x, i)
            x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        sigma = eta * math.sqrt((1 - before) / (1 - abar) * (1 - abar / before))
        mean = math.sqrt(before) * x0 + math.sqrt(1 - before - sigma**2) * eps
        return mean + (i > 0) * sigma * noise, x0

    def ddim_reverse(self, model, x, i, clip) -> Tensor:
        m = self.moments(model, x, i, clip)
        eps = (x - math.sqrt(m["abar"]) * m["x0"]) / math.sqrt(1 - m["abar"])
        return math.sqrt(m["after"]) * m["x0"] + math.sqrt(1 - m["after"]) * eps

    def q_sample(self, x0: Tensor, i: int, noise: Tensor) -> Tensor:
        abar = self.tables(i)["abar"]
        return math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise

    def bound_bits(self, model, x0, x_t, i, clip) -> Tensor:
        """One term of the bound [N]."""
        m = self.moments(model, x_t, i, clip)
        if i == 0:
            nats = -_discretized(x0, m["mean"], 0.5 * m["log_variance"])
        else:
            mean, log_variance = m["c0"] * x0 + m["ct"] * x_t, m["log_small"]
            difference = log_variance - m["log_variance"]
            nats = 0.5 * (
                -1 - difference + torch.exp(difference)
                + (mean - m["mean"]) ** 2 * torch.exp(-m["log_variance"])
            )  # fmt: skip
        return nats.flatten(1).mean(1) / math.log(2)


def _exact(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _discretized(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper, lower = (cdf(torch.exp(-log_scale) * (x - mean + s / 255)) for s in (1, -1))
    inner = torch.where(x > 0.999, (1 - lower).clamp(min=1e-12).log(), (upper - lower).clamp(min=1e-12).log())
    return torch.where(x < -0.999, upper.clamp(min=1e-12).log(), inner)
