"""What a network is made of, as frozen dataclasses: every architectural option of the ADM paper is a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastdiff.errors import FastdiffError

GROUPS = 32  # of every GroupNorm


@dataclass(frozen=True)
class TrunkConfig:
    """What U-Net and classifier share. Field names are guided-diffusion's where it has the option.

    Raises:
        FastdiffError: values that cannot be built, in one sentence.
    """

    image_size: int  # pixels; must halve len(channel_mult) - 1 times
    in_channels: int = 3
    model_channels: int = 128  # width of the first level
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)  # width of each level, as a multiple
    num_res_blocks: int | tuple[int, ...] = 2  # depth: of every level, or one by one
    attention_resolutions: tuple[int, ...] = (32, 16, 8)  # in pixels, as in the published flags
    num_heads: int = 1  # used where num_head_channels is -1
    num_head_channels: int = -1  # channels per head; -1: a fixed number of heads
    num_heads_upsample: int = -1  # heads on the way up; -1: num_heads
    use_scale_shift_norm: bool = True  # AdaGN; False adds the embedding
    resblock_updown: bool = True  # resample inside residual blocks, as BigGAN does
    conv_resample: bool = True  # otherwise: resample with a convolution, or without
    use_new_attention_order: bool = False  # qkv channels [3, H, D]; legacy: [H, 3, D]
    dropout: float = 0.0
    rescale_residual: bool = False  # divide residual sums by sqrt(2)
    use_checkpoint: bool = False  # recompute blocks in the backward pass to save memory

    def __post_init__(self) -> None:
        _positive(self, "image_size", "in_channels", "model_channels")
        if not self.channel_mult:
            raise FastdiffError("channel_mult must name at least one level, for example (1, 2, 4)")
        depth = len(self.channel_mult) - 1
        if self.image_size % 2**depth:
            raise FastdiffError(
                f"image_size {self.image_size} cannot be halved {depth} times, which channel_mult "
                f"{self.channel_mult} asks for; use a multiple of {2**depth}"
            )
        if not 0 <= self.dropout < 1:
            raise FastdiffError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if len(self.blocks_per_level) != len(self.channel_mult) or min(self.blocks_per_level) < 1:
            raise FastdiffError(
                f"num_res_blocks {self.num_res_blocks} must be positive, one number or one for each of the "
                f"{len(self.channel_mult)} levels"
            )
        sizes = [self.image_size >> level for level in range(depth + 1)]
        unknown = [r for r in self.attention_resolutions if r not in sizes]
        if unknown and min(self.attention_resolutions) < min(sizes):
            raise FastdiffError(
                f"attention_resolutions {unknown} are not among the levels' sizes {sizes} pixels"
            )
        for channels in self.level_channels:
            if channels % GROUPS:
                raise FastdiffError(
                    f"{channels} channels (model_channels {self.model_channels} x channel_mult "
                    f"{self.channel_mult}) are not divisible by the norm's {GROUPS} groups"
                )
        for size, channels in zip(sizes, self.level_channels, strict=True):
            if size in self.attention_resolutions or size == sizes[-1]:
                for up in (False, True):
                    self.heads(channels, up=up)

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
        if heads < 1 or channels % heads:
            raise FastdiffError(f"num_heads {heads} does not divide {channels} channels")
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
        if self.num_classes is not None and self.num_classes < 1:
            raise FastdiffError(f"num_classes must be at least 1, or None, got {self.num_classes}")
        if self.null_label and self.num_classes is None:
            raise FastdiffError("null_label needs num_classes")

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


def _positive(config: TrunkConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise FastdiffError(f"{name} must be a whole number of at least 1, got {value!r}")
