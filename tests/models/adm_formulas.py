"""ADM's networks once more, as straight-line functions of a state dict: slow, in the weights' dtype, no kernels.

Written from the papers' formulas and the published parameter layout, sharing no code with fastdiff.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.models import build_model


def random_model(config, dtype: torch.dtype = torch.float64, seed: int = 0, std: float = 0.15):
    """No parameter is zero or one, so that every one of them shows in the output."""
    torch.manual_seed(seed)
    model = build_model(config).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


class Formulas:
    """w: state dict; c: configuration."""

    def __init__(self, model) -> None:
        self.w = dict(model.state_dict())
        self.c = model.config

    def linear(self, key: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{key}.weight"].T + self.w[f"{key}.bias"]

    def conv(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.w[f"{key}.weight"]
        return F.conv2d(x, weight, self.w[f"{key}.bias"], stride, padding=weight.shape[-1] // 2)

    def norm(self, key: str, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), 32, -1)
        mean = grouped.mean(-1, keepdim=True)
        variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
        normal = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        shape = (-1,) + (1,) * (x.dim() - 2)
        return normal * self.w[f"{key}.weight"].view(shape) + self.w[f"{key}.bias"].view(shape)

    def silu(self, x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def sum(self, x: Tensor, h: Tensor) -> Tensor:
        return (x + h) / 2**0.5 if self.c.rescale_residual else x + h

    def down(self, x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def up(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def res(self, key: str, x: Tensor, emb: Tensor, resample=lambda x: x) -> Tensor:
        h = self.silu(self.norm(f"{key}.in_layers.0", x))
        h = self.conv(f"{key}.in_layers.2", resample(h))
        e = self.linear(f"{key}.emb_layers.1", self.silu(emb))[:, :, None, None]
        if self.c.use_scale_shift_norm:
            half = e.shape[1] // 2
            h = self.norm(f"{key}.out_layers.0", h) * (1 + e[:, :half]) + e[:, half:]
        else:
            h = self.norm(f"{key}.out_layers.0", h + e)
        h = self.conv(f"{key}.out_layers.3", self.silu(h))
        x = resample(x)
        if f"{key}.skip_connection.weight" in self.w:
            x = self.conv(f"{key}.skip_connection", x)
        return self.sum(x, h)

    def heads(self, channels: int, up: bool) -> int:
        if self.c.num_head_channels != -1:
            return channels // self.c.num_head_channels
        return self.c.num_heads_upsample if up and self.c.num_heads_upsample != -1 else self.c.num_heads

    def softmax_attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        """[N, 3C, T] -> [N, C, T], one head after another."""
        c = qkv.shape[1] // 3
        d = c // heads
        results = []
        for i in range(heads):
            if new_order:  # all queries, all keys, all values
                q, k, v = (qkv[:, j * c + i * d : j * c + (i + 1) * d] for j in range(3))
            else:  # query, key and value of the first head, then of the second
                q, k, v = qkv[:, 3 * d * i : 3 * d * (i + 1)].split(d, dim=1)
            weight = torch.einsum("nct,ncs->nts", q, k) / math.sqrt(d)
            results.append(torch.einsum("nts,ncs->nct", weight.softmax(-1), v))
        return torch.cat(results, dim=1)

    def attention(self, key: str, x: Tensor, up: bool = False) -> Tensor:
        tokens = self.norm(f"{key}.norm", x.flatten(2))
        qkv = self.w[f"{key}.qkv.weight"][..., 0] @ tokens + self.w[f"{key}.qkv.bias"][:, None]
        a = self.softmax_attention(qkv, self.heads(x.shape[1], up), self.c.use_new_attention_order)
        h = self.w[f"{key}.proj_out.weight"][..., 0] @ a + self.w[f"{key}.proj_out.bias"][:, None]
        return self.sum(x, h.view_as(x))

    def embedding(self, t: Tensor) -> Tensor:
        half = self.c.model_channels // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angle = t[:, None].float() * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.w["time_embed.0.weight"].dtype)
        return self.linear("time_embed.2", self.silu(self.linear("time_embed.0", waves)))

    def way_down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Outputs of all input blocks."""
        outputs, size = [self.conv("input_blocks.0.0", x)], self.c.image_size
        depths = self.c.num_res_blocks
        for level in range(len(self.c.channel_mult)):
            for _ in range(depths if isinstance(depths, int) else depths[level]):
                key = f"input_blocks.{len(outputs)}"
                h = self.res(f"{key}.0", outputs[-1], emb)
                outputs.append(self.attention(f"{key}.1", h) if size in self.c.attention_resolutions else h)
            if level + 1 < len(self.c.channel_mult):
                outputs.append(self.halve(f"input_blocks.{len(outputs)}.0", outputs[-1], emb))
                size //= 2
        return outputs

    def halve(self, key: str, x: Tensor, emb: Tensor) -> Tensor:
        if self.c.resblock_updown:
            return self.res(key, x, emb, self.down)
        return self.conv(f"{key}.op", x, stride=2) if self.c.conv_resample else self.down(x)

    def double(self, key: str, x: Tensor, emb: Tensor) -> Tensor:
        if self.c.resblock_updown:
            return self.res(key, x, emb, self.up)
        return self.conv(f"{key}.conv", self.up(x)) if self.c.conv_resample else self.up(x)

    def middle(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self.attention("middle_block.1", self.res("middle_block.0", h, emb))
        return self.res("middle_block.2", h, emb)

    def unet(self, x: Tensor, t: Tensor, y: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
        emb = self.embedding(t)
        if y is not None:
            emb = emb + self.w["label_emb.weight"][y]
        if low_res is not None:
            enlarged = F.interpolate(low_res, x.shape[2:], mode=self.c.low_res, align_corners=False)
            x = torch.cat([x, enlarged], dim=1)
        skips = self.way_down(x, emb)
        h, i = self.middle(skips[-1], emb), 0
        for level in reversed(range(len(self.c.channel_mult))):
            depths = self.c.num_res_blocks
            blocks = (depths if isinstance(depths, int) else depths[level]) + 1
            for block in range(blocks):
                h = self.res(f"output_blocks.{i}.0", torch.cat([h, skips.pop()], dim=1), emb)
                attends = self.c.image_size // 2**level in self.c.attention_resolutions
                if attends:
                    h = self.attention(f"output_blocks.{i}.1", h, up=True)
                if level > 0 and block == blocks - 1:
                    h = self.double(f"output_blocks.{i}.{2 if attends else 1}", h, emb)
                i += 1
        return self.conv("out.2", self.silu(self.norm("out.0", h)))

    def classifier(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.embedding(t)
        features = self.way_down(x, emb)
        features.append(self.middle(features[-1], emb))
        if self.c.pool.startswith("spatial"):
            h = self.linear("out.0", torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1))
            if self.c.pool == "spatial":
                return self.linear("out.2", h.clamp(min=0))
            return self.linear("out.3", self.silu(self.norm("out.1", h)))
        h = self.silu(self.norm("out.0", features[-1]))
        if self.c.pool == "adaptive":
            return self.conv("out.3", h.mean(dim=(2, 3), keepdim=True)).flatten(1)
        h = h.flatten(2)
        h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + self.w["out.2.positional_embedding"]
        qkv = self.w["out.2.qkv_proj.weight"][..., 0] @ h + self.w["out.2.qkv_proj.bias"][:, None]
        a = self.softmax_attention(qkv, self.heads(h.shape[1], False), new_order=True)
        return a[..., 0] @ self.w["out.2.c_proj.weight"][..., 0].T + self.w["out.2.c_proj.bias"]
