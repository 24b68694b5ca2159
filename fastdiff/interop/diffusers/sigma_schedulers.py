"""diffusers' DPM-Solver (multistep) and Euler schedulers with one ``reverse_step`` for a step.

They derive from diffusers' own and override ``step`` alone. Rows are made once for a whole run.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import SchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.interop.diffusers.steps import RefusesOptions, Table, rows


class FastDPMSolverMultistepScheduler(RefusesOptions, DPMSolverMultistepScheduler):
    """Drop-in for ``DPMSolverMultistepScheduler``, every option but thresholding (which raises FastdiffError).

    An update is linear in the sample, the converted outputs of the model (three at most) and the noise: its
    coefficients are read off diffusers' own update, applied to unit vectors.

    Source: Lu et al. 2022, "DPM-Solver++".
    """

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self._begun: Any = None  # the first step taken, and the table from there on
        self._past: list[Tensor | None] = [None, None]  # the converted outputs of the last two steps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """x_t -> x_{t-1}; arguments and result are ``DPMSolverMultistepScheduler.step``'s."""
        if self.num_inference_steps is None:
            raise FastdiffError("call set_timesteps(num_inference_steps) before step")
        if self.step_index is None:
            self._init_step_index(timestep)
        index: int = self._step_index
        if self._begun is None:
            self._begun = index, Table(self._rows(index))
        first, table = self._begun
        noise = None
        if self.config.algorithm_type.startswith("sde"):
            noise = variance_noise
            if noise is None:
                noise = randn_tensor(
                    sample.shape, generator=generator, device=model_output.device, dtype=torch.float32
                )
            noise = noise.to(model_output.device, torch.float32)
        order = self._order(index, first)
        h1, h2 = (h if order > i else None for i, h in enumerate(self._past, start=1))
        after, converted = table.step(sample, model_output, index - first, h1=h1, h2=h2, noise=noise)
        self._past = [converted, self._past[0]]
        self._step_index += 1
        after = after.to(model_output.dtype)
        return SchedulerOutput(prev_sample=after) if return_dict else (after,)

    def _order(self, index: int, first: int) -> int:
        """Of the update at a step: lower at the beginning, and at the end where the configuration says so."""
        last, few, config = len(self.timesteps) - 1, len(self.timesteps) < 15, self.config
        at_end = (
            config.euler_at_final or (config.lower_order_final and few) or config.final_sigmas_type == "zero"
        )
        if index == last and at_end:
            return 1
        most = 2 if index == last - 1 and config.lower_order_final and few else 3
        return min(config.solver_order, index - first + 1, most)

    def _rows(self, first: int) -> Tensor:
        """Of all steps from the first one that is taken."""
        before = self._step_index
        found = []
        for index in range(first, len(self.timesteps)):
            self._step_index = index
            found.append(torch.cat((self._conversion(), self._update(self._order(index, first)))))
        self._step_index = before
        o_x, o_m, a, b, c1, c2, s = torch.stack(found).unbind(1)
        return rows(len(found), o_x=o_x, o_m=o_m, a=a, b=b, c1=c1, c2=c2, s=s)

    def _conversion(self) -> Tensor:
        """o_x, o_m. Vectors are [5, 1], for the model's output may be cut along its second dimension."""
        sample, output, *_ = torch.eye(5).unsqueeze(2)
        return self.convert_model_output(output, sample=sample)[:2, 0]

    def _update(self, order: int) -> Tensor:
        """a, b, c_1, c_2, s."""
        sample, m0, m1, m2, noise = torch.eye(5)
        if order == 1:
            return self.dpm_solver_first_order_update(m0, sample=sample, noise=noise)
        if order == 2:
            return self.multistep_dpm_solver_second_order_update([m1, m0], sample=sample, noise=noise)
        return self.multistep_dpm_solver_third_order_update([m2, m1, m0], sample=sample, noise=noise)


class FastEulerDiscreteScheduler(RefusesOptions, EulerDiscreteScheduler):
    """Drop-in for ``EulerDiscreteScheduler``, every option.

    Source: Karras et al. 2022, algorithm 2 (Euler's steps, with churn if asked for).
    """

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self._tables: dict[tuple[float, ...], Table] = {}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """x_sigma -> x at the next sigma; arguments and result are ``EulerDiscreteScheduler.step``'s."""
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise FastdiffError(
                "step takes one of scheduler.timesteps, which are floating-point, not its number"
            )
        if self.step_index is None:
            self._init_step_index(timestep)
        churn = (s_churn, s_tmin, s_tmax)
        if churn not in self._tables:
            self._tables[churn] = Table(self._rows(*churn))
        sigma, raised = self.sigmas[self.step_index], self._raised(*churn)[self.step_index]
        sample = sample.to(torch.float32)
        if raised > sigma:
            noise = randn_tensor(
                model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
            )
            sample = sample + noise * s_noise * (raised**2 - sigma**2) ** 0.5
        after, x0 = self._tables[churn].step(sample, model_output, self.step_index)
        self._step_index += 1
        after = after.to(model_output.dtype)
        if not return_dict:
            return after, x0
        return EulerDiscreteSchedulerOutput(prev_sample=after, pred_original_sample=x0)

    def _raised(self, s_churn: float, s_tmin: float, s_tmax: float) -> Tensor:
        """[S] sigma_hat: what noise is added up to before each step."""
        sigmas = self.sigmas.cpu()[:-1]
        gamma = min(s_churn / len(sigmas), 2**0.5 - 1)
        return torch.where((sigmas >= s_tmin) & (sigmas <= s_tmax), sigmas * (1 + gamma), sigmas)

    def _rows(self, s_churn: float, s_tmin: float, s_tmax: float) -> Tensor:
        """x' = x + (sigma' - sigma_hat) (x - x_0) / sigma_hat."""
        sigma, after = self.sigmas.cpu()[:-1], self.sigmas.cpu()[1:]
        raised = self._raised(s_churn, s_tmin, s_tmax)
        ratio = (after - raised) / raised
        o_x, o_m = {
            "epsilon": (1.0, -raised),
            "v_prediction": (1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5),
        }.get(self.config.prediction_type, (0.0, 1.0))
        return rows(len(sigma), o_x=o_x, o_m=o_m, a=1 + ratio, b=-ratio)
