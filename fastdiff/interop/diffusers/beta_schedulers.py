"""diffusers' DDPM and DDIM schedulers with one ``reverse_step`` for a step.

Everything but ``step`` is diffusers' own, and so is ``step`` where one ``reverse_step`` cannot do it. The table has a
row for each training time step, and the time step itself is the row's number: on a GPU nothing is read back.

Coefficients are computed in float32 in diffusers' order, not taken from fastdiff's samplers: near abar = 1 the rounding
is visible in the images, and a drop-in replacement has to make the same images.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.interop.diffusers.steps import Table, Tables, converted, is_fusible, rows

Generator = torch.Generator | list[torch.Generator] | None
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def _noise(like: Tensor, channels: int, generator: Any) -> Tensor:
    """Noise as diffusers draws it: the same numbers from the same generator."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)


def ddim_step(
    self: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Generator = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """x_t -> x_{t-1}; arguments and result are ``DDIMScheduler.step``'s.

    Source: Song, Meng & Ermon 2021, eq. 12 and 16.
    """
    fusible = (
        self.num_inference_steps is not None
        and not isinstance(eta, Tensor)
        and not (eta > 0 and variance_noise is not None and generator is not None)
        and self.config.prediction_type in _PREDICTIONS
        and is_fusible(self, sample, model_output)
        and sample.shape == model_output.shape
    )
    if not fusible:
        given = eta, use_clipped_model_output, generator, variance_noise, return_dict
        return DDIMScheduler.step(self, model_output, timestep, sample, *given)  # pyright: ignore[reportArgumentType]
    if eta > 0 and variance_noise is None:
        variance_noise = _noise(model_output, model_output.shape[1], generator)
    key = float(eta), bool(use_clipped_model_output)
    table = Tables.of(self).get(key, lambda: Table(_ddim_rows(self, *key)))
    after, x0 = table.step(
        sample,
        model_output,
        timestep,
        h1=None if use_clipped_model_output else model_output,
        noise=variance_noise if eta > 0 else None,
        clip=self.config.clip_sample,
    )
    return DDIMSchedulerOutput(prev_sample=after, pred_original_sample=x0) if return_dict else (after, x0)


def _ddim_rows(scheduler: Any, eta: float, use_clipped_model_output: bool) -> Tensor:
    r"""x' = sqrt(abar_p) x_0 + k eps + sigma z, k = sqrt(1 - abar_p - sigma^2), for every time step.

    eps comes from the model's output m (h_1, for it escapes the clamp) or from the clamped x_0.
    """
    config, abar = scheduler.config, scheduler.alphas_cumprod.cpu()
    previous = torch.arange(len(abar)) - config.num_train_timesteps // scheduler.num_inference_steps
    before = torch.where(previous >= 0, abar[previous.clamp_min(0)], scheduler.final_alpha_cumprod.cpu())
    alpha, sigma = abar**0.5, (1 - abar) ** 0.5
    std = eta * ((1 - before) / (1 - abar) * (1 - abar / before)) ** 0.5
    k = (1 - before - std**2) ** 0.5
    out_x, out_m = converted(config.prediction_type, alpha, sigma)
    if use_clipped_model_output:
        return rows(
            len(abar), out_x=out_x, out_m=out_m, x=k / sigma, x0=before**0.5 - k * alpha / sigma, std=std
        )
    of_x, of_m = {
        "epsilon": (torch.zeros_like(abar), torch.ones_like(abar)),
        "sample": (1 / sigma, -alpha / sigma),
        "v_prediction": (sigma, alpha),
    }[config.prediction_type]
    return rows(len(abar), out_x=out_x, out_m=out_m, x=k * of_x, x0=before**0.5, h1=k * of_m, std=std)


_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


def ddpm_step(
    self: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    generator: Generator = None,
    return_dict: bool = True,
) -> Any:
    """x_t -> x_{t-1}; arguments and result are ``DDPMScheduler.step``'s.

    As in diffusers, no noise is drawn at t = 0; on a GPU, where reading t would wait for the device, noise is drawn and
    not used.

    Source: Ho, Jain & Abbeel 2020, eq. 7 and 15; Nichol & Dhariwal 2021, eq. 15 (learned range).
    """
    on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
    fusible = (
        self.variance_type in _VARIANCES
        and self.config.prediction_type in _PREDICTIONS
        and is_fusible(self, sample, model_output)
    )
    if fusible:
        channels, twice = sample.shape[1], model_output.shape[1] == 2 * sample.shape[1]
        learned = self.variance_type == "learned_range"
        table, chosen = Tables.of(self).get("all", lambda: _ddpm_table(self))
        fusible = twice == learned and (not on_host or int(timestep) in chosen)
        fusible = fusible and (twice or sample.shape == model_output.shape)
    if not fusible:
        return DDPMScheduler.step(self, model_output, timestep, sample, generator, return_dict)  # pyright: ignore[reportArgumentType]
    noise = _noise(model_output, channels, generator) if not on_host or timestep > 0 else None
    after, x0 = table.step(
        sample,
        model_output,
        timestep,
        noise=noise,
        clip=self.config.clip_sample,
        variance="learned_range" if learned else "none",
    )
    return DDPMSchedulerOutput(prev_sample=after, pred_original_sample=x0) if return_dict else (after, x0)


def _ddpm_table(scheduler: Any) -> tuple[Table, set[int]]:
    """Rows for every time step, NaN for those that the chosen steps leave out; and which are not."""
    abar = scheduler.alphas_cumprod.cpu()
    previous = torch.arange(len(abar)) - 1
    if scheduler.custom_timesteps or scheduler.num_inference_steps:
        chosen = scheduler.timesteps.cpu()
        previous = torch.full_like(previous, -2)
        previous[chosen] = torch.cat((chosen[1:], torch.tensor([-1])))
    before = torch.where(previous >= 0, abar[previous.clamp_min(0)], scheduler.one)
    before = torch.where(previous == -2, torch.nan, before)
    alpha_step = abar / before
    beta_step = 1 - alpha_step
    small = ((1 - before) / (1 - abar) * beta_step).clamp_min(1e-20)
    std = beta_step**0.5 if scheduler.variance_type == "fixed_large" else small**0.5
    out_x, out_m = converted(scheduler.config.prediction_type, abar**0.5, (1 - abar) ** 0.5)
    noisy = (torch.arange(len(abar)) > 0).float()
    table = rows(
        len(abar),
        out_x=out_x,
        out_m=out_m,
        x=alpha_step**0.5 * (1 - before) / (1 - abar),
        x0=before**0.5 * beta_step / (1 - abar),
        std=std * noisy,
        log_min=torch.log(small),
        log_max=torch.log(beta_step),
        noise_on=noisy,
    )
    return Table(table), set((previous != -2).nonzero().flatten().tolist())


class FastDDIMScheduler(DDIMScheduler):
    """Drop-in for ``DDIMScheduler``: ``FastDDIMScheduler.from_config(pipe.scheduler.config)``, every option."""

    step = ddim_step


class FastDDPMScheduler(DDPMScheduler):
    """Drop-in for ``DDPMScheduler``: ``FastDDPMScheduler.from_config(pipe.scheduler.config)``, every option."""

    step = ddpm_step
