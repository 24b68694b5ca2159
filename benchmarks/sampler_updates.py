"""What does a sampler's update cost beside the network? Every sampler and its peers' own code, turn by turn.

    python benchmarks/sampler_updates.py [--k-diffusion FOLDER] [--rounds N] [--out FILE.json]

The model answers at once with a stored tensor, so that what is timed is the update of a step, its noise, and the loop
around it: milliseconds of the process's own time for each model call, over a run of 20 steps with 16 images of 3 x 64 x
64. FOLDER is a checkout of k-diffusion; its stochastic samplers get normal noise in place of their Brownian tree, which
costs more. diffusers' schedulers are timed where it is installed. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from fastdiff import GaussianDiffusion, use_backend
from fastdiff.bench import machine, results
from fastdiff.bench.clock import Timing
from fastdiff.bench.report import table
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.loop import run
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS, sampling_plan

SHAPE, STEPS = (16, 3, 64, 64), 20
# Samplers whose function in k-diffusion has another name, or needs an argument.
K_DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp": ("dpmpp_2m", {}),
    "dpmpp_2s": ("dpmpp_2s_ancestral", {"eta": 0.0}),
    "dpmpp_3m": ("dpmpp_3m_sde", {"eta": 0.0}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
}
DIFFUSERS = {
    "ancestral": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "pndm": "PNDMScheduler",
    "ipndm": "IPNDMScheduler",
    "lcm": "LCMScheduler",
}
Side = Callable[[], int]  # makes a run, and returns its number of model calls


def ours(sampler: str, backend: str | None) -> Side:
    plan = sampling_plan(GaussianDiffusion(DiffusionConfig(prediction="x0")), sampler=sampler, steps=STEPS)
    x, answer, seeds = torch.randn(SHAPE), torch.rand(SHAPE), sample_seeds(SHAPE[0])

    def side() -> int:
        with use_backend(backend) if backend else contextlib.nullcontext():
            run(plan, lambda x, t: answer, x, seeds=seeds)
        return plan.calls

    return side


def k_diffusions(sampler: str, sampling: Any) -> Side | None:
    name, options = K_DIFFUSION.get(sampler, (sampler, {}))
    function = getattr(sampling, f"sample_{name}", None)
    if function is None:
        return None
    arguments = dict(options)
    if "noise_sampler" in inspect.signature(function).parameters:
        arguments["noise_sampler"] = lambda *levels: torch.randn(SHAPE)
    x, answer, calls = torch.randn(SHAPE) * 80, torch.rand(SHAPE), [0]
    grid = (0.02, 80.0, STEPS) if name == "dpm_fast" else (sampling.get_sigmas_karras(STEPS, 0.02, 80.0),)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += 1
        return answer

    def side() -> int:
        calls[0] = 0
        function(model, x, *grid, disable=True, **arguments)
        return calls[0]

    return side


def of_diffusers(sampler: str) -> Side | None:
    if sampler not in DIFFUSERS or importlib.util.find_spec("diffusers") is None:
        return None
    import diffusers as package

    scheduler: Any = getattr(package, DIFFUSERS[sampler])()
    x, answer = torch.randn(SHAPE), torch.rand(SHAPE)

    def side() -> int:
        scheduler.set_timesteps(STEPS)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(answer, t, state).prev_sample
        return len(scheduler.timesteps)

    return side


def load_k_diffusion(folder: Path) -> Any:
    """Its ``sampling.py`` alone: what that imports for other purposes than these samplers is left empty."""
    stubs = {"torchdiffeq": "odeint", "torchsde": "BrownianTree"}
    stubs = {name: content for name, content in stubs.items() if importlib.util.find_spec(name) is None}
    for name, content in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], content, None)
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder / "k_diffusion")]
    sys.modules["k_diffusion"] = package
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # pyright: ignore
    sys.modules["k_diffusion.utils"] = package.utils = utils  # pyright: ignore
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stubs:
            del sys.modules[name]


def milliseconds(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """The median of each side's own processor time for a model call."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.process_time()
            calls = side()
            found[name].append((time.process_time() - start) / calls * 1e3)
    return {name: Timing.of(samples).median for name, samples in found.items()}


def main(k_diffusion: Path | None = None, rounds: int = 9, out: Path | None = None) -> None:
    """Time and print.

    Args:
        k_diffusion: A checkout of k-diffusion.
        rounds: Runs of each side.
        out: Results file.
    """
    torch.set_num_threads(1)
    sampling = None if k_diffusion is None else load_k_diffusion(k_diffusion)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for sampler in DIFFUSION_SAMPLERS:
            peers = {"eager": ours(sampler, "eager"), "diffusers": of_diffusers(sampler)}
            if sampling is not None:
                peers["k-diffusion"] = k_diffusions(sampler, sampling)
            sides = {"fastdiff": ours(sampler, None)} | {k: v for k, v in peers.items() if v is not None}
            rows.append({"sampler": sampler, **milliseconds(sides, rounds)})
    heads = ("fastdiff", "eager", "k-diffusion", "diffusers")
    cells = [[f"`{r['sampler']}`", *(f"{r[h]:.2f}" if h in r else "" for h in heads)] for r in rows]
    print(table(["milliseconds a call", *heads], cells))
    if out is not None:
        results.write(out, machine.describe() | {"shape": list(SHAPE), "steps": STEPS}, rows=rows)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
