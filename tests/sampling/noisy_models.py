"""Models with learned variance, classes and guidance, and batches for them, on the GPU if there is one."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.sampling.plan import Plan
from fastdiff.sampling.samplers import sampling_plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Model(nn.Module):
    """A convolution whose bias depends on the time and the class, with a learned variance; 4 means "no class"."""

    diffusion = DiffusionConfig(steps=40, variance="learned_range")
    config = SimpleNamespace(image_size=8, in_channels=3, num_classes=4)
    null_class = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label = nn.Conv2d(3, 6, 3, padding=1), nn.Embedding(5, 6)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        bias = (t / 1000).to(self.conv.weight.dtype)[:, None] - 0.5
        bias = bias if y is None else bias + self.label(y)
        return self.conv(x) + bias[:, :, None, None]


class Embedding(Model):
    """The same in two parts."""

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        bias = (t / 1000)[:, None] - 0.5
        return bias.expand(-1, 6) if y is None else bias + self.label(y)

    def denoise(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x) + embedding[:, :, None, None]


def make_plan(sampler: str, guided: bool = False, steps: int = 5) -> Plan:
    options = {"eta": 1.0} if sampler == "ddim" else {}
    process = GaussianDiffusion(Model.diffusion)
    return sampling_plan(
        process, sampler=sampler, steps=steps, guidance_scale=2.5 if guided else None, **options
    )


def make_batch(n: int = 3, first: int = 0, guided: bool = False) -> tuple[Tensor, dict]:
    """x and the options of ``run`` and ``make_step``."""
    g = torch.Generator().manual_seed(first)
    x = torch.randn(n, 3, 8, 8, generator=g).to(DEVICE).contiguous(memory_format=torch.channels_last)
    seeds = torch.arange(first, first + n, device=DEVICE)
    y = (torch.arange(n, device=DEVICE) + first) % 4
    return x, {"cond": {"y": y}, "seeds": seeds, "null_class": 4 if guided else None}
