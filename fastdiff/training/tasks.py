"""Tasks: the loss of a denoiser, an upsampler or a classifier of noisy images, which a training step minimises.

Also validation: the loss on held-out images, and a picture of samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastdiff.choices import Loss
from fastdiff.data.images import ImageData
from fastdiff.diffusion.loss import check_loss, check_weighting, training_losses
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.images import grid
from fastdiff.models import Classifier, ClassifierConfig, UNet, UNetConfig
from fastdiff.sampling.api import sample, to_uint8
from fastdiff.sampling.cascade import upsample
from fastdiff.training.batches import Batch, Batches
from fastdiff.training.config import TrainConfig
from fastdiff.training.distributed import Processes
from fastdiff.training.optimizer import autocast
from fastdiff.training.timesteps import TimeSampler

HELD = 8  # images that an upsampler's picture shows
_ROWS, _COLUMNS = 4, 10  # of a denoiser's picture; half as many of images larger than _SMALL pixels
_SMALL = 64
UPSCALING = 4  # of both released upsamplers, 64 to 256 and 128 to 512

Network = Callable[..., Tensor]


class Task(Protocol):
    """A kind of training.

    Attributes:
        measures: names of the measures of each image; the first is the loss.
        num_classes: number of classes of the labels; None: no labels are needed.
        null_class: the label that replaces dropped ones; None: no label is dropped.
    """

    measures: tuple[str, ...]
    num_classes: int | None
    null_class: int | None

    def losses(self, model: Network, batch: Batch) -> Tensor:
        """The measures of each image, [N, len(measures)]; gradients flow through the first."""
        ...

    def picture(self, model: UNet | Classifier, held: Tensor, labels: Tensor | None) -> Image.Image | None:
        """A picture of what the model has learned so far; None for a task that makes no images."""
        ...


class Denoising:
    """x_t -> what a model of the process predicts: see :func:`fastdiff.diffusion.loss.training_losses`."""

    def __init__(self, config: TrainConfig, diffusion: Process, model: UNetConfig) -> None:
        check_loss(diffusion, config.loss)
        check_weighting(config.loss, config.weighting)
        self._diffusion, self._weighting = diffusion, config.weighting
        self._loss: Loss = config.loss
        self._at_once = config.microbatch or config.batch_size
        self.num_classes: int | None = model.num_classes
        self.null_class: int | None = model.null_class
        parts = diffusion.config.learns_variance and "kl" not in config.loss
        self.measures: tuple[str, ...] = ("loss", "mse", "vb") if parts else ("loss",)

    def losses(self, model: Network, batch: Batch) -> Tensor:
        found = training_losses(
            self._diffusion,
            model,
            batch.x0,
            batch.t,
            noise=batch.noise,
            loss=self._loss,
            weighting=self._weighting,
            **self._condition(batch),
        )
        return torch.stack([found[name] for name in self.measures], dim=1)

    def _condition(self, batch: Batch) -> dict[str, Tensor]:
        return {} if batch.y is None else {"y": batch.y}

    def picture(self, model: UNet | Classifier, held: Tensor, labels: Tensor | None) -> Image.Image | None:
        assert isinstance(model, UNet)
        return _samples(model, self._at_once)


class Upsampling(Denoising):
    """As :class:`Denoising`, conditioned on x_0 reduced to ``small_size`` by area averaging.

    With ``low_res_noise`` s, the reduced image has u s z added to it: u ~ U(0, 1) for each image, z ~ N(0, 1) for each
    pixel. The samples of another model, which a cascade enlarges, are no more perfect than these.

    Source: Dhariwal & Nichol 2021, section 6.3; the reduction is the one of guided-diffusion's super_res_train. Ho et
    al. 2021, "Cascaded diffusion models for high fidelity image generation", section 4.2, whose model is told the
    deviation; this one is not.
    """

    def __init__(self, config: TrainConfig, diffusion: Process, model: UNetConfig, small_size: int) -> None:
        super().__init__(config, diffusion, model)
        self._small_size, self._low_res_noise = small_size, config.low_res_noise

    def reduce(self, x0: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,small_size,small_size]."""
        return F.interpolate(x0, size=(self._small_size, self._small_size), mode="area")

    def _condition(self, batch: Batch) -> dict[str, Tensor]:
        small = self.reduce(batch.x0)
        if self._low_res_noise:
            small = small + self._low_res_noise * batch.low_res_noise(small.shape[1:])
        return {"low_res": small, **super()._condition(batch)}

    def picture(self, model: UNet | Classifier, held: Tensor, labels: Tensor | None) -> Image.Image | None:
        assert isinstance(model, UNet)
        return _enlarged(model, held, self.reduce(held), labels)


