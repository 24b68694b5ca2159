"""A stand-in for torch-fidelity's Inception, with its interface and random weights."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

MODULE = "torch_fidelity.feature_extractor_inceptionv3"
FILE = "pt_inception-2015-12-05-6726825d.pth"


class StandIn(nn.Module):
    """What of torch-fidelity's FeatureExtractorInceptionV3 is used: its constructor, one block's name, its outputs."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        self.features_list = features_list
        weights = torch.load(feature_extractor_weights_path, weights_only=True)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)
        self.projection = weights["fc.weight"]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        assert self.features_list == ["2048", "logits_unbiased"]
        y = nn.functional.interpolate(x.float(), (17, 17))
        pooled = self.Mixed_6d.branch1x1(y).mean((2, 3)).repeat(1, 11)[:, :2048]  # pyright: ignore
        return pooled, pooled @ self.projection.T


def install(patch: pytest.MonkeyPatch) -> None:
    """Let ``import torch_fidelity`` find the stand-in."""
    with contextlib.suppress(ImportError):  # which would look for more in the stand-in if it came later
        import torchmetrics.image.fid  # noqa: F401
    package, module = ModuleType("torch_fidelity"), ModuleType(MODULE)
    module.FeatureExtractorInceptionV3 = StandIn  # pyright: ignore[reportAttributeAccessIssue]
    patch.setitem(sys.modules, "torch_fidelity", package)
    patch.setitem(sys.modules, MODULE, module)


def write_weights(folder: Path) -> Path:
    """Random weights, in the published file's name."""
    torch.manual_seed(0)
    tensors = {
        "fc.weight": torch.randn(1008, 2048),
        "Mixed_6d.branch1x1.conv.weight": torch.zeros(192, 768, 1, 1),
    }
    torch.save(tensors, folder / FILE)
    return folder / FILE
