"""The paper's network for images (appendix D.2): multi-scale convolutions, 1x1 and dense layers, bumps in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion, GaussianOutput
from fastdiff.diffusion.kernels import at
from fastdiff.errors import FastdiffError


class TemporalBumps(nn.Module):
    """g_j(t), j = 1 .. J: normalised Gaussian bumps whose width is the spacing of their centres (eq. 59).

    The centres are even in log t, that is in the log of the signal-to-noise ratio, where the paper has them even in
    t: there, with beta_t = 1 / (T - t + 1), all of the steps with little noise would share the first bump.
    """

    def __init__(self, steps: int, bumps: int = 10) -> None:
        super().__init__()
        time = torch.log(torch.arange(1, steps + 1)) / math.log(steps)
        centres = torch.linspace(0, 1, bumps)
        g = torch.softmax(-0.5 * ((time[:, None] - centres) * (bumps - 1)) ** 2, 1)
        self.register_buffer("table", torch.cat([g[:1], g]))  # indexed by t

    def forward(self, t: Tensor) -> Tensor:
        """[N] to [N, J]; each row sums to one."""
        return self.get_buffer("table")[t]


class MultiScaleConv(nn.Module):
    """Sum over s of upsampled 3x3 convolutions of x mean-pooled by 2^s; [N,C,H,W] to [N,D,H,W]."""

    def __init__(self, channels: int, out_channels: int, scales: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=s == 0) for s in range(scales)
        )

    def forward(self, x: Tensor) -> Tensor:
        size, result = x.shape[-2:], self.convs[0](x)
        for s, conv in enumerate(self.convs[1:], 1):
            result = result + F.interpolate(conv(F.avg_pool2d(x, 2**s)), size=size, mode="nearest")
        return result / math.sqrt(len(self.convs))


def _softplus(x: Tensor) -> Tensor:
    """Softplus, 0 at 0: a stack of positive features would saturate the tanh layers above it."""
    return F.softplus(x) - math.log(2)


@dataclass(frozen=True)
class MultiScaleConfig:
    """Sizes of :class:`MultiScaleNet`."""

    channels: int = 1
    width: int = 32
    """Features of a convolution."""
    layers: int = 5
    """Multi-scale convolutions after the first."""
    scales: int = 3
    """Resolutions, each half the one before."""
    pointwise: int = 64
    """Features of each of the two 1x1 layers."""
    dense: int = 0
    """Features a pixel of the dense pathway; 0 leaves it out. With it the network takes images of ``size`` only."""
    size: int = 32
    bumps: int = 10


class MultiScaleNet(nn.Module):
    """x_t [N,C,H,W], t [N] to the reverse kernel's mean and covariance, as in the paper's figure D.1.

    Each pixel gets 2 J numbers y for each channel, and the readout is v = sum_j y_j^mu g_j(t) and
    z = sum_j y_j^Sigma g_j(t) (eq. 58, 60). Differences from the paper, all made so that minutes suffice: the
    mean's readout v stands for x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v; the bumps g(t) are inputs, too; the
    convolutions after the first are residual.

    Raises:
        FastdiffError: x of a size that the dense pathway was not made for, or that cannot be halved often enough.
    """

    def __init__(self, diffusion: DiagonalGaussianDiffusion, config: MultiScaleConfig) -> None:
        super().__init__()
        self.diffusion, self.config = diffusion, config
        width, c = config.width, config.channels
        self.bumps = TemporalBumps(diffusion.steps, config.bumps)
        self.first = MultiScaleConv(c + config.bumps, width, config.scales)
        self.layers = nn.ModuleList(MultiScaleConv(width, width, config.scales) for _ in range(config.layers))
        pixels = c * config.size**2
        self.dense = None
        if config.dense:
            self.dense = nn.Sequential(
                nn.Linear(pixels + config.bumps, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(),
                nn.Linear(256, config.dense * config.size**2), nn.Tanh(),
            )  # fmt: skip
        self.pointwise = nn.Sequential(
            nn.Conv2d(width + config.dense, config.pointwise, 1), nn.Tanh(),
            nn.Conv2d(config.pointwise, config.pointwise, 1), nn.Tanh(),
        )  # fmt: skip
        self.readout = nn.Conv2d(config.pointwise, 2 * c * config.bumps, 1)
        nn.init.zeros_(self.readout.weight)  # starts as the kernel for white noise of variance 1
        nn.init.zeros_(self.readout.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, t: Tensor) -> GaussianOutput:
        self._check(x)
        n, c, height, width = x.shape
        g = self.bumps(t).to(x.dtype)
        planes = g[:, :, None, None].expand(-1, -1, height, width)
        h = self.first(torch.cat([x, planes], 1).contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            h = h + layer(_softplus(h))
        h = _softplus(h)
        if self.dense is not None:
            path = self.dense(torch.cat([x.flatten(1), g], 1))
            h = torch.cat([h, path.reshape(n, -1, height, width)], 1)
        y = self.readout(self.pointwise(h)).reshape(n, 2, c, -1, height, width)
        v, z = torch.einsum("nkcjhw,nj->knchw", y, g)
        abar = at(self.diffusion.alphas_bar, t, x)
        return GaussianOutput(torch.sqrt(abar) * x - torch.sqrt(1 - abar) * v, z)

    def _check(self, x: Tensor) -> None:
        size, factor = list(x.shape[-2:]), 2 ** (self.config.scales - 1)
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise FastdiffError(f"the network takes [N,{self.config.channels},H,W], got {list(x.shape)}")
        if size[0] % factor or size[1] % factor:
            raise FastdiffError(f"height and width must be multiples of {factor}, got {size}")
        if self.dense is not None and size != [self.config.size] * 2:
            raise FastdiffError(
                f"the network was made for {self.config.size}x{self.config.size} images, got {size}"
            )
