"""diffusers' DDPM and DDIM schedulers with one ``reverse_step`` for a step.

They derive from diffusers' own: configuration, time steps and adding noise are theirs, ``step`` is not. The table has a
row for each training time step, and the time step itself is the row's number: on a GPU nothing is read back.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.interop.diffusers.steps import RefusesOptions, Table, converted, rows


def _noise(like: Tensor, channels: int, generator: Any) -> Tensor:
    """As diffusers draws it: the same numbers from the same generator."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)


class FastDDIMScheduler(RefusesOptions, DDIMScheduler):
    """Drop-in for ``DDIMScheduler``: ``FastDDIMScheduler.from_config(pipe.scheduler.config)``.

    Every option but thresholding and a clip_sample_range other than 1 is supported; those raise FastdiffError.

    Source: Song, Meng & Ermon 2021, eq. 12 and 16.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._tables: dict[tuple[float, bool], Table] = {}
        self._stride = (
            len(self.alphas_cumprod) // num_inference_steps
        )  # between time steps, as diffusers has it

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """x_t -> x_{t-1}; arguments and result are ``DDIMScheduler.step``'s."""
        if self.num_inference_steps is None:
            raise FastdiffError("call set_timesteps(num_inference_steps) before step")
        if eta > 0 and variance_noise is not None and generator is not None:
            raise FastdiffError("give generator or variance_noise, not both")
        if eta > 0 and variance_noise is None:
            variance_noise = _noise(model_output, model_output.shape[1], generator)
        key = (eta, use_clipped_model_output)
        if key not in self._tables:
            self._tables[key] = Table(self._rows(*key))
        after, x0 = self._tables[key].step(
            sample,
            model_output,
            timestep,
            h1=None if use_clipped_model_output else model_output,
            noise=variance_noise if eta > 0 else None,
            clip=self.config.clip_sample,
        )
        return DDIMSchedulerOutput(prev_sample=after, pred_original_sample=x0) if return_dict else (after, x0)

    def _rows(self, eta: float, use_clipped_model_output: bool) -> Tensor:
        r"""x' = sqrt(abar_p) x_0 + k eps + sigma z, k = sqrt(1 - abar_p - sigma^2), for every time step.

        eps comes from the model's output m (h_1, for it escapes the clamp) or from the clamped x_0.
        """
        abar = self.alphas_cumprod.cpu()
        previous = torch.arange(len(abar)) - self._stride
        before = torch.where(previous >= 0, abar[previous.clamp_min(0)], self.final_alpha_cumprod.cpu())
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        std = eta * ((1 - before) / (1 - abar) * (1 - abar / before)) ** 0.5
        k = (1 - before - std**2) ** 0.5
        o_x, o_m = converted(self.config.prediction_type, alpha, sigma)
        if use_clipped_model_output:
            return rows(len(abar), o_x=o_x, o_m=o_m, a=k / sigma, b=before**0.5 - k * alpha / sigma, s=std)
        of_x, of_m = {
            "epsilon": (torch.zeros_like(abar), torch.ones_like(abar)),
            "sample": (1 / sigma, -alpha / sigma),
            "v_prediction": (sigma, alpha),
        }[self.config.prediction_type]
        return rows(len(abar), o_x=o_x, o_m=o_m, a=k * of_x, b=before**0.5, c1=k * of_m, s=std)


class FastDDPMScheduler(RefusesOptions, DDPMScheduler):
    """Drop-in for ``DDPMScheduler``: ``FastDDPMScheduler.from_config(pipe.scheduler.config)``.

    Variances fixed_small, fixed_small_log, fixed_large and learned_range; the others, thresholding and a
    clip_sample_range other than 1 raise FastdiffError.

    Source: Ho, Jain & Abbeel 2020, eq. 7 and 15; Nichol & Dhariwal 2021, eq. 15 (learned range).
    """

    _VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")

    def _unsupported(self) -> str | None:
        if self.config.variance_type not in self._VARIANCES:
            return f"variance_type={self.config.variance_type!r} (it has {', '.join(self._VARIANCES)})"
        return super()._unsupported()

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self._table = None

    _table: Table | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """x_t -> x_{t-1}; arguments and result are ``DDPMScheduler.step``'s.

        As there, no noise is drawn at t = 0; on a GPU, where asking a tensor would wait for the device, it is, and not
        used.
        """
        if self._table is None:
            self._table = Table(self._rows())
        channels = sample.shape[1]
        learned = self.config.variance_type == "learned_range" and model_output.shape[1] == 2 * channels
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        noise = _noise(model_output, channels, generator) if not on_host or timestep > 0 else None
        after, x0 = self._table.step(
            sample,
            model_output,
            timestep,
            noise=noise,
            clip=self.config.clip_sample,
            variance="learned_range" if learned else "none",
        )
        return DDPMSchedulerOutput(prev_sample=after, pred_original_sample=x0) if return_dict else (after, x0)

    def _rows(self) -> Tensor:
        """For every time step; NaN for those that the chosen steps leave out."""
        abar = self.alphas_cumprod.cpu()
        previous = torch.arange(len(abar)) - 1
        if self.custom_timesteps or self.num_inference_steps:
            chosen = self.timesteps.cpu()
            previous = torch.full_like(previous, -2)
            previous[chosen] = torch.cat((chosen[1:], torch.tensor([-1])))
        before = torch.where(previous >= 0, abar[previous.clamp_min(0)], self.one)
        before = torch.where(previous == -2, torch.nan, before)
        alpha_step = abar / before
        beta_step = 1 - alpha_step
        small = ((1 - before) / (1 - abar) * beta_step).clamp_min(1e-20)
        std = beta_step**0.5 if self.config.variance_type == "fixed_large" else small**0.5
        o_x, o_m = converted(self.config.prediction_type, abar**0.5, (1 - abar) ** 0.5)
        noisy = (torch.arange(len(abar)) > 0).float()
        return rows(
            len(abar),
            o_x=o_x,
            o_m=o_m,
            a=alpha_step**0.5 * (1 - before) / (1 - abar),
            b=before**0.5 * beta_step / (1 - abar),
            s=std * noisy,
            l0=torch.log(small),
            l1=torch.log(beta_step),
            n=noisy,
        )
