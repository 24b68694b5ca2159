"""The one sampling loop: called step by step, or on a GPU replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.adaptive import run_adaptive
from fastdiff.sampling.capture import Captures, log_once
from fastdiff.sampling.conditioning import Conditioner
from fastdiff.sampling.conditions import Condition
from fastdiff.sampling.plan import History, Plan
from fastdiff.sampling.progress import OnStep
from fastdiff.sampling.step import Step, make_step


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
    on_step: OnStep | None = None,
    captures: Captures | None = None,
) -> Tensor:
    """Walk a plan: S times one model call and one ``reverse_step``.

    The table goes to the device once. On a GPU nothing in the loop waits for the device: outputs are checked for NaN
    and infinity after the loop; on the CPU, where the check costs nothing, at every step.

    Args:
        x: initial state [N,C,*], float32, or float64 to run the whole loop in float64.
        cond: further model arguments, one row per sample; class labels under ``y``.
        null_class: turns on classifier-free guidance, with the scale of the plan.
        seeds: [N] int64, each sample's Philox key for the noise of stochastic steps.
        step_noise: function step_noise(s, x) that returns the noise of step s, in place of seeds; not with a condition.
        condition: what else is known of the samples, one row for each; needs seeds.
        clip: clamp each estimate of x_0 to [-1, 1].
        first_sample: number of the first sample in the whole run, for error messages.
        on_step: called after each step with the state and the estimate of x_0.
        captures: the store of CUDA graphs; the step is then recorded and replayed where possible. None: every step is
            called, with a new x each time.

    Returns:
        The final state, like x.

    Raises:
        FastdiffError: the model returned a wrong shape, or NaN or Inf (with step, timestep and samples).
    """
    if plan.adaptive is not None:
        if condition is not None:
            raise FastdiffError(
                "sampler 'dpm_adaptive' chooses its steps while it runs, and a condition has to know them; use 'dpmpp'"
            )
        if captures is not None and x.device.type == "cuda":
            log_once("sampler 'dpm_adaptive' chooses its steps while it runs, which no recording can")

        def check(flags: Tensor, steps: Plan, sample: int) -> None:
            raise_if_any(flags, 0, steps, first_sample + sample)

        with torch.inference_mode():
            x = run_adaptive(plan, model, x, cond or {}, null_class, clip, check, on_step)
        return x.clone()
    with torch.inference_mode():
        conditioner = None
        if condition is not None:
            assert seeds is not None and step_noise is None
            conditioner = Conditioner(condition, plan, x, seeds)
            x = conditioner.initial(x)
        drawn = None if step_noise or (conditioner and conditioner.draws_noise) else seeds
        step = make_step(plan, model, x, cond or {}, null_class=null_class, seeds=drawn, clip=clip)
        replay = None
        if captures is not None and step_noise is None and conditioner is None:
            replay = captures.find(step, plan, model, x)
        if replay is not None:
            x, flags = replay.run(step, x, on_step)
            raise_if_any(flags, 0, plan, first_sample)
        else:
            x = _walk(step, plan, x, step_noise, conditioner, first_sample, on_step)
    return x.clone()  # outside inference mode: a tensor that autograd accepts


def _walk(
    step: Step,
    plan: Plan,
    x: Tensor,
    step_noise: Callable[[int, Tensor], Tensor] | None,
    conditioner: Conditioner | None,
    first_sample: int,
    on_step: OnStep | None,
) -> Tensor:
    """Call every step, each with a new state."""
    index = torch.arange(plan.calls, device=x.device)
    remembered, memory = plan.remembered, dict[History, Tensor | None]()
    flags: list[Tensor] = []
    for number, row in enumerate(plan.launches):
        noise = step_noise(number, x) if step_noise else None
        output, uncond = step.denoiser(index[number], x)
        if conditioner:
            output, uncond = conditioner.output(number, x, output, uncond)
        h1, h2 = memory.get(row.h1), memory.get(row.h2)
        x_next, x0, nonfinite = step.update(index[number], x, output, uncond, h1, h2, noise)
        flags.append(nonfinite)
        if x.device.type == "cpu":
            raise_if_any(nonfinite[None], number, plan, first_sample)
        now = step.remember(index[number], x, x0, memory, row.keeps)
        memory = {kind: now[kind] for kind in remembered}
        x = conditioner.state(number, x_next, output) if conditioner else x_next
        if on_step:
            on_step(x, x0)
    if x.device.type != "cpu":
        raise_if_any(torch.stack(flags), 0, plan, first_sample)
    return x


def raise_if_any(flags: Tensor, first_step: int, plan: Plan, first_sample: int) -> None:
    """Raise an error that names the first step with a non-finite output.

    ``flags`` [S', N] has one row for each step from first_step on.
    """
    bad = flags.cpu()
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
