"""Conventions of other projects' denoisers: the form of the time, and the scale of x."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.sampling.plan import Plan

Time = Literal["index", "continuous", "sigma"]


def check_time(time: str) -> None:
    """Raises FastdiffError for another name."""
    if time not in get_args(Time):
        raise FastdiffError(f"time must be one of {', '.join(get_args(Time))}, got {time!r}")


def with_time_convention(plan: Plan, time: Time, process: Process) -> Plan:
    """A plan with the times in the convention of the model.

    "index": as the process says, i = 0 .. T - 1 of discrete steps; "continuous": i / (T - 1); "sigma": noise over
    signal. The last two are of processes in discrete steps.

    Raises:
        FastdiffError: one of the last two for a process in continuous time, which has a time of its own.
    """
    kind = process.config.parametrisation
    if time != "index" and process.most_steps == float("inf"):
        raise FastdiffError(f"a model of kind {kind!r} has its own time; leave out time (got {time!r})")
    if plan.adaptive is not None:
        finish = partial(with_time_convention, time=time, process=process)
        plan = replace(plan, adaptive=replace(plan.adaptive, finish=finish))
    if time == "continuous":
        return replace(plan, times=plan.times / max(process.most_steps - 1, 1))
    if time == "sigma":
        return replace(plan, times=plan.levels[:, 1] / plan.levels[:, 0])
    return plan


class ScaledInput(nn.Module):
    """Adapter of a variance-exploding f(x, sigma), x = x_0 + sigma epsilon, to the variance-preserving x_t.

    x_t = sqrt(abar) x_0 + sqrt(1 - abar) epsilon is that x divided by sqrt(1 + sigma^2), sigma^2 = 1 / abar - 1.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        scale = torch.sqrt(1 + sigma**2).reshape(-1, *[1] * (x.dim() - 1))
        return self.inner(x * scale.to(x.dtype), sigma, **cond)
