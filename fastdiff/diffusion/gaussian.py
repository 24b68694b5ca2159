"""The Gaussian diffusion process and its reverse, as tables and formulas (no sampling loop here).

Equation numbers: DDPM = Ho et al. 2020; IDDPM = Nichol & Dhariwal 2021. abar_t is the product of (1 - beta).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion import schedule
from fastdiff.diffusion.config import DiffusionConfig, Prediction
from fastdiff.diffusion.process import Model as Model
from fastdiff.diffusion.process import NoiseLevels, Process
from fastdiff.errors import FastdiffError

# Above sigma = 80 data in [-1, 1] are lost in the noise (EDM, table 1); cosine schedules go on to 20000.
MAX_SIGMA = 80.0


class Moments(NamedTuple):
    """Mean, variance and log-variance of a diagonal Gaussian; broadcastable to x."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class ReverseMoments(NamedTuple):
    """The model's p(x_{t-1} | x_t), with the estimate of x_0 from which it was derived."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x0: Tensor


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, variance), and beta, the variance of q(x_t | x_s)."""

    c_0: np.ndarray
    c_t: np.ndarray
    variance: np.ndarray
    beta: np.ndarray


def posterior(
    signal: np.ndarray, noise: np.ndarray, signal_prev: np.ndarray, noise_prev: np.ndarray
) -> Posterior:
    """The posterior of the less noisy of two levels x = signal x_0 + noise z of one process (DDPM equations 6, 7).

    With signal^2 = abar and noise^2 = 1 - abar, beta is DDPM's 1 - abar_t / abar_s.
    """
    ratio = signal / signal_prev
    beta = noise**2 - (ratio * noise_prev) ** 2
    share = (noise_prev / noise) ** 2
    return Posterior(beta * signal_prev / noise**2, ratio * share, beta * share, beta)


