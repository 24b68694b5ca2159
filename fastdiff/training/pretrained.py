"""Fine-tuning: a run that begins with a checkpoint's weights, fitted to other classes, channels and image sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastdiff.models import Classifier, ModelConfig, UNet

FIRST, LAST, LABELS, TIME = "input_blocks.0.0.weight", "out.2", "label_emb.weight", "time_embed.2.bias"


@dataclass
class Transfer:
    """Names of a network's tensors by where their first values came from."""

    kept: list[str] = field(default_factory=list)  # the checkpoint's
    fitted: list[str] = field(default_factory=list)  # the checkpoint's, made to fit other classes or channels
    new: list[str] = field(default_factory=list)  # random, or zero for the labels of a model that had none
    unused: list[str] = field(default_factory=list)  # the checkpoint's that have no place

    def __str__(self) -> str:
        parts = [f"{len(self.kept)} tensors kept"]
        for title, names in (("fitted", self.fitted), ("new", self.new), ("left out", self.unused)):
            parts += [f"{title}: {', '.join(names)}"] if names else []
        return "; ".join(parts)


def at_size(config: ModelConfig, image_size: int) -> ModelConfig:
    """The network for images of another size, with attention on the same levels, so that its weights fit."""
    attends = (
        level
        for level in range(len(config.channel_mult))
        if config.image_size >> level in config.attention_resolutions
    )
    resolutions = tuple(image_size >> level for level in attends)
    return replace(config, image_size=image_size, attention_resolutions=resolutions)


@torch.no_grad()
def transfer(source: UNet | Classifier, model: UNet | Classifier) -> Transfer:
    """Copy into ``model`` what fits of ``source``; what does not is fitted where there is a sensible way.

    - The first convolution on other channels: each new channel gets the sum of the old ones' weights divided by the
      number of new ones, so that a grey image looks the same in either, and a random part that sums to 0 over them:
      without it no layer would see colours, and, all channels being alike, hardly learn to. The last: the mean of the
      old channels.
    - Labels: a class of the same name has the same embedding; without names and of the same number, all have; any other
      begins with the mean of the old classes, and "no class" as it was, or with that mean. A model that had no
      classes gets zeros, which change nothing. For a model without classes the embedding of "no class", or the mean,
      is added to that of the time.
    """
    weights, found = source.state_dict(), Transfer()
    for name, target in model.state_dict().items():
        value = weights.get(name)
        if name == LABELS:
            value = _labels(source, model)
        elif name == TIME and LABELS in weights and not hasattr(model, "label_emb"):
            value = weights[TIME] + _no_class(source)
        elif value is not None and value.shape != target.shape:
            value = _channels(name, value, target, source)
        if value is None:
            found.new.append(name)
            continue
        target.copy_(value)
        same = name in weights and weights[name].shape == target.shape and torch.equal(weights[name], value)
        (found.kept if same else found.fitted if name in weights else found.new).append(name)
    found.unused += [name for name in weights if name not in model.state_dict()]
    return found


def _channels(name: str, value: Tensor, target: Tensor, source: UNet | Classifier) -> Tensor | None:
    """The first or the last convolution on other channels; None for another layer."""
    old = source.config.in_channels
    if name == FIRST and value.shape[0] == target.shape[0]:
        groups = value.shape[1] // old  # an upsampler's: the image and the enlarged one
        parts = value.unflatten(1, (groups, old)).sum(dim=2, keepdim=True)
        random = target.unflatten(1, (groups, -1))
        colours = random - random.mean(dim=2, keepdim=True)
        return (parts / random.shape[2] + colours).flatten(1, 2)
    if not isinstance(source, UNet):
        return None
    if name in (f"{LAST}.weight", f"{LAST}.bias") and value.shape[1:] == target.shape[1:]:
        groups = value.shape[0] // source.config.out_channels  # the prediction, and perhaps a variance
        means = value.unflatten(0, (groups, -1)).mean(dim=1, keepdim=True)
        return means.expand(-1, target.shape[0] // groups, *value.shape[1:]).flatten(0, 1)
    return None


def _labels(source: UNet | Classifier, model: UNet | Classifier) -> Tensor:
    assert isinstance(model, UNet) and isinstance(source, UNet)
    classes, null = model.config.num_classes or 0, model.config.null_label
    if source.config.num_classes is None:
        return torch.zeros_like(model.label_emb.weight)
    old = source.label_emb.weight[: source.config.num_classes]
    rows = old.mean(dim=0).repeat(classes, 1)
    if source.class_names and model.class_names:
        known = {name: i for i, name in enumerate(source.class_names)}
        for i, name in enumerate(model.class_names):
            rows[i] = old[known[name]] if name in known else rows[i]
    elif classes == len(old):
        rows = old
    return torch.cat([rows, _no_class(source)[None]]) if null else rows


def _no_class(source: UNet | Classifier) -> Tensor:
    """The embedding [E] of "no class", or the mean of the classes' if there is none."""
    assert isinstance(source, UNet) and source.config.num_classes is not None
    weight = source.label_emb.weight
    return weight[-1] if source.config.null_label else weight[: source.config.num_classes].mean(dim=0)
