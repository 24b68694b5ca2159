"""LPIPS, the distance of images in the features of a network trained on ImageNet, for consistency training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import FastdiffError

SIZE, SMALL = 224, 256  # images smaller than 256 pixels are enlarged to 224 first


class Perceptual:
    """LPIPS of two batches of images [N,C,H,W] in [-1, 1], [N] float32, with gradients; grey ones as three channels.

    Source: Zhang et al. 2018, with VGG's features as Song et al. 2023 (appendix C) take them, who enlarge small images
    to 224 pixels. The network is torchmetrics'; its VGG has torchvision's weights, which torchvision downloads.

    Args:
        network: network(a, b) for images [N,3,H,W] in [-1, 1]; None: torchmetrics'.

    Raises:
        FastdiffError: torchmetrics, torchvision or the weights are missing.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._network: Any = network or load_network()

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if isinstance(self._network, torch.nn.Module):
            self._network.to(a.device)
        # The features are of float32: rounded to 16 bits, near images would be the same.
        with torch.autocast(a.device.type, enabled=False):
            return self._network(_as_rgb(a.float()), _as_rgb(b.float())).flatten()


@functools.cache
def load_network() -> torch.nn.Module:
    """torchmetrics' LPIPS on VGG, frozen.

    Raises:
        FastdiffError: a part of it is missing.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity("vgg").net.eval().requires_grad_(False)  # pyright: ignore
    except ImportError:
        raise FastdiffError(
            "--distance lpips needs torchmetrics and a torchvision that fits this PyTorch: "
            "pip install 'torchmetrics[image]', or take another --distance"
        ) from None
    except (OSError, RuntimeError) as error:
        raise FastdiffError(
            f"--distance lpips needs VGG-16's weights, which could not be downloaded ({error}); put "
            f"vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints"
        ) from None


def _as_rgb(images: Tensor) -> Tensor:
    images = images.expand(-1, 3, -1, -1)
    if images.shape[-1] >= SMALL:
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
