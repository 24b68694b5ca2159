"""consistency_models' ``karras_diffusion``: EDM's and consistency models' denoiser, their losses and sampling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.diffusion.continuous import LEAST_SIGMA
from fastdiff.diffusion.likelihood import mean_flat
from fastdiff.errors import FastdiffError
from fastdiff.interop.consistency_models.random_util import get_generator
from fastdiff.interop.consistency_models.samplers import get_ancestral_step as get_ancestral_step
from fastdiff.interop.consistency_models.samplers import get_sigmas_karras as get_sigmas_karras
from fastdiff.interop.consistency_models.samplers import sample_dpm as sample_dpm
from fastdiff.interop.consistency_models.samplers import sample_euler as sample_euler
from fastdiff.interop.consistency_models.samplers import sample_euler_ancestral as sample_euler_ancestral
from fastdiff.interop.consistency_models.samplers import sample_heun as sample_heun
from fastdiff.interop.consistency_models.samplers import sample_onestep as sample_onestep
from fastdiff.interop.consistency_models.samplers import sample_progdist as sample_progdist
from fastdiff.interop.consistency_models.samplers import (
    stochastic_iterative_sampler as stochastic_iterative_sampler,
)
from fastdiff.interop.consistency_models.samplers import to_d as to_d
from fastdiff.interop.guided_diffusion.nn import append_dims

_LPIPS_SIZE, _SMALL = 224, 256  # images smaller than 256 pixels are enlarged to 224 before LPIPS


def get_weightings(weight_schedule: str, snrs: Tensor, sigma_data: float) -> Tensor:
    """Weights of the squared error of x_0, by name."""
    found = {
        "snr": lambda: snrs,
        "snr+1": lambda: snrs + 1,
        "karras": lambda: snrs + 1 / sigma_data**2,
        "truncated-snr": lambda: snrs.clamp(min=1.0),
        "uniform": lambda: torch.ones_like(snrs),
    }
    if weight_schedule not in found:
        raise NotImplementedError(f"unknown weight_schedule {weight_schedule!r}; known: {', '.join(found)}")
    return found[weight_schedule]()


class KarrasDenoiser:
    """D(y, sigma) = c_skip y + c_out F(c_in y, 250 ln sigma): EDM's, or consistency models' if ``distillation``.

    See :class:`fastdiff.DiffusionConfig` for the coefficients. LPIPS is made when a loss first needs it.
    """

    num_timesteps = 40  # by which the log cuts losses into quarters, as there

    def __init__(
        self,
        sigma_data: float = 0.5,
        sigma_max: float = 80.0,
        sigma_min: float = 0.002,
        rho: float = 7.0,
        weight_schedule: str = "karras",
        distillation: bool = False,
        loss_norm: str = "lpips",
    ) -> None:
        self.sigma_data, self.sigma_max, self.sigma_min, self.rho = sigma_data, sigma_max, sigma_min, rho
        self.weight_schedule, self.distillation, self.loss_norm = weight_schedule, distillation, loss_norm
        self._lpips: Any = None

    def get_snr(self, sigmas: Tensor) -> Tensor:
        return sigmas**-2

    def get_sigmas(self, sigmas: Tensor) -> Tensor:
        return sigmas

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) of EDM (Karras et al. 2022, table 1)."""
        return self._scalings(sigma, sigma)

    def get_scalings_for_boundary_condition(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with D(y, sigma_min) = y (Song et al. 2023, appendix C)."""
        return self._scalings(sigma, sigma - self.sigma_min)

    def _scalings(self, sigma: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        data, root = self.sigma_data, (sigma**2 + self.sigma_data**2) ** 0.5
        return data**2 / (above**2 + data**2), above * data / root, 1 / root

    def denoise(self, model: Any, x_t: Tensor, sigmas: Tensor, **model_kwargs: Any) -> tuple[Tensor, Tensor]:
        """(F, D) at y [N,C,*] and sigma [N]."""
        of_kind = self.get_scalings_for_boundary_condition if self.distillation else self.get_scalings
        c_skip, c_out, c_in = (append_dims(c, x_t.ndim) for c in of_kind(sigmas))
        output = model(c_in * x_t, 250 * torch.log(sigmas + LEAST_SIGMA), **model_kwargs)
        return output, c_out * output + c_skip * x_t

    def training_losses(
        self, model: Any, x_start: Tensor, sigmas: Tensor, model_kwargs: Any = None, noise: Any = None
    ) -> dict[str, Tensor]:
        """The weighted squared error of D: "loss" and "mse"; "xs_mse" without the weight; [N] each."""
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = x_start + noise * append_dims(sigmas, x_start.ndim)
        error = (self.denoise(model, x_t, sigmas, **(model_kwargs or {}))[1] - x_start) ** 2
        weights = get_weightings(self.weight_schedule, self.get_snr(sigmas), self.sigma_data)
        mse = mean_flat(append_dims(weights, x_start.ndim) * error)
        return {"xs_mse": mean_flat(error), "mse": mse, "loss": mse}

    def consistency_losses(
        self,
        model: Any,
        x_start: Tensor,
        num_scales: int,
        model_kwargs: Any = None,
        target_model: Any = None,
        teacher_model: Any = None,
        teacher_diffusion: Any = None,
        noise: Any = None,
    ) -> dict[str, Tensor]:
        """How far D at a level of Karras's grid is from the target model's D at the next lower one; [N].

        The lower state is one Heun step of the teacher away (distillation), or has the same noise (training). Both
        networks drop the same units. Song et al. 2023, algorithms 2 and 3.
        """
        if not target_model:
            raise NotImplementedError("consistency losses compare with target_model; give it")
        cond = model_kwargs or {}
        noise = torch.randn_like(x_start) if noise is None else noise
        number = torch.randint(0, num_scales - 1, (len(x_start),), device=x_start.device)
        t, after = (self._grid(number + i, num_scales - 1) for i in (0, 1))
        x_t = x_start + noise * append_dims(t, x_start.ndim)
        dropout = torch.get_rng_state()
        distilled = self.denoise(model, x_t, t, **cond)[1]
        with torch.no_grad():
            if teacher_model is None:
                x_after = x_start + noise * append_dims(after, x_start.ndim)
            else:
                x_after = self._heun(teacher_diffusion, teacher_model, x_t, t, after, cond)
            torch.set_rng_state(dropout)
            target = self.denoise(target_model, x_after, after, **cond)[1]
        weights = get_weightings(self.weight_schedule, self.get_snr(t), self.sigma_data)
        return {"loss": self._distance(distilled, target) * weights}

    def _grid(self, number: Tensor, last: int) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (high + number / last * (low - high)) ** self.rho

    def _heun(
        self, diffusion: Any, model: Any, x: Tensor, t: Tensor, after: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        t_column, after_column = append_dims(t, x.ndim), append_dims(after, x.ndim)
        slope = to_d(x, t_column, diffusion.denoise(model, x, t, **cond)[1])
        euler = x + slope * (after_column - t_column)
        slope_after = to_d(euler, after_column, diffusion.denoise(model, euler, after, **cond)[1])
        return x + (slope + slope_after) * (after_column - t_column) / 2

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """[N], by ``loss_norm``."""
        if self.loss_norm == "l1":
            return mean_flat((a - b).abs())
        if self.loss_norm == "l2":
            return mean_flat((a - b) ** 2)
        if self.loss_norm == "l2-32":
            return mean_flat((_resized(a, 32) - _resized(b, 32)) ** 2)
        if self.loss_norm == "lpips":
            if a.shape[-1] < _SMALL:
                a, b = _resized(a, _LPIPS_SIZE), _resized(b, _LPIPS_SIZE)
            return self._perceptual()((a + 1) / 2, (b + 1) / 2).flatten()
        raise ValueError(f"unknown loss norm {self.loss_norm!r}; known: l1, l2, l2-32, lpips")

    def _perceptual(self) -> Any:
        if self._lpips is None:
            try:
                from piq import LPIPS  # pyright: ignore[reportMissingImports]
            except ImportError:
                raise FastdiffError(
                    "loss_norm lpips needs piq: pip install piq, or give --loss_norm l2"
                ) from None
            self._lpips = LPIPS(replace_pooling=True, reduction="none")
        return self._lpips


def karras_sample(
    diffusion: KarrasDenoiser,
    model: Any,
    shape: tuple[int, ...],
    steps: int,
    clip_denoised: bool = True,
    progress: bool = False,
    callback: Any = None,
    model_kwargs: Any = None,
    device: Any = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7.0,
    sampler: str = "heun",
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Any = None,
    ts: Any = None,
) -> Tensor:
    """Samples [N,C,*] in [-1, 1], by "heun", "dpm", "euler", "ancestral", "onestep", "multistep" or "progdist"."""
    generator = get_generator("dummy") if generator is None else generator
    sigmas = get_sigmas_karras(steps + (sampler == "progdist"), sigma_min, sigma_max, rho, device=device)
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    points = {"ts": ts, "t_min": sigma_min, "t_max": sigma_max, "rho": diffusion.rho, "steps": steps}
    function, options = {
        "heun": (sample_heun, churn),
        "dpm": (sample_dpm, churn),
        "euler": (sample_euler, {}),
        "ancestral": (sample_euler_ancestral, {}),
        "onestep": (sample_onestep, {}),
        "multistep": (stochastic_iterative_sampler, points),
        "progdist": (sample_progdist, {}),
    }[sampler]

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = diffusion.denoise(model, x, sigma, **(model_kwargs or {}))[1]
        return denoised.clamp(-1, 1) if clip_denoised else denoised

    x = generator.randn(*shape, device=device) * sigma_max
    return function(denoiser, x, sigmas, generator, progress=progress, callback=callback, **options).clamp(
        -1, 1
    )


def _resized(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear")