class Classification:
    """x_t, t -> class, by cross entropy: the classifier that guides sampling.

    The measures are the loss and the top-1 and top-5 accuracy.
    Without noise (``config.noised``) it sees x_0 at time 0.

    Source: Dhariwal & Nichol 2021, section 4.
    """

    def __init__(self, config: TrainConfig, model: ClassifierConfig, diffusion: Process) -> None:
        if config.loss != "mse":
            raise FastdiffError(
                f"a classifier is trained by cross entropy, not {config.loss!r}; leave out --loss"
            )
        if config.loss_weighting != "none":
            raise FastdiffError(
                "a classifier has no squared error to weight by time; leave out --loss-weighting"
            )
        if not config.noised and config.timesteps != "uniform":
            raise FastdiffError("without noise there is only one time; leave out --timesteps")
        self._diffusion, self._noised = diffusion, config.noised
        self.num_classes: int | None = model.num_outputs
        self.null_class: int | None = None
        self._best = tuple(k for k in (1, 5) if k <= model.num_outputs)
        self.measures: tuple[str, ...] = ("loss", *(f"acc@{k}" for k in self._best))

    def losses(self, model: Network, batch: Batch) -> Tensor:
        assert batch.y is not None
        x, t = batch.x0, torch.zeros_like(batch.t)
        if self._noised:
            x, t = self._diffusion.q_sample(batch.x0, batch.t, batch.noise), batch.t
        logits = model(x, self._diffusion.model_time(t)).float()
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        best = logits.detach().topk(self._best[-1], dim=1).indices == batch.y[:, None]  # [N, k]
        return torch.stack([loss, *(best[:, :k].any(dim=1).float() for k in self._best)], dim=1)

    def picture(self, model: UNet | Classifier, held: Tensor, labels: Tensor | None) -> Image.Image | None:
        return None


def _samples(model: UNet, at_once: int) -> Image.Image:
    """A grid of samples, always from the same noise: each class in a column, under its name.

    Of more classes than there are columns it has some, spread evenly and always the same.

    Args:
        at_once: number of images that are sampled at a time.
    """
    count, names = model.config.num_classes, model.class_names
    small = model.config.image_size <= _SMALL
    rows = _ROWS if small else _ROWS // 2
    columns = _COLUMNS if small else _COLUMNS // 2
    classes, captions = None, None
    if count is not None:
        columns = min(count, columns)
        chosen = [round(i * (count - 1) / max(columns - 1, 1)) for i in range(columns)] * rows
        classes = torch.tensor(chosen)
        captions = [names[number] if names else str(number) for number in chosen]
    images = sample(model, rows * columns, classes=classes, batch_size=at_once, progress=False)
    return grid(to_uint8(images).cpu().numpy(), captions, columns=columns, tile=64)


def _enlarged(model: UNet, originals: Tensor, small: Tensor, labels: Tensor | None) -> Image.Image:
    """A picture of three rows: the small images, the images enlarged by the model, and the originals.

    Args:
        model: an upsampler.
        originals: [N,C,H,W] in [-1, 1].
        small: the same images, reduced.
        labels: their classes.
    """
    made = upsample(model, small, classes=labels, progress=False)
    squares = torch.nn.functional.interpolate(small, size=originals.shape[2:], mode="nearest")
    rows = [to_uint8(images).cpu().numpy() for images in (squares, made, originals)]
    return grid(np.concatenate(rows), columns=len(originals), tile=64)


class Validation:
    """Validation: the task's measures on fixed batches, with the same images, noise and times every time.

    Args:
        config: settings of the run; no image is mirrored and no label dropped.
        task: the task to measure.
        data: the validation images.
        times: distribution of the diffusion times.
        processes: the processes that share the work.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        data: ImageData,
        times: TimeSampler,
        processes: Processes,
    ) -> None:
        self._config, self._task, self._processes, self.data = config, task, processes, data
        rows = processes.rows(config.batch_size)
        self._batches = Batches(
            data, replace(config, flip=False, flip_vertical=False), null_class=None, rows=rows
        )
        self._times = times

    @torch.no_grad()
    def measure(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Means of the measures, under the names val_<name>."""
        count, means = self._config.val_batches, torch.zeros(len(self._task.measures), device=device)
        # Workers that decode images are ended until the next validation.
        with autocast(device, self._config.precision), contextlib.closing(self._batches):
            for step in range(count):
                batch = self._batches.draw(step, self._times).to(device)
                means += self._task.losses(model, batch).mean(dim=0) / count
        values = self._processes.mean(means).tolist()
        return {f"val_{name}": value for name, value in zip(self._task.measures, values, strict=True)}
