"""The samplers by name. Each module supplies rows of coefficients and never a loop.

To add one: write ``<name>.py`` with ``rows(levels, ...) -> list[Row]``, and list it in ``SAMPLERS`` and, for type
checkers and the command line, in ``fastdiff.choices.SamplerName``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastdiff.choices import SamplerName
from fastdiff.diffusion.config import Variance
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.sampling.levels import Levels, Spacing, make_levels
from fastdiff.sampling.plan import Plan, Row, make_plan
from fastdiff.sampling.samplers import ancestral, ddim, dpmpp, euler, heun


@dataclass(frozen=True)
class Method:
    """A sampler: its title, the function that makes its rows from (levels, variance, eta), and its best spacing."""

    title: str
    rows: Callable[[Levels, Variance, float], list[Row]]
    spacing: Spacing
    takes_eta: bool = False


# Karras spacing lands closest to the exact ODE solution at 20 to 50 calls, for linear and cosine schedules
# (measured with the exact denoiser of 3000 Fashion-MNIST images).
SAMPLERS: dict[SamplerName, Method] = {
    "ancestral": Method(
        "ancestral", lambda levels, variance, eta: ancestral.rows(levels, variance), "uniform"
    ),
    "ddim": Method("DDIM", lambda levels, variance, eta: ddim.rows(levels, eta), "uniform", takes_eta=True),
    "euler": Method("Euler", lambda levels, variance, eta: euler.rows(levels), "karras"),
    "heun": Method("Heun", lambda levels, variance, eta: heun.rows(levels), "karras"),
    "dpmpp": Method("DPM-Solver++ 2M", lambda levels, variance, eta: dpmpp.rows(levels), "karras"),
}


def sampling_plan(
    process: Process,
    *,
    sampler: str,
    steps: int | str,
    spacing: Spacing | None = None,
    eta: float = 0.0,
    guidance_scale: float | None = None,
) -> Plan:
    """The plan that takes x_T to x_0; the arguments are those of :class:`fastdiff.sampling.api.Sampler`.

    Raises:
        FastdiffError: an unknown sampler or spacing, steps that do not fit, eta where there is none.
    """
    if sampler not in SAMPLERS:
        raise FastdiffError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    method = SAMPLERS[sampler]
    if eta and not method.takes_eta:
        raise FastdiffError(f"sampler {sampler!r} has no eta (got {eta}); only 'ddim' has")
    if not 0 <= eta <= 1:
        raise FastdiffError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {eta}")
    levels = make_levels(process, steps, spacing or method.spacing)
    rows = method.rows(levels, process.config.variance, eta)
    plan = make_plan(rows, process, guidance_scale)
    start = 1.0 if process.starts_unscaled else float(levels.noise[0])
    return replace(plan, is_reverse_chain=sampler == "ancestral" or eta == 1, start=start)


def encoding_plan(process: Process, *, steps: int | str, guidance_scale: float | None = None) -> Plan:
    """The plan that takes an image to the x_T that ``ddim`` decodes, over the same levels.

    The image (times the signal, unless the process starts unscaled) is taken to be at the cleanest level, as in ADM's
    ``ddim_reverse_sample``, so that S levels are S - 1 calls.

    Raises:
        FastdiffError: fewer than two steps, or steps that do not fit.
    """
    levels = make_levels(process, steps).up()
    if levels.steps < 1:
        raise FastdiffError(f"encoding needs at least 2 steps, got {steps!r}")
    plan = make_plan(ddim.rows(levels), process, guidance_scale)
    if process.starts_unscaled:
        return plan
    return replace(plan, start=float(levels.signal[0]), end=1 / float(levels.noise[-1]))
