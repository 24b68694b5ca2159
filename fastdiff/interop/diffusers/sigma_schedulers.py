"""diffusers' DPM-Solver (multistep) and Euler schedulers with one ``reverse_step`` for a step.

Everything but ``step`` is diffusers' own, and so is ``step`` where one ``reverse_step`` cannot do it. Rows are made
once for a whole run.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import SchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.interop.diffusers.steps import Table, Tables, is_fusible, rows

Generator = torch.Generator | list[torch.Generator] | None


def dpm_solver_step(
    self: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    generator: Generator = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """x_t -> x_{t-1}; arguments and result are ``DPMSolverMultistepScheduler.step``'s.

    An update is linear in the sample, the converted outputs of the model (three at most) and the noise: its
    coefficients are found by applying diffusers' own update to unit vectors. The outputs of the last steps are kept
    where diffusers' step keeps them, so that calls of the two can be mixed.

    Source: Lu et al. 2022, "DPM-Solver++".
    """
    past = [h for h in self.model_outputs if h is not None]
    differentiated = torch.is_grad_enabled() and any(h.requires_grad for h in past)
    if self.num_inference_steps is None or differentiated or not is_fusible(self, sample, model_output):
        given = generator, variance_noise, return_dict
        return DPMSolverMultistepScheduler.step(self, model_output, timestep, sample, *given)  # pyright: ignore
    if self.step_index is None:
        self._init_step_index(timestep)
    index, config = self._step_index, self.config
    row, table = _dpm_solver_table(self)
    noise = None
    if config.algorithm_type.startswith("sde"):
        noise = variance_noise
        if noise is None:
            noise = randn_tensor(
                sample.shape, generator=generator, device=model_output.device, dtype=torch.float32
            )
        noise = noise.to(model_output.device, torch.float32)
    order = _order(self, index, self.lower_order_nums)
    newest_first = self.model_outputs[::-1]
    h1, h2 = (
        (newest_first[i] if order > i + 1 else None for i in range(2))
        if config.solver_order > 1
        else (None, None)
    )
    after, x0 = table.step(sample, model_output, row, h1=h1, h2=h2, noise=noise)
    self.model_outputs = [*self.model_outputs[1:], x0]
    self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
    self._step_index += 1
    after = after.to(model_output.dtype)
    return SchedulerOutput(prev_sample=after) if return_dict else (after,)


def _order(scheduler: Any, index: int, behind: int) -> int:
    """Order of the update at step ``index``: lower with few steps behind it, and at the end if so configured."""
    last, few, config = len(scheduler.timesteps) - 1, len(scheduler.timesteps) < 15, scheduler.config
    at_end = config.euler_at_final or (config.lower_order_final and few) or config.final_sigmas_type == "zero"
    if index == last and at_end:
        return 1
    most = 2 if index == last - 1 and config.lower_order_final and few else 3
    return min(config.solver_order, behind + 1, most)


def _dpm_solver_table(scheduler: Any) -> tuple[int, Table]:
    """The row of this step, in a table of all steps that follow the first one taken."""
    index, behind = scheduler._step_index, scheduler.lower_order_nums
    tables, order = Tables.of(scheduler), scheduler.config.solver_order
    first, already, table = tables.get("from", lambda: (index, behind, Table(_dpm_solver_rows(scheduler))))
    if index < first or min(already + index - first, order) != behind:  # begun anew, elsewhere
        tables.forget("from")
        return _dpm_solver_table(scheduler)
    return index - first, table


def _dpm_solver_rows(scheduler: Any) -> Tensor:
    first, behind = scheduler._step_index, scheduler.lower_order_nums
    found = []
    for index in range(first, len(scheduler.timesteps)):
        scheduler._step_index = index
        update = _update(scheduler, _order(scheduler, index, behind + index - first))
        found.append(torch.cat((_conversion(scheduler), update)))
    scheduler._step_index = first
    columns = "out_x", "out_m", "x", "x0", "h1", "h2", "std"
    return rows(len(found), **dict(zip(columns, torch.stack(found).unbind(1), strict=True)))


def _conversion(scheduler: Any) -> Tensor:
    """out_x, out_m. Vectors are [5, 1], for the model's output may be cut along its second dimension."""
    sample, output, *_ = torch.eye(5).unsqueeze(2)
    return scheduler.convert_model_output(output, sample=sample)[:2, 0]


