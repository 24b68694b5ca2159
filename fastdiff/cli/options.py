"""Options that several commands have in common: type, short form and help text of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from fastdiff.choices import (
    CONSISTENT_SAMPLER,
    IN_FEW_STEPS,
    INPAINTING,
    INVERSION,
    SAMPLING,
    SamplerName,
    Spacing,
    Usual,
)

Checkpoint = Annotated[
    str,
    arg(
        aliases=["-c"],
        help="Checkpoint of the model: a .safetensors or .pt file, or the name of a bundled or fetched model.",
    ),
]
Preset = Annotated[
    str | None,
    arg(help="Configuration of the model, for a file that does not contain it; see fastdiff presets."),
]
Weights = Annotated[
    str | None,
    arg(
        help='Weights to load from a file with several sets: "ema", "raw" or a name.'
        " Default: the average, if there is one."
    ),
]
Classes = Annotated[
    tuple[str, ...], arg(help="Classes to sample, by name or number, in turn. Default: all classes.")
]
ClassName = Annotated[
    str | None,
    arg(
        name="class",
        help="Class of the images, by name or number. Default: no class, for models that were trained to do without.",
    ),
]
FitTo = Annotated[
    Literal["crop", "pad"] | None,
    arg(
        help='What to do with images of another size than the model\'s: "crop" scales and crops, "pad" adds a black'
        " border. Default: an error."
    ),
]
_STEPS_ARE = (
    'Number of sampling steps; for ancestral and ddim also "ddim50" or counts per section,'
    ' such as "90,60,20,20".'
)


def _steps(usual: Usual) -> Any:
    few = " and ".join(IN_FEW_STEPS)
    return arg(aliases=["-s"], help=f"{_STEPS_ARE} Default: {usual.steps}, of {few} {usual.few}.")


def _sampler(usual: Usual, why: str) -> Any:
    return arg(
        help=f"Sampling method. Default: {usual.sampler}, {why}; of models trained for few steps, "
        f"{CONSISTENT_SAMPLER}."
    )


Steps = Annotated[str, arg(aliases=["-s"], help=_STEPS_ARE)]
UsualSteps = Annotated[str | None, _steps(SAMPLING)]
UsualSampler = Annotated[SamplerName | None, _sampler(SAMPLING, "DPM-Solver++ 2M")]
InpaintSteps = Annotated[str | None, _steps(INPAINTING)]
InpaintSampler = Annotated[
    SamplerName | None,
    _sampler(INPAINTING, "which adds noise at each step and so blends known and filled parts"),
]
InversionSteps = Annotated[str | None, _steps(INVERSION)]
Eta = Annotated[
    float | None,
    arg(
        help="Amount of noise in the steps of ddim, dpm_fast, and the ancestral and SDE samplers: 0 is deterministic,"
        " 1 is as noisy as ancestral sampling. Default: 0 for ddim and dpm_fast, 1 for the others."
    ),
]
GridSpacing = Annotated[
    Spacing | None,
    arg(
        help="Grid of noise levels: uniform, simple, trailing, beta or zero-terminal-snr timesteps, or a grid by sigma."
        " Default: the sampler's own."
    ),
]
Sigmas = Annotated[
    tuple[float, ...],
    arg(help="All noise levels of the run, descending to 0, in place of STEPS and SPACING."),
]
SigmaMin = Annotated[float | None, arg(help="Least sigma of a grid by sigma. Default: the process's.")]
SigmaMax = Annotated[
    float | None, arg(help="Largest sigma of a grid by sigma. Default: the process's, 80 at most.")
]
Rho = Annotated[float | None, arg(help="Exponent of the karras grid (default 7) and of polyexponential (1).")]
Churn = Annotated[
    float | None,
    arg(help="Noise that euler, heun and dpm_2 add before their steps, over the run. Default: 0."),
]
ChurnFrom = Annotated[float | None, arg(help="Least sigma with churn.")]
ChurnTo = Annotated[float | None, arg(help="Largest sigma with churn.")]
NoiseFactor = Annotated[float | None, arg(help="Factor of all noise in the steps. Default: 1.")]
Order = Annotated[
    int | None, arg(help="Order of lms, unipc, deis, ipndm or pndm. Default: the sampler's own.")
]
RelativeTolerance = Annotated[
    float | None, arg(help="Relative error of a step of dpm_adaptive. Default: 0.05.")
]
AbsoluteTolerance = Annotated[
    float | None, arg(help="Absolute error of a step of dpm_adaptive. Default: 0.0078.")
]
Restarts = Annotated[
    tuple[tuple[float, float, int, int], ...],
    arg(
        help="For the sampler restart: rows of least and largest sigma, times and steps. Default: 0.1 2 1 9.",
        metavar="MIN MAX TIMES STEPS",
    ),
]
GuidanceScale = Annotated[
    float,
    arg(
        help="Scale of classifier-free guidance. 1: no guidance; above 1: stronger,"
        " for a second model call at each step."
    ),
]
Count = Annotated[int, arg(aliases=["-n"])]
BatchSize = Annotated[int, arg(aliases=["-b"], help="Number of images sampled at a time.")]
Out = Annotated[Path, arg(aliases=["-o"], help="Folder for the results; it is created if it does not exist.")]
Device = Annotated[str, arg(help="Device to run on: auto (the GPU, if there is one), cpu, cuda or cuda:N.")]
DType = Annotated[Literal["float32", "bfloat16"], arg(help="Data type of the model.")]
Progress = Annotated[bool, arg(help="Show a progress bar.")]
