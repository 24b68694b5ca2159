"""The choices of options, as types, and defaults that Python and the command line share; imports no PyTorch."""

from __future__ import annotations

from typing import Literal

SamplerName = Literal["ancestral", "ddim", "dpmpp", "euler", "heun"]  # sampling/samplers has a row for each
Fit = Literal["crop", "random-crop", "pad"]
Loss = Literal["mse", "rescaled_mse", "hybrid", "rescaled_hybrid", "kl", "rescaled_kl"]
Recompute = Literal["none", "selective", "full"]
Precision = Literal["float32", "bfloat16", "float16"]
LossWeights = Literal["none", "min-snr", "p2"]

# The samplers and steps where none are given, in Python and on the command line alike.
SAMPLER, STEPS = "dpmpp", 20  # DPM-Solver++ 2M: as good as the others with 50 and more (docs/evaluation.md)
INPAINT_SAMPLER, INPAINT_STEPS = (
    "ancestral",
    50,
)  # noise in the steps lets known and filled parts adapt to each other
INVERSION_SAMPLER, INVERSION_STEPS = "ddim", 50  # the one that can be reversed: encode, interpolate