def _levels(alphas_bar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(signal, noise) of a process that preserves variance."""
    return np.sqrt(alphas_bar), np.sqrt(1 - alphas_bar)


def clipped_log(variance: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Log of the posterior variances, whose first, log 0, is replaced by the second (IDDPM's code).

    A process of a single step has no second; its beta is used.
    """
    return np.log(np.append(variance[1] if len(variance) > 1 else beta[0], variance[1:]))


class GaussianDiffusion(Process):
    """The forward process q(x_t | x_0) in T discrete steps, and the reverse step that follows from a model's output.

    Tables are float64 on the CPU. Each device gets one copy in the working precision (float32; float64 for float64
    x), so that no call uploads data.

    Args:
        config: schedule, prediction and variance; None: ``DiffusionConfig()``.
        betas: T variances that replace ``config.schedule`` and ``config.steps``.

    Attributes:
        betas, alphas_bar, alphas_bar_prev, posterior_variance, posterior_log_variance_clipped: [T] float64.
        timestep_map: [T] int64, the model's own timestep of each step (0..T-1 unless :meth:`respaced`).
        time_scale: factor of ``timestep_map`` in the times that the model is given.

    Raises:
        FastdiffError: betas that are not strictly between 0 and 1; a config of a process in continuous time.
    """

    starts_unscaled = True

    def __init__(
        self,
        config: DiffusionConfig | None = None,
        *,
        betas: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> None:
        config = config or DiffusionConfig()
        if config.parametrisation != "discrete":
            raise FastdiffError(
                f"a model of kind {config.parametrisation!r} has no discrete steps and so no GaussianDiffusion, as "
                "bits per dimension and schedulers need them; sampling and training work without"
            )
        if betas is None:
            table = schedule.betas(config.schedule, config.steps)
        else:
            table = np.asarray(betas, dtype=np.float64)
            if table.ndim != 1 or not len(table) or not ((table > 0) & (table < 1)).all():
                raise FastdiffError("betas must be a list of numbers between 0 and 1, at least one")
            config = replace(config, steps=len(table))
        self.config = config
        self.time_scale = 1000 / config.steps if config.rescale_timesteps else 1.0
        self.timestep_map = torch.arange(len(table))
        self._set_tables(table)

    def _set_tables(self, betas: np.ndarray) -> None:
        alphas_bar = np.cumprod(1 - betas)
        alphas_bar_prev = np.append(1.0, alphas_bar[:-1])
        c_0, c_t, variance, _ = posterior(*_levels(alphas_bar), *_levels(alphas_bar_prev))
        log_variance = clipped_log(variance, betas)
        # "fixed_large" also replaces its first variance: the likelihood of the last step is better (IDDPM).
        large = np.append(np.exp(log_variance[0]), betas[1:])
        self._tables = {
            "betas": betas,
            "alphas_bar": alphas_bar,
            "alphas_bar_prev": alphas_bar_prev,
            "posterior_variance": variance,
            "posterior_log_variance_clipped": log_variance,
            "posterior_c_0": c_0,
            "posterior_c_t": c_t,
            "log_betas": np.log(betas),
            "variance_large": large,
            "log_variance_large": np.log(large),
            "log_one_minus_alphas_bar": np.log(1 - alphas_bar),
            "one_minus_alphas_bar": 1 - alphas_bar,
            "snr": alphas_bar / (1 - alphas_bar),
            "sqrt_alphas_bar": np.sqrt(alphas_bar),
            "sqrt_one_minus_alphas_bar": np.sqrt(1 - alphas_bar),
            "recip_sqrt_alphas_bar": np.sqrt(1 / alphas_bar),
            "sigmas": np.sqrt(1 / alphas_bar - 1),
        }
        logs = np.log(self._tables["sigmas"])
        self._tables["between"] = np.exp((logs[1:] + logs[:-1]) / 2)  # ends of the steps' neighbourhoods
        self._cache: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self.betas = torch.from_numpy(betas)
        self.alphas_bar = torch.from_numpy(alphas_bar)
        self.alphas_bar_prev = torch.from_numpy(alphas_bar_prev)
        self.posterior_variance = torch.from_numpy(variance)
        self.posterior_log_variance_clipped = torch.from_numpy(log_variance)

    @property
    def steps(self) -> int:
        """Number of steps of this (perhaps respaced) process."""
        return len(self.betas)

    def respaced(self, spec: int | str) -> GaussianDiffusion:
        """The process that visits only some of the steps, for example ``respaced("ddim50")``.

        Its betas are 1 - abar_i / abar_{i-1} over the kept steps, so that every kept x_t has the same
        distribution as before; the model is still given the original timesteps.

        Raises:
            FastdiffError: see :func:`fastdiff.diffusion.schedule.space_timesteps`.
        """
        kept = schedule.space_timesteps(spec, self.steps)
        alphas_bar = self.alphas_bar.numpy()[kept]
        result = GaussianDiffusion(self.config, betas=1 - alphas_bar / np.append(1.0, alphas_bar[:-1]))
        result.config, result.time_scale = self.config, self.time_scale
        result.timestep_map = self.timestep_map[kept]
        return result

    def model_time(self, t: Tensor) -> Tensor:
        """The times that the model is given for steps t [N]: int64, or float32 if timesteps are rescaled."""
        key = ("timestep_map", t.device, torch.int64)
        if key not in self._cache:
            self._cache[key] = self.timestep_map.to(t.device)
        time = self._cache[key][t]
        return time.float() * self.time_scale if self.config.rescale_timesteps else time

    # --- sampling -----------------------------------------------------------------------------------------

    @property
    def most_steps(self) -> int:
        return self.steps

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The ends of the process's own levels, up to 80."""
        sigmas = self._tables["sigmas"]
        return float(sigmas[0]), min(float(sigmas[-1]), MAX_SIGMA)

    def own_levels(self, steps: int | str) -> NoiseLevels:
        """The steps that :meth:`respaced` keeps."""
        short = self.respaced(steps)
        times = short.timestep_map.numpy()[::-1] * short.time_scale
        return NoiseLevels(*_levels(short.alphas_bar.numpy()[::-1]), times.astype(np.float64))

    def levels(self, sigmas: np.ndarray) -> NoiseLevels:
        """Between the steps the model's time is linear in log sigma (equally: in log-SNR), and held at the ends."""
        steps = np.arange(self.steps)
        position = np.interp(np.log(sigmas), np.log(self._tables["sigmas"]), steps)
        times = np.interp(position, steps, self.timestep_map.numpy()) * self.time_scale
        signal = 1 / np.sqrt(1 + sigmas**2)
        return NoiseLevels(signal, sigmas * signal, times)

    def to_x0(self, signal: float, noise: float) -> tuple[float, float]:
        """See :meth:`predict_x0`."""
        of = {"epsilon": (1 / signal, -noise / signal), "x0": (0.0, 1.0), "v": (signal, -noise)}
        return of[self.config.prediction]

    def with_prediction(self, prediction: Prediction) -> GaussianDiffusion:
        result = copy.copy(self)
        result.config = replace(self.config, prediction=prediction)
        return result

    # --- the forward process ------------------------------------------------------------------------------

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM equation 4). x0, noise [N,C,*]; t [N]."""
        return self._at("sqrt_alphas_bar", t, x0) * x0 + self._at("sqrt_one_minus_alphas_bar", t, x0) * noise

    def q_mean_variance(self, x0: Tensor, t: Tensor) -> Moments:
        """Moments of q(x_t | x_0)."""
        mean = self._at("sqrt_alphas_bar", t, x0) * x0
        return Moments(
            mean, self._at("one_minus_alphas_bar", t, x0), self._at("log_one_minus_alphas_bar", t, x0)
        )

    def snr(self, t: Tensor, like: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t) of x_t, [N,1,...,1] to broadcast against ``like`` [N,C,*]."""
        return self._at("snr", t, like)

    def error_factor(self, t: Tensor, like: Tensor) -> Tensor:
        snr = self.snr(t, like)
        return {"epsilon": 1 / snr, "x0": torch.ones_like(snr), "v": 1 / (snr + 1)}[self.config.prediction]

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Moments:
        """Moments of q(x_{t-1} | x_t, x_0) (DDPM equations 6, 7); the log-variance is clipped at t = 0."""
        mean = self._at("posterior_c_0", t, x_t) * x0 + self._at("posterior_c_t", t, x_t) * x_t
        variance = self._at("posterior_variance", t, x_t)
        return Moments(mean, variance, self._at("posterior_log_variance_clipped", t, x_t))

    def sigmas(self, t: Tensor) -> Tensor:
        return self._table("sigmas", t.device)[t]

    def nearest(self, sigma: Tensor) -> Tensor:
        return torch.searchsorted(self._table("between", sigma.device), sigma.double())

    # --- what a model's output means ----------------------------------------------------------------------

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The target of the model at x_t = q_sample(x0, t, noise): noise, x_0 or v, by the config.

        v = sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans & Ho 2022, appendix D).
        """
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "x0":
            return x0
        return self._at("sqrt_alphas_bar", t, x0) * noise - self._at("sqrt_one_minus_alphas_bar", t, x0) * x0

    def predict_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 from the model's prediction [N,C,*] at x_t."""
        if self.config.prediction == "x0":
            return prediction
        if self.config.prediction == "epsilon":
            return self._at("recip_sqrt_alphas_bar", t, x_t) * x_t - self._at("sigmas", t, x_t) * prediction
        sqrt_one_minus = self._at("sqrt_one_minus_alphas_bar", t, x_t)
        return self._at("sqrt_alphas_bar", t, x_t) * x_t - sqrt_one_minus * prediction

    def predict_epsilon(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t: (x_t / sqrt(abar) - x_0) / sqrt(1 / abar - 1)."""
        return (self._at("recip_sqrt_alphas_bar", t, x_t) * x_t - x0) / self._at("sigmas", t, x_t)

    def p_mean_variance(
        self, model: Model, x: Tensor, t: Tensor, *, clip: bool = True, **cond: Any
    ) -> ReverseMoments:
        """Moments of the model's p(x_{t-1} | x_t), and its estimate of x_0.

        Args:
            model: called as ``model(x, model_time(t), **cond)``.
            x: x_t, [N,C,*].
            t: [N] int64 steps of this process.
            clip: clamp the estimate of x_0 to [-1, 1] before the mean is taken.

        Raises:
            FastdiffError: the model's output has the wrong shape.
        """
        return self.moments(model(x, self.model_time(t), **cond), x, t, clip=clip)

    def moments(self, output: Tensor, x: Tensor, t: Tensor, *, clip: bool = True) -> ReverseMoments:
        """:meth:`p_mean_variance` for a given model output."""
        prediction, v = self.split(output, x)
        variance, log_variance = self._variance(v, x, t)
        x0 = self.predict_x0(prediction, x, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean = self._at("posterior_c_0", t, x) * x0 + self._at("posterior_c_t", t, x) * x
        return ReverseMoments(mean, variance, log_variance, x0)

    def _variance(self, v: Tensor | None, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if v is None:
            if self.config.variance == "fixed_large":
                return self._at("variance_large", t, x), self._at("log_variance_large", t, x)
            log_variance = self._at("posterior_log_variance_clipped", t, x)
            return self._at("posterior_variance", t, x), log_variance
        if self.config.variance == "learned_range":  # IDDPM equation 15, with v in [-1, 1]
            fraction = (v + 1) / 2
            low = self._at("posterior_log_variance_clipped", t, x)
            v = fraction * self._at("log_betas", t, x) + (1 - fraction) * low
        return v.exp(), v

    def _table(self, name: str, device: torch.device) -> Tensor:
        """A table in float64 on a device, to which it is copied once."""
        key = (name, device, torch.float64)
        if key not in self._cache:
            self._cache[key] = torch.from_numpy(self._tables[name]).to(device)
        return self._cache[key]

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """table[t] shaped [N,1,...,1] to broadcast against ``like``, on its device."""
        if t.shape != like.shape[:1] or t.is_floating_point():
            raise FastdiffError(
                f"t must be whole numbers, one per sample, [{like.shape[0]}], got {t.dtype} {list(t.shape)}"
            )
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (name, like.device, dtype)
        if key not in self._cache:
            self._cache[key] = torch.from_numpy(self._tables[name]).to(like.device, dtype)
        return self._cache[key][t].reshape(-1, *[1] * (like.ndim - 1))
