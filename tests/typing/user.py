"""What a user writes, for pyright in its strict mode; it is never run."""

from __future__ import annotations

import torch
from torch import Tensor

import fastdiff

model = fastdiff.load("fashion-mnist")
classes: int | None = model.config.num_classes
names: tuple[str, ...] = model.class_names
classifier = fastdiff.load("fashion-mnist-classifier", device="cpu", dtype=torch.bfloat16)
labels: int = classifier.config.num_outputs
either = fastdiff.load("runs/a/step-00001000.safetensors", weights="ema", image_size=64, num_heads=4)
side: int = either.config.image_size


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    return x * t.reshape(-1, 1, 1, 1)


images: Tensor = fastdiff.sample(model, 4, classes=9, sampler="dpmpp", steps=20, seed=1, guidance_scale=2.0)
more: Tensor = fastdiff.sample(denoiser, 4, shape=(3, 64, 64), predicts="x0", time="sigma", spacing="karras")
pixels: Tensor = fastdiff.to_uint8(images)
for batch in fastdiff.sample_batches(model, 100, classes=[1] * 100, batch_size=10, progress=False):
    shape: torch.Size = batch.shape
with fastdiff.Sampler(model, sampler="ddim", steps="ddim50", eta=1.0) as sampler:
    again: Tensor = sampler(8, classes=[0, 1, 2, 3, 4, 5, 6, 7])
    parts: list[Tensor] = list(sampler.batches(8, seed=3, progress=False))
latents: Tensor = fastdiff.encode(model, images, classes=9, steps=100)
filled: Tensor = fastdiff.inpaint(
    model, images[0], images[0] > 0, 2, classes=9, sampler="ancestral", repeats=3
)
clean: Tensor = fastdiff.denoise(model, images, 0.5, schedule="annealed", steps=50, seeds=[1, 2, 3, 4])
row: Tensor = fastdiff.interpolate(model, 3, 7, 8, classes=9, steps=100, optimize=False)
large: Tensor = fastdiff.cascade(model, model, 2, upsampler_options={"steps": 10}, precision="bfloat16")
larger: Tensor = fastdiff.upsample(model, images, seed=1, steps=10)
fastdiff.save(model, "model.safetensors")
