"""The 3x3 convolution of the networks' layers: PyTorch's, or on the CPU fastdiff's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.backend import Backend, forced
from fastdiff.ops import conv2d

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEAST_CHANNELS = 16  # with fewer, Winograd's transforms cost more than they save


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` of 3x3, stride 1 and padding 1; parameters and state dict are the same.

    On the CPU, channels_last images in float32, bfloat16 or float16 are convolved by :func:`fastdiff.ops.conv2d`,
    forward and backward; everything else is PyTorch's. Under autocast images and result are of its dtype, as with
    PyTorch, and the weight stays in its own.

    Args:
        in_channels, out_channels: Cin and Cout.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if not self._has_kernel(x):
            return super().forward(input)
        y = conv2d(x, self.weight, self.bias)
        assert isinstance(y, Tensor)  # without moments
        return y

    def _has_kernel(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and forced() in (None, Backend.CPU, Backend.REFERENCE)
            and x.dtype in _DTYPES
            and self.weight.dtype in (x.dtype, torch.float32)
            and min(self.weight.shape[:2]) >= _LEAST_CHANNELS
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.stride(1) == 1  # a single pixel is of either layout
        )
