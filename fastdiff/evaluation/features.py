"""What metrics look at instead of pixels: activations of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastdiff.checkpoint import load
from fastdiff.errors import FastdiffError
from fastdiff.models import Classifier, ClassifierConfig

BUNDLED = "fashion-mnist-classifier"
SPATIAL_CHANNELS = (
    7  # ADM's evaluator: of 17x17 positions they make 2023 features, about as many as FID's 2048
)


class Extracted(NamedTuple):
    """Features of N images, float32 on the CPU."""

    pool: Tensor  # [N,D], for FID, precision and recall
    spatial: Tensor  # [N,S], for sFID: positions in rows, columns, channels
    logits: Tensor  # [N,K], for the Inception Score


class Features(Protocol):
    """A network that turns images into :class:`Extracted`."""

    name: str
    label: str  # what stands behind the name of each metric
    note: str  # whose numbers may be compared with these

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of its images; None: any size, grey or RGB."""
        ...

    def __call__(self, images: Tensor) -> Extracted:
        """images [N,C,H,W] uint8."""
        ...


def load_features(
    name: str | None = None, *, inception_weights: Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Inception's features, or those of a classifier of fastdiff's.

    Args:
        name: "inception", the name of a bundled classifier or a classifier's checkpoint; None: Inception's if there are
            weights for it, else the bundled classifier's.
        inception_weights: see :class:`fastdiff.evaluation.inception.InceptionFeatures`.

    Raises:
        FastdiffError: weights that are missing, or none of a classifier.
    """
    if name is None:
        name = BUNDLED if inception_weights is None else "inception"
    if name == "inception":
        from fastdiff.evaluation.inception import InceptionFeatures

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
    """A noisy-image classifier at t = 0, in the part of Inception.

    ``pool`` is what its last linear layer sees, ``spatial`` the first channels where its way down ends. Numbers from it
    compare samplers and models on the data it was trained on, and never with a published FID.
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