def _update(scheduler: Any, order: int) -> Tensor:
    """x, x0, h1, h2, std."""
    sample, m0, m1, m2, noise = torch.eye(5)
    if order == 1:
        return scheduler.dpm_solver_first_order_update(m0, sample=sample, noise=noise)
    if order == 2:
        return scheduler.multistep_dpm_solver_second_order_update([m1, m0], sample=sample, noise=noise)
    return scheduler.multistep_dpm_solver_third_order_update([m2, m1, m0], sample=sample, noise=noise)


def euler_step(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Generator = None,
    return_dict: bool = True,
) -> Any:
    """x_sigma -> x at the next sigma; arguments and result are ``EulerDiscreteScheduler.step``'s.

    Source: Karras et al. 2022, algorithm 2 (Euler's steps, with churn if asked for).
    """
    is_number = isinstance(timestep, int) or (
        isinstance(timestep, Tensor) and not timestep.is_floating_point()
    )
    fusible = (
        not is_number
        and self.is_scale_input_called
        and self.config.prediction_type in ("epsilon", "v_prediction", "sample", "original_sample")
        and is_fusible(self, sample, model_output)
        and sample.shape == model_output.shape
    )
    if not fusible:
        given = s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
        return EulerDiscreteScheduler.step(self, model_output, timestep, sample, *given)  # pyright: ignore
    if self.step_index is None:
        self._init_step_index(timestep)
    index, churn = self._step_index, (float(s_churn), float(s_tmin), float(s_tmax))
    table, raised = Tables.of(self).get(churn, lambda: _euler_table(self, *churn))
    sigma, sigma_hat = float(self.sigmas[index]), raised[index]
    sample = sample.to(torch.float32)
    if sigma_hat > sigma:
        noise = randn_tensor(
            model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
        )
        sample = sample + noise * s_noise * (sigma_hat**2 - sigma**2) ** 0.5
    after, x0 = table.step(sample, model_output, index)
    self._step_index += 1
    after = after.to(model_output.dtype)
    return (
        EulerDiscreteSchedulerOutput(prev_sample=after, pred_original_sample=x0)
        if return_dict
        else (after, x0)
    )


def _euler_table(scheduler: Any, s_churn: float, s_tmin: float, s_tmax: float) -> tuple[Table, list[float]]:
    """x' = x + (sigma' - sigma_hat) (x - x_0) / sigma_hat; and sigma_hat, up to which noise is added before a step."""
    sigma, after = scheduler.sigmas.cpu()[:-1], scheduler.sigmas.cpu()[1:]
    gamma = min(s_churn / len(sigma), 2**0.5 - 1)
    raised = torch.where((sigma >= s_tmin) & (sigma <= s_tmax), sigma * (1 + gamma), sigma)
    ratio = (after - raised) / raised
    out_x, out_m = {
        "epsilon": (1.0, -raised),
        "v_prediction": (1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5),
    }.get(scheduler.config.prediction_type, (0.0, 1.0))
    return Table(rows(len(sigma), out_x=out_x, out_m=out_m, x=1 + ratio, x0=-ratio)), raised.tolist()


class FastDPMSolverMultistepScheduler(DPMSolverMultistepScheduler):
    """Drop-in for ``DPMSolverMultistepScheduler``, every option."""

    step = dpm_solver_step


class FastEulerDiscreteScheduler(EulerDiscreteScheduler):
    """Drop-in for ``EulerDiscreteScheduler``, every option."""

    step = euler_step
