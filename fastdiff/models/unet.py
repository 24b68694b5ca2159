"""ADM's U-Net."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.choices import Recompute
from fastdiff.errors import FastdiffError
from fastdiff.models import trunk
from fastdiff.models.classifier import Classifier
from fastdiff.models.config import ClassifierConfig, ModelConfig, UNetConfig
from fastdiff.nn import Conv2d, Embedding, GroupNormSiLU, zero_module


class UNet(nn.Module):
    """The denoiser of Dhariwal & Nichol 2021, section 3: x_t, t and class in, prediction out.

    Parameter names and shapes are guided-diffusion's ``UNetModel``'s, so its checkpoints load as they are.
    In eval mode the result depends on each image alone. Layout and dtype of x are kept throughout.

    Args:
        config: see :class:`UNetConfig`.
    """

    diffusion: Any = None  # the DiffusionConfig it was trained with
    class_names: tuple[str, ...] = ()

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "full" if config.use_checkpoint else "none"  # trunk.run_block
        self._image_channels = config.in_channels * (1 if config.low_res is None else 2)
        self.time_embed = trunk.time_embed(config)
        if config.num_classes is not None:
            self.label_emb = Embedding(config.num_classes + config.null_label, config.embed_channels)
        self.input_blocks, skips = trunk.down_path(config, self._image_channels)
        self.middle_block = trunk.middle(config)
        self.output_blocks = trunk.up_path(config, skips)
        width = config.level_channels[0]
        out_channels = config.out_channels * (2 if config.learn_sigma else 1)
        self.out = nn.Sequential(
            GroupNormSiLU(width), nn.Identity(), zero_module(Conv2d(width, out_channels))
        )

    @property
    def null_class(self) -> int | None:
        """The label that means "no class", or None if the model has none."""
        return self.config.null_class

    @property
    def dtype(self) -> torch.dtype:
        """Data type in which the convolutions of the trunk compute."""
        return trunk.compute_dtype(self.middle_block)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], timesteps [N], labels y [N] -> [N, out_channels (x 2), H, W] in x's dtype.

        Raises:
            FastdiffError: shapes or labels that do not fit.
        """
        return self.denoise(x, self.embed(timesteps, y))

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """timesteps [N], labels y [N] -> embedding [N, E]. A sampler embeds all its steps at once."""
        emb = trunk.embed_time(self.config, self.time_embed, timesteps)
        return (
            emb
            if self.config.num_classes is None and y is None
            else emb + self._label_embedding(y, emb.shape[0])
        )

    def denoise(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> prediction [N, out_channels (x 2), H, W]."""
        trunk.check_image(self.config, x, self._image_channels, emb)
        h, skips = x.type(self.dtype), []
        for block in self.input_blocks:
            h = self._run(block, h, emb)
            skips.append(h)
        h = self._run(self.middle_block, h, emb)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb)
        h = h.type(next(self.out.parameters()).dtype)
        # This is a norm and a convolution: recomputing both, as "full" does, would save no more.
        recompute = "none" if self.recompute == "none" else "selective"
        return trunk.run_block(self.out, h, recompute=recompute).type(x.dtype)

    def train(self, mode: bool = True) -> UNet:
        """As for every module; warns if ``mode`` is True and all weights are frozen."""
        if mode:
            trunk.warn_if_frozen(self)
        return super().train(mode)

    def half_trunk(self, dtype: torch.dtype = torch.float16) -> UNet:
        """Cast the trunk's convolutions to ``dtype``, as guided-diffusion's ``convert_to_fp16`` does.

        Norms, linear layers, embeddings and the output layer stay float32; images stay float32 outside.
        """
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        trunk.halve_convolutions(blocks, dtype)
        return self

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        return trunk.run_block(block, h, emb, recompute=self.recompute)

    def _label_embedding(self, y: Tensor | None, n: int) -> Tensor:
        if self.config.num_classes is None:
            raise FastdiffError("this model is not class-conditional; leave out y")
        if y is None:
            raise FastdiffError(
                f"this model is class-conditional; give labels y [N] in 0..{self._last_label}"
            )
        if not isinstance(y, Tensor) or y.shape != (n,):
            raise FastdiffError(
                f"y must be a tensor of shape [{n}], one label for each timestep, got {trunk.given(y)}"
            )
        if y.dtype not in (torch.int64, torch.int32):
            raise FastdiffError(f"y must hold class numbers, int64 or int32, got {y.dtype}")
        # On another device, reading the values would stall the queue; there the embedding itself checks them.
        known = y.device.type == "cpu" and not torch.compiler.is_compiling() and len(y) > 0
        if known and not (int(y.min()) >= 0 and int(y.max()) <= self._last_label):
            raise FastdiffError(f"labels must lie in 0..{self._last_label}, got {y.tolist()}")
        return self.label_emb(y)

    @property
    def _last_label(self) -> int:
        return len(self.label_emb.weight) - 1


class SuperResUNet(UNet):
    """A U-Net that also sees a smaller image: enlarged to x's size and stacked under its channels.

    The first convolution takes 2 x ``in_channels``, as guided-diffusion's ``SuperResModel``'s does.
    """

    def __init__(self, config: UNetConfig) -> None:
        if config.low_res is None:
            raise FastdiffError(
                "a super-resolution U-Net needs low_res='bilinear' or 'bicubic' in its config"
            )
        super().__init__(config)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """x [N, C, H, W], timesteps [N], low_res [N, C, h, w], labels y [N] -> [N, out_channels (x 2), H, W]."""
        return self.denoise(torch.cat([x, self.enlarge(low_res, x)], dim=1), self.embed(timesteps, y))

    def enlarge(self, low_res: Tensor | None, x: Tensor) -> Tensor:
        """low_res at x's size; no antialiasing, corners not aligned. A sampler calls it once."""
        channels = self.config.in_channels
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != channels:
            raise FastdiffError(f"x must be a tensor of shape [N, {channels}, H, W], got {trunk.given(x)}")
        shape = (x.shape[0], channels)
        if not isinstance(low_res, Tensor) or low_res.dim() != 4 or low_res.shape[:2] != shape:
            raise FastdiffError(
                f"this model enlarges images; give low_res [{shape[0]}, {shape[1]}, h, w], got {trunk.given(low_res)}"
            )
        if not x.is_floating_point() or not low_res.is_floating_point():
            raise FastdiffError(
                f"x and low_res must be floating-point, pixels scaled to [-1, 1], got {x.dtype} and {low_res.dtype}"
            )
        mode = self.config.low_res or "bilinear"
        return F.interpolate(low_res, size=x.shape[2:], mode=mode, align_corners=False)


def build_model(config: ModelConfig) -> UNet | Classifier:
    """A network with fresh weights: :class:`Classifier`, :class:`SuperResUNet` or :class:`UNet`."""
    if isinstance(config, ClassifierConfig):
        return Classifier(config)
    return UNet(config) if config.low_res is None else SuperResUNet(config)
