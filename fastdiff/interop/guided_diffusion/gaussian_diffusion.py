"""guided-diffusion's ``gaussian_diffusion`` on fastdiff's process, tables and fused step.

Formulas, defaults and the order in which random numbers are drawn are that package's: with the same torch random stream
the samples are the same to float32 rounding. The differences: nothing is uploaded at a step, and the loops' steps run
as one ``reverse_step`` if neither ``cond_fn`` nor ``denoised_fn`` is given and no formula is overridden or patched.
Forks of the package override ``p_mean_variance``, ``q_posterior_mean_variance`` and the conversions, which are then
called as in the original. Unknown keywords go from a loop to its step, and on to ``p_mean_variance``.

Oversights of the original are kept here (fastdiff's own API does not have them): guidance takes its gradient at x_t
instead of the mean (``p_sample``), and DDIM's guided estimate of x_0 is not clamped again. One is not kept: ``cond_fn``
without ``model_kwargs`` works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.diffusion import gaussian
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.interop.guided_diffusion.bounds import Losses
from fastdiff.interop.guided_diffusion.enums import VARIANCES
from fastdiff.interop.guided_diffusion.enums import LossType as LossType
from fastdiff.interop.guided_diffusion.enums import ModelMeanType as ModelMeanType
from fastdiff.interop.guided_diffusion.enums import ModelVarType as ModelVarType
from fastdiff.interop.guided_diffusion.enums import betas_for_alpha_bar as betas_for_alpha_bar
from fastdiff.interop.guided_diffusion.enums import get_named_beta_schedule as get_named_beta_schedule
from fastdiff.interop.guided_diffusion.fused import FusedSteps

ModelFunction = Callable[..., Tensor]


class GaussianDiffusion(Losses):
    """Training and sampling of a diffusion model; ``t`` counts from 0 to T - 1.

    Args:
        betas: [T] variances, the first step's first.
        model_mean_type, model_var_type, loss_type: members of the enumerations above.
        rescale_timesteps: the model sees t 1000 / T, floating-point.
    """

    def __init__(
        self,
        *,
        betas: Any,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ) -> None:
        self.model_mean_type, self.model_var_type, self.loss_type = model_mean_type, model_var_type, loss_type
        self.rescale_timesteps = rescale_timesteps
        prediction = "x0" if model_mean_type == ModelMeanType.START_X else "epsilon"
        variance: Any = VARIANCES[model_var_type]
        config = DiffusionConfig(prediction=prediction, variance=variance)
        self._process = gaussian.GaussianDiffusion(config, betas=np.array(betas, dtype=np.float64))
        self.num_timesteps = self._process.steps
        self._set_tables()
        self._fused = FusedSteps(self._process, model_mean_type != ModelMeanType.PREVIOUS_X)

    def _set_tables(self) -> None:
        """The arrays of which scripts read one or other: [T] float64."""
        self.betas = self._process.betas.numpy()
        self.alphas_cumprod = abar = self._process.alphas_bar.numpy()
        self.alphas_cumprod_prev = before = self._process.alphas_bar_prev.numpy()
        self.alphas_cumprod_next = np.append(abar[1:], 0.0)
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = np.sqrt(abar), np.sqrt(1 - abar)
        self.log_one_minus_alphas_cumprod = np.log(1 - abar)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1 / abar)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / abar - 1)
        self.posterior_variance = self._process.posterior_variance.numpy()
        self.posterior_log_variance_clipped = self._process.posterior_log_variance_clipped.numpy()
        levels = (
            self.sqrt_alphas_cumprod,
            self.sqrt_one_minus_alphas_cumprod,
            np.sqrt(before),
            np.sqrt(1 - before),
        )
        self.posterior_mean_coef1, self.posterior_mean_coef2, *_ = gaussian.posterior(*levels)

    # --- the forward process and conversions --------------------------------------------------------------

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_t | x_0)."""
        mean, variance, log_variance = self._process.q_mean_variance(x_start, t)
        return mean, variance.expand_as(mean), log_variance.expand_as(mean)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t; the noise is drawn if not given."""
        noise = torch.randn_like(x_start) if noise is None else noise
        assert noise.shape == x_start.shape
        return self._process.q_sample(x_start, t, noise)

    def q_posterior_mean_variance(
        self, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0)."""
        mean, variance, log_variance = self._process.q_posterior(x_start, x_t, t)
        return mean, variance.expand_as(mean), log_variance.expand_as(mean)

    def _predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        at = self._process._at
        return at("recip_sqrt_alphas_bar", t, x_t) * x_t - at("sigmas", t, x_t) * eps

    def _predict_xstart_from_xprev(self, x_t: Tensor, t: Tensor, xprev: Tensor) -> Tensor:
        c_0, c_t = (self._process._at(name, t, x_t) for name in ("posterior_c_0", "posterior_c_t"))
        return xprev / c_0 - c_t / c_0 * x_t

    def _predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        return self._process.predict_epsilon(pred_xstart, x_t, t)

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    # --- one step -----------------------------------------------------------------------------------------

    def p_mean_variance(
        self,
        model: ModelFunction,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Moments of p(x_{t-1} | x_t) and the estimate of x_0: mean, variance, log_variance, pred_xstart."""
        assert t.shape == x.shape[:1]
        output, values = self._split(model(x, self._scale_timesteps(t), **(model_kwargs or {})), x)
        variance, log_variance = self._process._variance(values, x, t)

        def processed(x0: Tensor) -> Tensor:
            x0 = x0 if denoised_fn is None else denoised_fn(x0)
            return x0.clamp(-1, 1) if clip_denoised else x0

        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            x0 = processed(self._predict_xstart_from_xprev(x_t=x, t=t, xprev=output))
            mean = output
        else:
            is_x0 = self.model_mean_type == ModelMeanType.START_X
            x0 = processed(output if is_x0 else self._predict_xstart_from_eps(x_t=x, t=t, eps=output))
            mean = self.q_posterior_mean_variance(x_start=x0, x_t=x, t=t)[0]
        return {
            "mean": mean,
            "variance": variance.expand_as(x),
            "log_variance": log_variance.expand_as(x),
            "pred_xstart": x0,
        }

    def _split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.model_var_type not in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE):
            return output, None
        channels = x.shape[1]
        assert output.shape == (x.shape[0], 2 * channels, *x.shape[2:])
        return output[:, :channels], output[:, channels:]

    def condition_mean(
        self,
        cond_fn: Callable[..., Tensor],
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs=None,
    ) -> Tensor:
        """The mean moved by variance times cond_fn(x, t), the gradient of a log probability (taken at x_t)."""
        gradient = cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {}))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self,
        cond_fn: Callable[..., Tensor],
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs=None,
    ) -> dict[str, Tensor]:
        """p_mean_variance's result had the score been moved by cond_fn (Song et al. 2020); x_0 is not clamped."""
        eps = self._predict_eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        sigma = self._process._at("sqrt_one_minus_alphas_bar", t, x)
        eps = eps - sigma * cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {}))
        x0 = self._predict_xstart_from_eps(x, t, eps)
        mean = self.q_posterior_mean_variance(x_start=x0, x_t=x, t=t)[0]
        return {**p_mean_var, "pred_xstart": x0, "mean": mean}

    def p_sample(
        self,
        model: ModelFunction,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Callable[..., Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> dict[str, Tensor]:
        """x_{t-1} ~ p(x_{t-1} | x_t): sample, pred_xstart. Draws noise at every t, that of t = 0 for nothing."""
        if self._is_fusible(t, cond_fn, denoised_fn, others):
            output = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
            return self._fused.ancestral(x, output, torch.randn_like(x), clip_denoised)
        out = self.p_mean_variance(
            model,
            x,
            t,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            model_kwargs=model_kwargs,
            **others,
        )
        noise = torch.randn_like(x)
        if cond_fn is not None:
            out["mean"] = self.condition_mean(cond_fn, out, x, t, model_kwargs=model_kwargs)
        std = _after_first(t, x) * torch.exp(0.5 * out["log_variance"])
        return {"sample": out["mean"] + std * noise, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: ModelFunction,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Callable[..., Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
        **others: Any,
    ) -> dict[str, Tensor]:
        """x_{t-1} by DDIM (Song, Meng & Ermon 2021, eq. 12): sample, pred_xstart. Draws noise whatever eta is."""
        if self._is_fusible(t, cond_fn, denoised_fn, others):
            output = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
            return self._fused.ddim(x, output, torch.randn_like(x), clip_denoised, eta)
        out = self.p_mean_variance(
            model,
            x,
            t,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            model_kwargs=model_kwargs,
            **others,
        )
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs=model_kwargs)
        at, x0 = self._process._at, out["pred_xstart"]
        eps = self._predict_eps_from_xstart(x, t, x0)
        abar, before = at("alphas_bar", t, x), at("alphas_bar_prev", t, x)
        sigma = eta * torch.sqrt((1 - before) / (1 - abar)) * torch.sqrt(1 - abar / before)
        noise = torch.randn_like(x)
        mean = x0 * torch.sqrt(before) + torch.sqrt(1 - before - sigma**2) * eps
        return {"sample": mean + _after_first(t, x) * sigma * noise, "pred_xstart": x0}

    def ddim_reverse_sample(
        self,
        model: ModelFunction,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """x_{t+1} by DDIM's reverse ordinary differential equation: sample, pred_xstart."""
        assert eta == 0.0, "the reverse ODE has no noise: eta must be 0"
        out = self.p_mean_variance(
            model,
            x,
            t,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            model_kwargs=model_kwargs,
        )
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        after = self._fused.next_alphas_bar(t, x)
        sample = out["pred_xstart"] * torch.sqrt(after) + torch.sqrt(1 - after) * eps
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def _is_fusible(self, t: Tensor, cond_fn: Any, denoised_fn: Any, others: dict[str, Any]) -> bool:
        """True if the step is the published one, at a timestep that the loop has made."""
        is_asked_for_more = cond_fn is not None or denoised_fn is not None or others
        return not is_asked_for_more and self._fused.knows(t) and is_as_published(self)

    # --- loops --------------------------------------------------------------------------------------------

    def p_sample_loop(self, model: ModelFunction, shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Samples by ancestral sampling; arguments are those of :meth:`p_sample_loop_progressive`."""
        *_, last = self.p_sample_loop_progressive(model, shape, *args, **kwargs)
        return last["sample"]

    def p_sample_loop_progressive(
        self,
        model: ModelFunction,
        shape: Any,
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Callable[..., Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: Any = None,
        progress: bool = False,
        **others: Any,
    ) -> Iterator[dict[str, Tensor]]:
        """:meth:`p_sample` from T - 1 to 0, result by result."""
        options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "cond_fn": cond_fn}
        options |= others
        return self._loop(
            self.p_sample, model, shape, noise, device, progress, model_kwargs=model_kwargs, **options
        )

    def ddim_sample_loop(self, model: ModelFunction, shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Samples by DDIM; arguments are those of :meth:`ddim_sample_loop_progressive`."""
        *_, last = self.ddim_sample_loop_progressive(model, shape, *args, **kwargs)
        return last["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: ModelFunction,
        shape: Any,
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Callable[..., Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: Any = None,
        progress: bool = False,
        eta: float = 0.0,
        **others: Any,
    ) -> Iterator[dict[str, Tensor]]:
        """:meth:`ddim_sample` from T - 1 to 0, result by result."""
        options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "cond_fn": cond_fn, "eta": eta}
        options |= others
        return self._loop(
            self.ddim_sample, model, shape, noise, device, progress, model_kwargs=model_kwargs, **options
        )

    def _loop(
        self, step, model, shape, noise, device, progress, **options: Any
    ) -> Iterator[dict[str, Tensor]]:
        device = next(model.parameters()).device if device is None else device
        x = torch.randn(*shape, device=device) if noise is None else noise
        steps = reversed(range(self.num_timesteps))
        for i in tqdm(steps, total=self.num_timesteps) if progress else steps:
            t = self._fused.timesteps(i, len(x), device)
            with torch.no_grad():
                out = step(model, x, t, **options)
                yield out
                x = out["sample"]


# The formulas that a fused step relies on, and the functions that it replaces.
_FORMULAS = (
    "p_mean_variance",
    "q_posterior_mean_variance",
    "_predict_xstart_from_eps",
    "_predict_xstart_from_xprev",
    "_predict_eps_from_xstart",
    "_scale_timesteps",
    "_split",
)
_published: dict[str, set[Any]] = {name: {getattr(GaussianDiffusion, name)} for name in _FORMULAS}


def publish(kind: type[GaussianDiffusion]) -> None:
    """Register this class's formulas as ones that a fused step computes, too."""
    for name in _FORMULAS:
        _published[name].add(getattr(kind, name))


def is_as_published(process: GaussianDiffusion) -> bool:
    """True if no formula has been overridden, or patched in the object or its class."""
    own, kind = vars(process), type(process)
    return not any(name in own or getattr(kind, name) not in _published[name] for name in _FORMULAS)


def _after_first(t: Tensor, x: Tensor) -> Tensor:
    """[N, 1, ..., 1]: 0 where t = 0, else 1."""
    return (t != 0).float().reshape(-1, *[1] * (x.dim() - 1))


def _extract_into_tensor(arr: np.ndarray, timesteps: Tensor, broadcast_shape: Any) -> Tensor:
    """arr[t] as float32, expanded to a shape: for scripts that use it; nothing here does."""
    values = torch.from_numpy(arr).to(device=timesteps.device)[timesteps].float()
    return values.reshape(-1, *[1] * (len(broadcast_shape) - 1)).expand(broadcast_shape)
