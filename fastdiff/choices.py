"""The choices of options, as types, and defaults that Python and the command line share; imports no PyTorch."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

# sampling/samplers has a method for each.
SamplerName = Literal[
    "ancestral",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "unipc",
    "unipc_bh1",
    "deis",
    "ipndm",
    "pndm",
    "restart",
    "dpm_fast",
    "dpm_adaptive",
    "lcm",
    "consistency",
]
# Other names of the same samplers: k-diffusion's, diffusers' and those of programs built on them.
SamplerAlias = Literal["ddpm", "dpmpp_2m", "euler_a", "plms", "uni_pc", "uni_pc_bh2", "unipc_bh2"]
SamplerOrAlias = Literal[SamplerName, SamplerAlias]
SAMPLER_ALIASES: dict[str, SamplerName] = {
    "ddpm": "ancestral",
    "dpmpp_2m": "dpmpp",
    "euler_a": "euler_ancestral",
    "plms": "pndm",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc",
    "unipc_bh2": "unipc",
}


IN_FEW_STEPS = ("consistency", "lcm")


def canonical_sampler(name: str) -> str:
    """The name in ``SamplerName`` for a sampler in another project's spelling; an unknown name as it is."""
    plain = name.lower().replace("-", "_").removeprefix("sample_")
    plain = SAMPLER_ALIASES.get(plain, plain)
    return plain if plain in get_args(SamplerName) else name


class Usual(NamedTuple):
    """What is done where neither sampler nor steps are given: in ``few`` steps with a model of few steps."""

    sampler: str
    steps: int
    few: int


def usual_sampling(
    sampler: str | None, steps: int | str | None, consistent: bool, usual: Usual | None = None
) -> tuple[str, int | str]:
    """Sampler and steps, where they are None the usual ones (``SAMPLING``) or, of a consistent model, its own."""
    usual = usual or SAMPLING
    if sampler is None:
        sampler = CONSISTENT_SAMPLER if consistent else usual.sampler
    if steps is None:
        steps = usual.few if canonical_sampler(sampler) in IN_FEW_STEPS else usual.steps
    return sampler, steps


# Grids of noise levels: by timesteps of the process, then by sigma. sampling/grids.py makes them.
TimeSpacing = Literal["uniform", "simple", "trailing", "beta", "zero-terminal-snr"]
SigmaSpacing = Literal["karras", "logsnr", "exponential", "polyexponential", "vp", "consistency"]
Spacing = Literal[TimeSpacing, SigmaSpacing]
Fit = Literal["crop", "random-crop", "pad"]
Loss = Literal["mse", "rescaled_mse", "hybrid", "rescaled_hybrid", "kl", "rescaled_kl"]
Parametrisation = Literal["discrete", "edm", "consistency", "flow"]
Denoised = Literal["edm", "flow"]  # kinds beside the preset's own that fastdiff train can make a denoiser of
Recompute = Literal["none", "selective", "full"]
Precision = Literal["float32", "bfloat16", "float16"]
LossWeights = Literal["none", "min-snr", "p2"]
TaskName = Literal["diffusion", "consistency"]
Distance = Literal["pseudo-huber", "l2", "l1", "lpips"]
Pairs = Literal["halving", "doubling", "grid", "continuous"]  # of levels, in consistency training

# The samplers and steps where none are given, in Python and on the command line alike.
SAMPLER, STEPS = "dpmpp", 20  # DPM-Solver++ 2M: as good as the others with 50 and more (docs/evaluation.md)
# Those of a model that gives the image in one call: a second one mends what the first has blurred.
CONSISTENT_SAMPLER, CONSISTENT_STEPS = "consistency", 2
SAMPLING = Usual(SAMPLER, STEPS, CONSISTENT_STEPS)
# Noise in the steps lets known and filled parts adapt to each other.
INPAINTING = Usual("ancestral", 50, 10)
# The one that can be reversed, for encoding and interpolation; one call of a consistency model draws no noise.
INVERSION = Usual("ddim", 50, 1)

# Parameters of the decision model that the subjects of a group share, as in HDDM: one subject hardly tells them.
SHARED = ("sv", "sz", "st0", "p_outlier")
# Share of a V100's peak that the ADM paper's optimized training of the 256x256 model reached (docs/v100_days.md).
UTILISATION = 0.36
