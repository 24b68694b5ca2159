"""Multiply-accumulates and parameters of a network, counted from its configuration: nothing is built or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fastdiff.models.config import ClassifierConfig, ModelConfig, TrunkConfig, UNetConfig

# Forward: a multiplication and a sum for each multiply-accumulate. Backward: two products as large, one for the
# gradient of the input and one for that of the weight. Recomputed activations are not counted.
TRAINING_FLOPS_PER_MAC = 6
_POOL_WIDTH = 2048  # of the classifier's spatial heads


class Layer(NamedTuple):
    """One layer's share: of what kind it is, multiply-accumulates of one image, parameters."""

    kind: str  # "convolution", "linear", "attention", "norm" or "embedding"
    macs: int
    parameters: int


@dataclass(frozen=True)
class Compute:
    """What one image costs in one forward pass, and what the network weighs.

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers and attention's two products. Norms, activations,
            softmax and resampling are not in it: they are bound by memory, not by arithmetic.
        parameters: learned numbers.
        macs_by_kind: the share of each kind of layer.
    """

    macs: int
    parameters: int
    macs_by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def training_flops(self) -> int:
        """Floating-point operations of one image's forward and backward pass: 6 times ``macs``."""
        return TRAINING_FLOPS_PER_MAC * self.macs


def count(config: ModelConfig) -> Compute:
    """The cost of the network that a configuration describes, of one image of ``config.image_size``.

    The method is that of Dhariwal & Nichol 2021, appendix A ("theoretical" throughput), with attention's products
    included.
    """
    layers = list(_classifier(config) if isinstance(config, ClassifierConfig) else _unet(config))
    by_kind: dict[str, int] = {}
    for layer in layers:
        if layer.macs:
            by_kind[layer.kind] = by_kind.get(layer.kind, 0) + layer.macs
    return Compute(sum(x.macs for x in layers), sum(x.parameters for x in layers), by_kind)


def _conv(size: int, channels: int, out_channels: int, kernel: int = 3) -> Layer:
    """On size x size outputs."""
    weights = channels * out_channels * kernel**2
    return Layer("convolution", size**2 * weights, weights + out_channels)


def _linear(features: int, out_features: int) -> Layer:
    weights = features * out_features
    return Layer("linear", weights, weights + out_features)


def _norm(channels: int) -> Layer:
    return Layer("norm", 0, 2 * channels)


def _res_block(config: TrunkConfig, size: int, channels: int, out_channels: int) -> Iterator[Layer]:
    """size: of the output; a block that resamples does so before its first convolution."""
    yield _norm(channels)
    yield _conv(size, channels, out_channels)
    yield _linear(config.embed_channels, out_channels * (2 if config.use_scale_shift_norm else 1))
    yield _norm(out_channels)
    yield _conv(size, out_channels, out_channels)
    if out_channels != channels:
        yield _conv(size, channels, out_channels, kernel=1)


def _attention_block(size: int, channels: int) -> Iterator[Layer]:
    """The products q kᵀ and p v take T² D each for every head, T = size²: together 2 T² C."""
    yield _norm(channels)
    yield _conv(size, channels, 3 * channels, kernel=1)
    yield Layer("attention", 2 * size**4 * channels, 0)
    yield _conv(size, channels, channels, kernel=1)


def _resample(config: TrunkConfig, size: int, channels: int) -> Iterator[Layer]:
    """size: of the output."""
    if config.resblock_updown:
        yield from _res_block(config, size, channels, channels)
    elif config.conv_resample:
        yield _conv(size, channels, channels)


class _Path:
    """A walk down and up a trunk, which remembers the skip connections' widths."""

    def __init__(self, config: TrunkConfig) -> None:
        self.config = config
        self.skips: list[int] = []

    def time_embedding(self) -> Iterator[Layer]:
        yield _linear(self.config.model_channels, self.config.embed_channels)
        yield _linear(self.config.embed_channels, self.config.embed_channels)

    def down(self, in_channels: int) -> Iterator[Layer]:
        config, size = self.config, self.config.image_size
        channels = config.level_channels[0]
        yield _conv(size, in_channels, channels)
        self.skips.append(channels)
        for level, out_channels in enumerate(config.level_channels):
            for _ in range(config.blocks_per_level[level]):
                yield from _res_block(config, size, channels, out_channels)
                channels = out_channels
                if size in config.attention_resolutions:
                    yield from _attention_block(size, channels)
                self.skips.append(channels)
            if level < len(config.level_channels) - 1:
                size //= 2
                yield from _resample(config, size, channels)
                self.skips.append(channels)

    def middle(self) -> Iterator[Layer]:
        config, channels = self.config, self.config.level_channels[-1]
        size = smallest_size(config)
        yield from _res_block(config, size, channels, channels)
        yield from _attention_block(size, channels)
        yield from _res_block(config, size, channels, channels)

    def up(self) -> Iterator[Layer]:
        config, channels = self.config, self.config.level_channels[-1]
        for level in reversed(range(len(config.level_channels))):
            size, out_channels = config.image_size >> level, config.level_channels[level]
            for _ in range(config.blocks_per_level[level] + 1):
                yield from _res_block(config, size, channels + self.skips.pop(), out_channels)
                channels = out_channels
                if size in config.attention_resolutions:
                    yield from _attention_block(size, channels)
            if level:
                yield from _resample(config, 2 * size, channels)


def smallest_size(config: TrunkConfig) -> int:
    """Height and width in pixels on the last level."""
    return config.image_size >> (len(config.channel_mult) - 1)


def _unet(config: UNetConfig) -> Iterator[Layer]:
    path, width = _Path(config), config.level_channels[0]
    yield from path.time_embedding()
    if config.num_classes is not None:
        yield Layer("embedding", 0, (config.num_classes + config.null_label) * config.embed_channels)
    yield from path.down(config.in_channels * (1 if config.low_res is None else 2))
    yield from path.middle()
    yield from path.up()
    yield _norm(width)
    yield _conv(config.image_size, width, config.out_channels * (2 if config.learn_sigma else 1))


def _classifier(config: ClassifierConfig) -> Iterator[Layer]:
    path = _Path(config)
    yield from path.time_embedding()
    yield from path.down(config.in_channels)
    yield from path.middle()
    yield from _head(config, sum(path.skips) + config.level_channels[-1])


def _head(config: ClassifierConfig, features: int) -> Iterator[Layer]:
    """features: channels of all blocks' outputs together, which the spatial heads see."""
    channels = config.level_channels[-1]
    if config.pool.startswith("spatial"):
        yield _linear(features, _POOL_WIDTH)
        if config.pool == "spatial_v2":
            yield _norm(_POOL_WIDTH)
        yield _linear(_POOL_WIDTH, config.num_outputs)
        return
    yield _norm(channels)
    if config.pool == "adaptive":
        yield _conv(1, channels, config.num_outputs, kernel=1)
        return
    tokens = smallest_size(config) ** 2 + 1  # the mean and every position
    yield Layer("embedding", 0, channels * tokens)
    qkv = _linear(channels, 3 * channels)
    yield Layer("convolution", tokens * qkv.macs, qkv.parameters)
    yield Layer("attention", 2 * tokens * channels, 0)  # only the mean asks
    yield _linear(channels, config.num_outputs)
