"""The network that a configuration describes."""

from __future__ import annotations

from fastdiff.models.classifier import Classifier
from fastdiff.models.config import ClassifierConfig, ModelConfig
from fastdiff.models.unet import SuperResUNet, UNet


def build_model(config: ModelConfig) -> UNet | Classifier:
    """A network with fresh weights: :class:`Classifier`, :class:`SuperResUNet` or :class:`UNet`."""
    if isinstance(config, ClassifierConfig):
        return Classifier(config)
    return UNet(config) if config.low_res is None else SuperResUNet(config)
