"""The diffusion process: schedules, the Gaussian forward and reverse steps, losses, likelihood."""

from fastdiff.diffusion.config import DiffusionConfig as DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion as GaussianDiffusion
