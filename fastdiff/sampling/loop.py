"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.ops.reverse_step import reverse_step
from fastdiff.sampling.condition import Condition
from fastdiff.sampling.conditioner import Conditioner
from fastdiff.sampling.denoiser import Denoiser
from fastdiff.sampling.plan import History, Plan


def run(
    plan: Plan,
    model: Model,
    x: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    null_class: int | None = None,
    seeds: Tensor | None = None,
    step_noise: Callable[[int, Tensor], Tensor] | None = None,
    condition: Condition | None = None,
    clip: bool = True,
    first_sample: int = 0,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Walk a plan: S times one model call and one ``reverse_step``.

    The table goes to the device once. On a GPU nothing in the loop waits for the device: whether the model's
    outputs were finite is looked at when the loop is over; on the CPU, where looking is free, at every step.

    Args:
        x: initial state [N,C,*], float32, or float64 to run the whole loop in float64.
        cond: further model arguments, one row per sample; class labels under ``y``.
        null_class: turns on classifier-free guidance, with the scale of the plan.
        seeds: [N] int64, each sample's Philox key for the noise of stochastic steps.
        step_noise: step_noise(s, x) gives the noise of step s instead; not together with a condition.
        condition: what else is known of the samples, a row for each; needs seeds.
        clip: clamp each estimate of x_0 to [-1, 1].
        first_sample: number of the first sample in the whole run, for error messages.
        on_step: called after each step.

    Returns:
        The final state, like x.

    Raises:
        FastdiffError: the model returned a wrong shape, or NaN or Inf (with step, timestep and samples).
    """
    with torch.inference_mode():
        denoiser = Denoiser(model, plan, x, cond or {}, null_class)
        table = plan.table.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        index = torch.arange(plan.calls, device=x.device)
        previous: dict[History, Tensor | None] = dict.fromkeys(History)
        flags: list[Tensor] = []
        conditioner = None
        if condition is not None:
            assert seeds is not None and step_noise is None
            conditioner = Conditioner(condition, plan, table, seeds)
            x = conditioner.initial(x)
        draws = plan.is_stochastic and not step_noise and not (conditioner and conditioner.draws_noise)
        for step, history in enumerate(plan.history):
            output, uncond = denoiser(step, x)
            if conditioner:
                output, uncond = conditioner.output(step, x, output, uncond)
            x_next, x0, nonfinite = reverse_step(
                x,
                output,
                table,
                index[step],
                uncond=uncond,
                h1=previous[history],
                noise=step_noise(step, x) if step_noise else None,
                seeds=seeds if draws else None,
                clip=clip,
                variance=plan.variance,
            )
            flags.append(nonfinite)
            if x.device.type == "cpu":
                _raise_if_any(flags[-1:], step, plan, first_sample)
            previous[History.PREVIOUS_X0], previous[History.PREVIOUS_X] = x0, x
            x = conditioner.state(step, x_next, output) if conditioner else x_next
            if on_step:
                on_step()
        if x.device.type != "cpu":
            _raise_if_any(flags, 0, plan, first_sample)
    return x.clone()  # outside inference mode: a tensor that autograd accepts


def _raise_if_any(flags: list[Tensor], first_step: int, plan: Plan, first_sample: int) -> None:
    """Name the first step with a non-finite output; ``flags`` holds one [N] for each step from first_step."""
    bad = torch.stack(flags).cpu()
    if not bad.any():
        return
    row = int(bad.any(1).int().argmax())
    samples = [first_sample + int(i) for i in bad[row].nonzero()]
    shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
    step = first_step + row
    plural = "s" if len(samples) > 1 else ""
    raise FastdiffError(
        f"the model returned NaN or Inf at step {step + 1} of {plan.calls} "
        f"(timestep {float(plan.times[step]):g}) for sample{plural} {shown}; sampling stopped"
    )
