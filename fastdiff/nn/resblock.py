"""ADM's residual block."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

from torch import Tensor, nn

from fastdiff.nn.layers import Conv2d, GroupNormSiLU, downsample_mean, upsample_nearest
from fastdiff.nn.recompute import Dropout

M = TypeVar("M", bound=nn.Module)


def zero_module(module: M) -> M:
    """The module with its parameters set to zero, so that a residual branch starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """x [N, Cin, H, W], emb [N, E] -> [N, Cout, H', W']; H' = H, 2H ("up") or H/2 ("down").

        h = conv3x3(resample(SiLU(GN(x))))
        h = SiLU(GN(h) (1 + scale) + shift),  [scale, shift] = Linear(SiLU(emb))     AdaGN, or
        h = SiLU(GN(h + Linear(SiLU(emb))))                                          additive
        out = skip(resample(x)) + conv3x3(dropout(h))                                / sqrt(2) if rescale

    The last convolution starts at zero. Parameter names are guided-diffusion's: in_layers.{0,2}, emb_layers.1,
    out_layers.{0,3}, skip_connection. Source: Dhariwal & Nichol 2021, section 3; resampling inside the block,
    Brock et al. 2018.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resample: Literal["up", "down"] | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.scale_shift_norm, self.resample, self.rescale = scale_shift_norm, resample, rescale
        # The fused norm contains the activation; Identity keeps its place in the numbering.
        self.in_layers = nn.Sequential(GroupNormSiLU(channels), nn.Identity(), Conv2d(channels, out_channels))
        emb_out = 2 * out_channels if scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNormSiLU(out_channels),
            nn.Identity(),
            Dropout(dropout),
            zero_module(Conv2d(out_channels, out_channels)),
        )
        self.skip_connection = (
            nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is None:
            h = self.in_layers(x)
        else:
            resample = upsample_nearest if self.resample == "up" else downsample_mean
            norm, activation, conv = self.in_layers
            h, x = conv(resample(activation(norm(x)))), resample(x)
        projected = self.emb_layers(emb).type(h.dtype)
        norm, activation, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = projected.chunk(2, dim=1)
            h = norm(h, scale, shift)
        else:
            h = norm(h + projected[..., None, None])
        out = self.skip_connection(x) + conv(dropout(activation(h)))
        return out * math.sqrt(0.5) if self.rescale else out
