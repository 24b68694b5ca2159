"""FID during training: samples of the averaged model against held-out images."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastdiff.data.images import ImageData
from fastdiff.data.loading import ImageLoader
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.features import load_features
from fastdiff.evaluation.frechet import FrechetDistance, Moments
from fastdiff.evaluation.images import Images
from fastdiff.evaluation.metrics import check_reference
from fastdiff.evaluation.reference import Reference
from fastdiff.models import ClassifierConfig, ModelConfig, UNet
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.api import sample_batches, to_uint8
from fastdiff.training.config import TrainConfig
from fastdiff.training.distributed import Processes

_LOG = logging.getLogger(__name__)


class HeldOutFid:
    """The FID of ``config.fid_samples`` samples, always from the same noise, against all validation images.

    Their classes are those of validation images, evenly spread, so that both have the same share of each. The processes
    of a run share the samples and the images; the images' statistics are computed once.

    Args:
        data: the validation images, of the model's size; None: there are none.
        device: device of this process.

    Raises:
        FastdiffError: no validation images, a model that makes no images from noise alone, features that do not look at
            such images, or a package that is missing.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        data: ImageData | None,
        processes: Processes,
        device: torch.device,
    ) -> None:
        if data is None:
            raise FastdiffError(
                "an FID compares samples with held-out images; give --val-data with --fid-every"
            )
        if isinstance(model, ClassifierConfig) or model.low_res is not None:
            raise FastdiffError("only a denoiser has an FID during training; leave out --fid-every")
        self._config, self._data, self._processes, self._device = config, data, processes, device
        self._features = load_features(
            config.fid_features, inception_weights=config.inception_weights, device=device
        )
        shape = (model.in_channels, model.image_size, model.image_size)
        images = Images(data.images, str(config.val_data))
        check_reference(Reference(images.name, images=images), self._features, shape)
        self._reference: Moments | None = None

    def measure(self, model: UNet) -> float | None:
        """The FID of a model; on other processes than the first, None."""
        if self._reference is None:
            images = self._features_of(len(self._data), self._held)
            reference = FrechetDistance()
            reference.update(images, is_reference=True)
            self._reference = reference.reference
            self._warn(*images.shape)
        samples = self._features_of(self._config.fid_samples, functools.partial(self._sampled, model))
        if not self._processes.first:
            return None
        distance = FrechetDistance()
        distance.reference = self._reference
        distance.update(samples)
        return distance.compute()

    def _features_of(self, n: int, batches: Callable[[Tensor], Iterator[Tensor]]) -> Tensor:
        """Pooled features [n,D] of the images, in batches, of rows [k] int64 of 0, ..., n - 1."""
        share = -(-n // self._processes.count)  # of every process alike: what is beyond n is dropped
        first = self._processes.rank * share
        rows = torch.arange(first, first + share).clamp(max=n - 1)
        features = torch.cat([self._features(images).pool for images in batches(rows)])
        return self._processes.gather(features.to(self._device)).cpu()[:n]

    def _held(self, rows: Tensor) -> Iterator[Tensor]:
        parts = rows.split(self._batch_size)
        loader = ImageLoader(self._data, lambda part: parts[min(part, len(parts) - 1)], self._config.workers)
        with contextlib.closing(loader):
            yield from (loader.images(part) for part in range(len(parts)))

    def _sampled(self, model: UNet, rows: Tensor) -> Iterator[Tensor]:
        classes = None
        if self._data.labels is not None:
            spread = torch.linspace(0, len(self._data) - 1, self._config.fid_samples).round().long()
            classes = self._data.labels[spread[rows]]
        batches = sample_batches(
            model,
            len(rows),
            seeds=sample_seeds(self._config.fid_samples, self._config.seed)[rows],
            classes=classes,
            batch_size=self._batch_size,
            progress=False,
        )
        yield from (to_uint8(images).movedim(-1, 1).cpu() for images in batches)

    @property
    def _batch_size(self) -> int:
        return self._config.microbatch or max(1, self._config.batch_size // self._processes.count)

    def _warn(self, images: int, features: int) -> None:
        fewest = min(images, self._config.fid_samples)
        if fewest <= features and self._processes.first:
            _LOG.warning(
                "FID by %d images in %d features says more of their number than of their quality: compare it within "
                "this run only",
                fewest,
                features,
            )
