"""Feature networks for the metrics: activations of a classifier, or of Inception.

Inception is torch-fidelity's network, which agrees with TensorFlow's of 2015, on a local weights file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastdiff.checkpoint import load
from fastdiff.checkpoint.read import read
from fastdiff.errors import FastdiffError
from fastdiff.models import Classifier, ClassifierConfig

BUNDLED = "fashion-mnist-classifier"
# as in ADM's evaluator: with 17x17 positions this gives 2023 features, about as many as FID's 2048
SPATIAL_CHANNELS = 7
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
_PROOF = {"fc.weight": (1008, 2048), "Mixed_6d.branch1x1.conv.weight": (192, 768, 1, 1)}


class Extracted(NamedTuple):
    """Features of N images, float32 on the CPU."""

    pool: Tensor  # [N,D], for FID, precision and recall
    spatial: Tensor  # [N,S], for sFID: positions in rows, columns, channels
    logits: Tensor  # [N,K], for the Inception Score


class Features(Protocol):
    """A network that turns images into :class:`Extracted`."""

    name: str
    label: str  # printed behind the name of each metric
    note: str  # note on which numbers may be compared with these

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the network's images; None: any size, grey or RGB."""
        ...

    def __call__(self, images: Tensor) -> Extracted:
        """Features of images [N,C,H,W] uint8."""
        ...


def load_features(
    name: str | None = None, *, inception_weights: Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Load Inception's features, or those of a fastdiff classifier.

    Args:
        name: "inception", the name of a bundled classifier or a classifier's checkpoint; None: Inception's if there are
            weights for it, else the bundled classifier's.
        inception_weights: see :class:`InceptionFeatures`.

    Raises:
        FastdiffError: weights that are missing, or not a classifier's.
    """
    if name is None:
        name = BUNDLED if inception_weights is None else "inception"
    if name == "inception":
        return InceptionFeatures(inception_weights, device)
    if inception_weights is not None:
        raise FastdiffError(
            f"features {name!r} have no use for Inception's weights; leave out one of the two"
        )
    model = load(name, device=device)
    if not isinstance(model, Classifier):
        raise FastdiffError(f"{name} is no classifier; features come from one, such as {BUNDLED}")
    return ClassifierFeatures(model, Path(name).stem)


class ClassifierFeatures:
    """A noisy-image classifier at t = 0, as a feature network in place of Inception.

    ``pool`` is the input of its last linear layer, ``spatial`` the first channels at the end of its encoder. Numbers
    from it compare samplers and models on the data it was trained on; they are not comparable with a published FID.
    """

    def __init__(self, model: Classifier, name: str) -> None:
        self._model, config = model, model.config
        self.name = self.label = name
        self.note = f"features of {name}, not of Inception: not comparable with published numbers"
        self.shape = (config.in_channels, config.image_size, config.image_size)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        seen: dict[str, Tensor] = {}

        def keep_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen["pool"] = inputs[0].flatten(1)

        def keep_output(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            seen["spatial"] = spatial_features(output)

        device = next(self._model.parameters()).device
        x = images.to(device).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        hooks = (
            last_layer(self._model).register_forward_pre_hook(keep_input),
            self._model.input_blocks[-1].register_forward_hook(keep_output),
        )
        try:
            logits = self._model(x, torch.zeros(len(x), dtype=torch.int64, device=device))
        finally:
            for hook in hooks:
                hook.remove()
        return Extracted(*(f.float().cpu() for f in (seen["pool"], seen["spatial"], logits)))


def last_layer(model: Classifier) -> nn.Module:
    """The linear layer that gives the logits."""
    config: ClassifierConfig = model.config
    head: Any = model.out
    return {"attention": lambda: head[2].c_proj, "adaptive": lambda: head[3]}.get(
        config.pool, lambda: head[-1]
    )()


def spatial_features(activations: Tensor) -> Tensor:
    """[N,C,H,W] -> [N, H W 7] in the order of ADM's evaluator, whose published statistics have it."""
    return activations[:, :SPATIAL_CHANNELS].movedim(1, -1).flatten(1)


class InceptionFeatures:
    """Inception v3 as FID is defined on it: TensorFlow's graph of 2015-12-05.

    As in ADM's evaluator, pool is pool_3 (2048), spatial the first 7 channels of mixed_6/conv (17x17), which is
    ``Mixed_6d.branch1x1`` here, and logits are without their bias (1008). Nothing is ever downloaded.

    Args:
        weights: the file pt_inception-2015-12-05-6726825d.pth, published with pytorch-fid and torch-fidelity.
        device: device to run on.

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
                f"published at {ADDRESS}"
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
    """Raise FastdiffError unless the file holds Inception's weights and nothing that could run code.

    torch-fidelity itself would unpickle any file.
    """
    if not file.is_file():
        raise FastdiffError(f"no Inception weights at {file}; give the file published at {ADDRESS}")
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
