"""The choices of options, as types: what Python and the command line take, readable without importing PyTorch."""

from __future__ import annotations

from typing import Literal

SamplerName = Literal["ancestral", "ddim", "dpmpp", "euler", "heun"]  # sampling/samplers has a row for each
Fit = Literal["crop", "random-crop", "pad"]
Loss = Literal["mse", "rescaled_mse", "hybrid", "rescaled_hybrid", "kl", "rescaled_kl"]
Recompute = Literal["none", "selective", "full"]
Precision = Literal["float32", "bfloat16", "float16"]
LossWeights = Literal["none", "min-snr", "p2"]
