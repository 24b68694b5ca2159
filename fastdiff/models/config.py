"""Configurations of networks, as frozen dataclasses: every architectural option of the ADM paper is a field."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from fastdiff.choices import Recompute
from fastdiff.errors import FastdiffError

GROUPS = 32  # of every GroupNorm
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)


@dataclass(frozen=True)
class TrunkConfig:
    """Options that U-Net and classifier share. Field names are guided-diffusion's where it has the option.

    Raises:
        FastdiffError: values from which no network can be built.
    """

    image_size: int  # pixels; must halve len(channel_mult) - 1 times
    in_channels: int = 3
    model_channels: int = 128  # width of the first level
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)  # width of each level, as a multiple
    num_res_blocks: int | tuple[int, ...] = 2  # depth: of every level, or one by one
    # In pixels; sizes that no level has are ignored.
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 1  # used where num_head_channels is -1
    num_head_channels: int = -1  # channels per head; -1: a fixed number of heads
    num_heads_upsample: int = -1  # heads on the way up; -1: num_heads
    use_scale_shift_norm: bool = True  # AdaGN; False adds the embedding
    resblock_updown: bool = True  # resample inside residual blocks, as BigGAN does
    conv_resample: bool = True  # otherwise: resample with a convolution, or without
    use_new_attention_order: bool = False  # qkv channels [3, H, D]; legacy: [H, 3, D]
    dropout: float = 0.0
    rescale_residual: bool = False  # divide residual sums by sqrt(2)
    # True: the model starts with recompute = "full", as with guided-diffusion's flag.
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        _positive(self, "image_size", "in_channels", "model_channels")
        _check_switches(self)
        _numbers(self, "channel_mult", float, "positive numbers, one for each level, for example (1, 2, 4)")
        _numbers(self, "attention_resolutions", int, "sizes in pixels, for example (32, 16, 8), or ()")
        if not _is_number(self.num_res_blocks, int):
            _numbers(self, "num_res_blocks", int, "a whole number of at least 1, or one for each level")
        if not self.channel_mult:
            raise FastdiffError("channel_mult must name at least one level, for example (1, 2, 4)")
        self._check_levels()
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise FastdiffError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        self._check_heads()

    def _check_levels(self) -> None:
        depth = len(self.channel_mult) - 1
        if self.image_size % 2**depth:
            raise FastdiffError(
                f"image_size {self.image_size} cannot be halved {depth} times, which channel_mult "
                f"{self.channel_mult} asks for; use a multiple of {2**depth}"
            )
        if len(self.blocks_per_level) != len(self.channel_mult) or min(self.blocks_per_level) < 1:
            raise FastdiffError(
                f"num_res_blocks {self.num_res_blocks} must be positive, one number or one for each of the "
                f"{len(self.channel_mult)} levels"
            )
        for channels in self.level_channels:
            if channels % GROUPS or channels == 0:
                raise FastdiffError(
                    f"{channels} channels (model_channels {self.model_channels} x channel_mult "
                    f"{self.channel_mult}) are not divisible by the norm's {GROUPS} groups"
                )

    def _check_heads(self) -> None:
        _positive(self, "num_heads")
        for name in ("num_head_channels", "num_heads_upsample"):
            if getattr(self, name) != -1:
                _positive(self, name, otherwise="-1")
        last = len(self.channel_mult) - 1
        for level, channels in enumerate(self.level_channels):
            attends = self.image_size >> level in self.attention_resolutions
            if attends or level == last:  # the middle block always attends
                self.heads(channels)
            if attends:
                self.heads(channels, up=True)

    @property
    def blocks_per_level(self) -> tuple[int, ...]:
        """num_res_blocks of each level."""
        n = self.num_res_blocks
        return (n,) * len(self.channel_mult) if isinstance(n, int) else tuple(n)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(int(m * self.model_channels) for m in self.channel_mult)

    @property
    def embed_channels(self) -> int:
        """Width E of the time embedding."""
        return 4 * self.model_channels

    def heads(self, channels: int, *, up: bool = False) -> int:
        """Number of attention heads at a width.

        Raises:
            FastdiffError: the width does not divide.
        """
        if self.num_head_channels > 0:
            if channels % self.num_head_channels:
                raise FastdiffError(
                    f"num_head_channels {self.num_head_channels} does not divide {channels} channels"
                )
            return channels // self.num_head_channels
        heads = self.num_heads_upsample if up and self.num_heads_upsample > 0 else self.num_heads
        if channels % heads:
            name = "num_heads_upsample" if up and self.num_heads_upsample > 0 else "num_heads"
            raise FastdiffError(f"{name} {heads} does not divide {channels} channels")
        return heads


@dataclass(frozen=True)
class UNetConfig(TrunkConfig):
    """An ADM U-Net, with or without a low-resolution image to start from (``low_res``)."""

    out_channels: int = 3  # of the prediction alone; learn_sigma doubles what the network returns
    learn_sigma: bool = False  # the network also returns variances
    num_classes: int | None = None  # class-conditional if given
    null_label: bool = False  # one label more, "no class", for classifier-free guidance
    low_res: Literal["bilinear", "bicubic"] | None = None  # super-resolution: how the small image is enlarged

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "out_channels")
        if self.num_classes is not None:
            _positive(self, "num_classes", otherwise="None")
        if self.null_label and self.num_classes is None:
            raise FastdiffError("null_label needs num_classes")
        if self.low_res not in (None, "bilinear", "bicubic"):
            raise FastdiffError(f"low_res must be 'bilinear', 'bicubic' or None, got {self.low_res!r}")

    @property
    def null_class(self) -> int | None:
        """The label that means "no class", or None if the model has none."""
        return self.num_classes if self.null_label else None


@dataclass(frozen=True)
class ClassifierConfig(TrunkConfig):
    """The noisy-image classifier of classifier guidance: the U-Net's way down, then a pooling head."""

    num_outputs: int = 1000  # logits
    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "num_outputs")
        if self.pool not in ("adaptive", "attention", "spatial", "spatial_v2"):
            raise FastdiffError(
                f"pool must be 'adaptive', 'attention', 'spatial' or 'spatial_v2', got {self.pool!r}"
            )


ModelConfig = UNetConfig | ClassifierConfig


def _is_number(value: object, kind: type = float) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def _check_switches(config: TrunkConfig) -> None:
    """Raise FastdiffError unless every boolean field is a bool: the text "False" would count as true."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise FastdiffError(f"{field.name} must be True or False, got {value!r}")


def _positive(config: TrunkConfig, *names: str, otherwise: str = "") -> None:
    for name in names:
        value = getattr(config, name)
        if not _is_number(value, int) or value < 1:
            accepted = f"a whole number of at least 1{', or ' + otherwise if otherwise else ''}"
            raise FastdiffError(f"{name} must be {accepted}, got {value!r}")


def _numbers(config: TrunkConfig, name: str, kind: type, accepted: str) -> None:
    """Raise unless the field is a tuple of positive numbers. A list becomes one, so that equality holds."""
    value = getattr(config, name)
    if isinstance(value, list):
        value = tuple(value)
        object.__setattr__(config, name, value)
    if not isinstance(value, tuple) or not all(_is_number(v, kind) and v > 0 for v in value):
        raise FastdiffError(f"{name} must be {accepted}, got {value!r}")
