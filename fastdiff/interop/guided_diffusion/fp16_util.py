"""guided-diffusion's ``fp16_util``: mixed precision with float32 master parameters and a growing loss scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.interop.guided_diffusion import logger
from fastdiff.interop.guided_diffusion.master_params import check_overflow as check_overflow
from fastdiff.interop.guided_diffusion.master_params import (
    get_param_groups_and_shapes as get_param_groups_and_shapes,
)
from fastdiff.interop.guided_diffusion.master_params import make_master_params as make_master_params
from fastdiff.interop.guided_diffusion.master_params import (
    master_params_to_model_params as master_params_to_model_params,
)
from fastdiff.interop.guided_diffusion.master_params import (
    master_params_to_state_dict as master_params_to_state_dict,
)
from fastdiff.interop.guided_diffusion.master_params import (
    model_grads_to_master_grads as model_grads_to_master_grads,
)
from fastdiff.interop.guided_diffusion.master_params import param_grad_or_zeros as param_grad_or_zeros
from fastdiff.interop.guided_diffusion.master_params import (
    state_dict_to_master_params as state_dict_to_master_params,
)
from fastdiff.interop.guided_diffusion.master_params import unflatten_master_params as unflatten_master_params
from fastdiff.interop.guided_diffusion.master_params import zero_grad as zero_grad
from fastdiff.interop.guided_diffusion.master_params import zero_master_grads as zero_master_grads

INITIAL_LOG_LOSS_SCALE = 20.0


def convert_module_to_f16(module: nn.Module) -> None:
    """For ``module.apply``: a convolution's parameters to float16."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        module.to(torch.float16)


def convert_module_to_f32(module: nn.Module) -> None:
    """For ``module.apply``: a convolution's parameters to float32."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        module.to(torch.float32)


class MixedPrecisionTrainer:
    """Gradients, loss scale and optimizer steps of a model, in float16 if asked for.

    In float16, ``master_params`` are float32 copies of the parameters, one for one. The loss is scaled by
    2^lg_loss_scale, which grows by fp16_scale_growth at each step and falls by 1 at a gradient that is not finite,
    whose step is left out.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        initial_lg_loss_scale: float = INITIAL_LOG_LOSS_SCALE,
    ) -> None:
        self.model, self.use_fp16 = model, use_fp16
        self.fp16_scale_growth, self.lg_loss_scale = fp16_scale_growth, initial_lg_loss_scale
        self.model_params = list(model.parameters())
        self.master_params: list[Any] = self.model_params
        if use_fp16:
            model.convert_to_fp16()  # pyright: ignore[reportCallIssue]
            self.master_params = [nn.Parameter(p.detach().float()) for p in self.model_params]

    def zero_grad(self) -> None:
        """Forget the model's gradients."""
        for p in self.model_params:
            p.grad = None

    def backward(self, loss: Tensor) -> None:
        """Gradients of the (scaled) loss."""
        (loss * 2**self.lg_loss_scale if self.use_fp16 else loss).backward()

    def optimize(self, opt: torch.optim.Optimizer) -> bool:
        """One step; False where the gradient was not finite and the step was left out."""
        if self.use_fp16:
            return self._optimize_fp16(opt)
        self._log_norms()
        opt.step()
        return True

    def _optimize_fp16(self, opt: torch.optim.Optimizer) -> bool:
        logger.logkv_mean("lg_loss_scale", self.lg_loss_scale)
        for master, p in zip(self.master_params, self.model_params, strict=True):
            master.grad = None if p.grad is None else p.grad.float().div_(2**self.lg_loss_scale)
        if not self._log_norms():
            self.lg_loss_scale -= 1
            logger.log(f"Found NaN, decreased lg_loss_scale to {self.lg_loss_scale}")
            self._forget_master_gradients()
            return False
        opt.step()
        self._forget_master_gradients()
        with torch.no_grad():
            for master, p in zip(self.master_params, self.model_params, strict=True):
                p.copy_(master)
        self.lg_loss_scale += self.fp16_scale_growth
        return True

    def _forget_master_gradients(self) -> None:
        for master in self.master_params:
            master.grad = None

    def _log_norms(self) -> bool:
        """True if the gradient is finite."""
        with torch.no_grad():
            grads = [p.grad for p in self.master_params if p.grad is not None]
            grad_norm = float(nn.utils.get_total_norm(grads))
            param_norm = float(nn.utils.get_total_norm([p.detach() for p in self.master_params]))
        logger.logkv_mean("grad_norm", grad_norm)
        logger.logkv_mean("param_norm", param_norm)
        return grad_norm < float("inf")

    def master_params_to_state_dict(self, master_params: list[Tensor]) -> dict[str, Tensor]:
        """The model's state_dict with these parameters in it."""
        state = self.model.state_dict()
        for (name, _), value in zip(self.model.named_parameters(), master_params, strict=True):
            state[name] = value
        return state

    def state_dict_to_master_params(self, state_dict: dict[str, Tensor]) -> list[Tensor]:
        """The parameters of a state_dict in the order of ``master_params``."""
        values = [state_dict[name] for name, _ in self.model.named_parameters()]
        return [v.detach().float() for v in values] if self.use_fp16 else values
