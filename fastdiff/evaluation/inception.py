"""Inception's features: torch-fidelity's network, which agrees with TensorFlow's of 2015, on a local weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.checkpoint.read import read
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.features import Extracted, spatial_features

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
_PROOF = {"fc.weight": (1008, 2048), "Mixed_6d.branch1x1.conv.weight": (192, 768, 1, 1)}


class InceptionFeatures:
    """Inception v3 as FID is defined on it: TensorFlow's graph of 2015-12-05.

    As in ADM's evaluator, pool is pool_3 (2048), spatial the first 7 channels of mixed_6/conv (17x17), which is
    ``Mixed_6d.branch1x1`` here, and logits are without their bias (1008). Nothing is ever downloaded.

    Args:
        weights: the file pt_inception-2015-12-05-6726825d.pth, published with pytorch-fid and torch-fidelity.
        device: where to run.

    Raises:
        FastdiffError: no such file, another one, or no torch-fidelity.
    """

    name = "inception"
    label = "Inception v3"
    note = "features of Inception v3 (TensorFlow 2015-12-05): as published"
    shape = None

    def __init__(self, weights: Path | None, device: torch.device | str = "cpu") -> None:
        if weights is None:
            raise FastdiffError(
                f"features 'inception' need the network's weights: give --inception-weights {WEIGHTS}, "
                "a file that pytorch-fid and torch-fidelity publish"
            )
        check_weights(weights)
        self._device = torch.device(device)
        network: Any = _network_class()(
            self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
        self._network: nn.Module = network.to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        seen: list[Tensor] = []
        layer: Any = self._network.get_submodule("Mixed_6d.branch1x1")
        hook = layer.register_forward_hook(lambda _, __, output: seen.append(spatial_features(output)))
        try:
            pool, logits = self._network(images.to(self._device).expand(-1, 3, -1, -1))
        finally:
            hook.remove()
        return Extracted(pool.float().cpu(), seen[0].float().cpu(), logits.float().cpu())


def check_weights(file: Path) -> None:
    """Raise unless the file holds Inception's weights and nothing that could run code.

    torch-fidelity itself would unpickle whatever it is given.
    """
    if not file.is_file():
        raise FastdiffError(f"no Inception weights at {file}; give the file {WEIGHTS}")
    found = read(file)[0]
    for name, shape in _PROOF.items():
        if name not in found or tuple(found[name].shape) != shape:
            raise FastdiffError(
                f"{file} does not hold the weights of TensorFlow's Inception of 2015 (no {name} of {list(shape)}); "
                f"give the file {WEIGHTS}"
            )


def _network_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise FastdiffError(
            f"features 'inception' need torch-fidelity ({error}); pip install 'fastdiff[inception]'"
        ) from None
    except RuntimeError as error:  # torchvision, when it was built for another torch
        reason = str(error).splitlines()[0]
        raise FastdiffError(
            f"torch-fidelity cannot be imported ({reason}); install the torchvision that belongs to "
            f"torch {torch.__version__}"
        ) from None
    return FeatureExtractorInceptionV3
