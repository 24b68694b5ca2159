"""The losses of the mirrored ``GaussianDiffusion``: training and the variational bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion.likelihood import mean_flat
from fastdiff.interop.guided_diffusion.enums import LossType, ModelMeanType
from fastdiff.interop.guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl


class Losses:
    """Mixed into ``GaussianDiffusion``, whose process and moments it uses."""

    _process: Any
    _fused: Any
    num_timesteps: int
    loss_type: LossType
    model_mean_type: ModelMeanType
    q_sample: Any
    q_mean_variance: Any
    q_posterior_mean_variance: Any
    p_mean_variance: Any
    _predict_eps_from_xstart: Any
    _split: Any
    _scale_timesteps: Any

    def _vb_terms_bpd(
        self,
        model: Any,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip_denoised=True,
        model_kwargs=None,
    ) -> dict[str, Tensor]:
        """One term of the bound in bits per dimension [N]: output, pred_xstart."""
        mean, _, log_variance = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
        out = self.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        kl = mean_flat(normal_kl(mean, log_variance, out["mean"], out["log_variance"])) / math.log(2)
        decoder = -discretized_gaussian_log_likelihood(
            x_start, means=out["mean"], log_scales=0.5 * out["log_variance"]
        )
        bits = torch.where(t == 0, mean_flat(decoder) / math.log(2), kl)
        return {"output": bits, "pred_xstart": out["pred_xstart"]}

    def training_losses(
        self,
        model: Any,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses [N]: loss, and mse and vb where they are part of it."""
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise=noise)
        if self.loss_type.is_vb():
            bits = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)[
                "output"
            ]
            return {"loss": bits * self.num_timesteps if self.loss_type == LossType.RESCALED_KL else bits}
        terms = {}
        output, variance = self._split(model(x_t, self._scale_timesteps(t), **(model_kwargs or {})), x_t)
        if variance is not None:
            frozen = torch.cat([output.detach(), variance], dim=1)  # the bound trains the variance alone
            terms["vb"] = self._vb_terms_bpd(
                lambda *_args, **_kwargs: frozen, x_start, x_t, t, clip_denoised=False
            )["output"]
            if self.loss_type == LossType.RESCALED_MSE:
                terms["vb"] = terms["vb"] * (self.num_timesteps / 1000.0)
        target = {
            ModelMeanType.PREVIOUS_X: lambda: self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)[
                0
            ],
            ModelMeanType.START_X: lambda: x_start,
            ModelMeanType.EPSILON: lambda: noise,
        }[self.model_mean_type]()
        terms["mse"] = mean_flat((target - output) ** 2)
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, 1)) in bits per dimension [N]."""
        t = torch.full((len(x_start),), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)

    def calc_bpd_loop(
        self, model: Any, x_start: Tensor, clip_denoised: bool = True, model_kwargs=None
    ) -> dict[str, Tensor]:
        """The whole bound: total_bpd, prior_bpd [N]; vb, xstart_mse, mse [N, T], the last step first."""
        vb, xstart_mse, mse = [], [], []
        for i in reversed(range(self.num_timesteps)):
            t = self._fused.timesteps(i, len(x_start), x_start.device)
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise=noise)
            with torch.no_grad():
                out = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            vb.append(out["output"])
            xstart_mse.append(mean_flat((out["pred_xstart"] - x_start) ** 2))
            mse.append(mean_flat((self._predict_eps_from_xstart(x_t, t, out["pred_xstart"]) - noise) ** 2))
        terms = {
            name: torch.stack(v, dim=1) for name, v in (("vb", vb), ("xstart_mse", xstart_mse), ("mse", mse))
        }
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior, "prior_bpd": prior, **terms}
