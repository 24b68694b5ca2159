"""The samplers by name. Each module supplies rows of coefficients and never a loop.

To add one: write ``<name>.py`` with ``rows(levels, options) -> list[Row]``, and list it in ``SAMPLERS`` and, for type
checkers and the command line, in ``fastdiff.choices.SamplerName``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastdiff.choices import IN_FEW_STEPS, SAMPLER_ALIASES, SamplerName, Spacing, canonical_sampler
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError, nearest
from fastdiff.sampling.levels import levels_of, make_levels
from fastdiff.sampling.plan import Adaptive, Plan, make_plan
from fastdiff.sampling.samplers import (
    ancestral,
    consistency,
    ddim,
    dpm_2,
    dpm_solver,
    dpmpp,
    dpmpp_2s,
    dpmpp_sde,
    dpmpp_sde_multistep,
    euler,
    heun,
    multistep,
    restart,
    unipc,
)
from fastdiff.sampling.samplers.options import Method, checked
from fastdiff.sampling.samplers.options import Options as Options

_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}
_SDE = {"eta": 1.0, "s_noise": 1.0}
_sde = dpmpp_sde_multistep

_LOG = logging.getLogger(__name__)

# Karras spacing lands closest to the exact ODE solution at 20 to 50 calls, for linear and cosine schedules
# (measured with the exact denoiser of 3000 Fashion-MNIST images).
SAMPLERS: dict[SamplerName, Method] = {
    "ancestral": Method(
        "ancestral", lambda levels, options: ancestral.rows(levels, options.variance), "uniform"
    ),
    "ddim": Method("DDIM", lambda levels, options: ddim.rows(levels, options.eta), "uniform", {"eta": 0.0}),
    "euler": Method("Euler", euler.rows, "karras", _CHURN),
    "euler_ancestral": Method("Euler ancestral", euler.ancestral_rows, "karras", _SDE),
    "heun": Method("Heun", heun.rows, "karras", _CHURN),
    "dpm_2": Method("DPM2", dpm_2.rows, "karras", _CHURN),
    "dpm_2_ancestral": Method("DPM2 ancestral", dpm_2.ancestral_rows, "karras", _SDE),
    "lms": Method("LMS", multistep.lms_rows, "karras", {"order": 4}, 4),
    "dpmpp": Method("DPM-Solver++ 2M", lambda levels, options: dpmpp.rows(levels), "karras"),
    "dpmpp_2s": Method("DPM-Solver++ 2S", dpmpp_2s.rows, "karras"),
    "dpmpp_3m": Method("DPM-Solver++ 3M", _sde.three_rows, "karras"),
    "dpmpp_2s_ancestral": Method("DPM-Solver++ 2S ancestral", dpmpp_2s.rows, "karras", _SDE),
    "dpmpp_sde": Method("DPM-Solver++ SDE", dpmpp_sde.rows, "karras", _SDE),
    "dpmpp_2m_sde": Method("DPM-Solver++ 2M SDE", _sde.midpoint_rows, "karras", _SDE),
    "dpmpp_2m_sde_heun": Method("DPM-Solver++ 2M SDE Heun", _sde.heun_rows, "karras", _SDE),
    "dpmpp_3m_sde": Method("DPM-Solver++ 3M SDE", _sde.three_rows, "karras", _SDE),
    "unipc": Method("UniPC", unipc.bh2_rows, "karras", {"order": 2}, 3),
    "unipc_bh1": Method("UniPC bh1", unipc.bh1_rows, "karras", {"order": 2}, 3),
    "deis": Method("DEIS", multistep.deis_rows, "karras", {"order": 2}, 4),
    "ipndm": Method("iPNDM", multistep.ipndm_rows, "uniform", {"order": 4}, 4),
    "pndm": Method("PNDM", multistep.pndm_rows, "uniform", {"order": 4}, 4),
    "restart": Method("Restart", restart.rows, "karras", {"restarts": restart.DEFAULT, "s_noise": 1.0}),
    "dpm_fast": Method("DPM fast", dpm_solver.rows, "logsnr", {"eta": 0.0, "s_noise": 1.0}),
    "dpm_adaptive": Method(
        "DPM adaptive", dpm_solver.rows, "logsnr", {"order": 3, "rtol": 0.05, "atol": 0.0078}, 3, 2
    ),
    "lcm": Method("LCM", consistency.lcm_rows, "trailing", {"s_noise": 1.0}),
    "consistency": Method("consistency", consistency.rows, "consistency", {"s_noise": 1.0}),
}

# Those for any model whose calls are known before the first one.
DIFFUSION_SAMPLERS = tuple(name for name in SAMPLERS if name not in ("consistency", "dpm_adaptive"))


def sampler_name(name: str) -> SamplerName:
    """The name in ``SAMPLERS`` for a name in k-diffusion's, diffusers' or this project's spelling.

    Raises:
        FastdiffError: a name that nobody uses.
    """
    found: Any = canonical_sampler(str(name))
    if found in SAMPLERS:
        return found
    close = nearest(str(name), [*SAMPLERS, *SAMPLER_ALIASES], 3)
    raise FastdiffError(f"unknown sampler {name!r}{close}; known: {', '.join(SAMPLERS)}")


def sampling_plan(
    process: Process,
    *,
    sampler: str,
    steps: int | str,
    spacing: Spacing | None = None,
    guidance_scale: float | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    **options: Any,
) -> Plan:
    """The plan that takes x_T to x_0; the arguments are those of :class:`fastdiff.sampling.api.Sampler`.

    Raises:
        FastdiffError: an unknown sampler or spacing, steps that do not fit, options that the sampler does not have.
    """
    name = sampler_name(sampler)
    method, config = SAMPLERS[name], process.config
    if name == "consistency" and not config.is_consistent:
        raise FastdiffError(
            "sampler 'consistency' is for consistency models, and this is a diffusion model; 'dpmpp' samples it"
        )
    if config.is_consistent and name not in IN_FEW_STEPS:
        _LOG.warning(
            "sampler %r takes the model's x_0 for a mean of all possible images, and this model was trained to give "
            "one of them: 'consistency' samples it better",
            name,
        )
    # Where a consistency model returns its input, whatever its weights are.
    lowest = config.sigma_min if config.parametrisation == "consistency" else 0.0
    fixed = {"variance": config.variance, "sigma_min": lowest}
    made = checked(name, SAMPLERS, options, fixed)
    if sigmas is None:
        if name == "dpm_adaptive" and str(steps).strip() == "1":
            steps = 2  # of which it takes the two ends
        in_steps = isinstance(process.most_steps, int)
        grid = spacing or (method.spacing if in_steps or method.spacing != "trailing" else "uniform")
        levels = make_levels(process, steps, grid, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    else:
        given = {"spacing": spacing, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        for option, value in given.items():
            if value is not None:
                raise FastdiffError(f"sigmas are all levels of the run; leave out {option}")
        levels = levels_of(process, sigmas)
    rows = method.rows(levels, made)
    adaptive = None
    if name == "dpm_adaptive":
        adaptive = Adaptive(process, levels, made.order, made.rtol, made.atol, guidance_scale)
    return replace(
        make_plan(rows, process, guidance_scale),
        is_reverse_chain=name == "ancestral" or (name == "ddim" and made.eta == 1),
        overshoots=abs(rows[-1].x) > 1e-9 or rows[-1].h1 != 0,
        start=1.0 if process.starts_unscaled else rows[0].noise,
        adaptive=adaptive,
    )


def encoding_plan(process: Process, *, steps: int | str, guidance_scale: float | None = None) -> Plan:
    """The plan that takes an image to the x_T that ``ddim`` decodes, over the same levels.

    The image (times the signal, unless the process starts unscaled) is taken to be at the cleanest level, as in ADM's
    ``ddim_reverse_sample``, so that S levels are S - 1 calls.

    Raises:
        FastdiffError: fewer than two steps, or steps that do not fit; a model that was trained for few steps.
    """
    if process.config.is_consistent:
        raise FastdiffError(
            "a model that was trained for few steps has no path from an image to its noise; encode with the model that "
            "it was made from"
        )
    levels = make_levels(process, steps).up()
    if levels.steps < 1:
        raise FastdiffError(f"encoding needs at least 2 steps, got {steps!r}")
    plan = make_plan(ddim.rows(levels), process, guidance_scale)
    if process.starts_unscaled:
        return plan
    return replace(plan, start=float(levels.signal[0]), end=1 / float(levels.noise[-1]))
