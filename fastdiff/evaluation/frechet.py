"""The Fréchet distance and the Inception Score, by torchmetrics, on features that are already computed."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.errors import FastdiffError

_ALONE = {"sync_on_compute": False}  # it has all features: it does not wait for other processes of torchrun
SPLIT = 5000  # samples in a split of the Inception Score, as in ADM's evaluator


class Moments(NamedTuple):
    """Mean [D] and covariance [D,D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


class _AsGiven(nn.Module):
    """Placeholder for torchmetrics' feature network, which has already run."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


class FrechetDistance:
    r"""Fréchet distance between the Gaussians fitted to two sets of features, which are given in batches; float64.

    .. math:: |\mu - \mu_r|^2 + \mathrm{tr}(\Sigma + \Sigma_r - 2 (\Sigma \Sigma_r)^{1/2})

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium".
    """

    _metric: Any = None  # made when the number of features is known

    @property
    def num_features(self) -> int:
        return self._metric.inception.num_features

    def update(self, features: Tensor, *, is_reference: bool = False) -> None:
        """Add features [N,D] to one of the two sets."""
        self._of(features.shape[1]).update(features.double(), real=is_reference)

    def _of(self, num_features: int) -> Any:
        if self._metric is None:
            self._metric = _import("fid").FrechetInceptionDistance(feature=_AsGiven(num_features), **_ALONE)
        if num_features != self.num_features:
            raise FastdiffError(
                f"{self.num_features} features cannot be compared with {num_features}: they are of another network"
            )
        return self._metric

    @property
    def reference(self) -> Moments:
        """Mean and covariance of the reference features so far; the covariance is unbiased, as that of ``np.cov``."""
        metric = self._metric
        n = int(metric.real_features_num_samples)
        if n < 2:
            raise FastdiffError(f"a covariance needs at least 2 images, got {n}")
        mean = metric.real_features_sum / n
        covariance = (metric.real_features_cov_sum - n * torch.outer(mean, mean)) / (n - 1)
        return Moments(mean.numpy(), covariance.numpy())

    @reference.setter
    def reference(self, moments: Moments) -> None:
        mean, covariance = (torch.from_numpy(a.astype(np.float64)) for a in moments)
        metric, n = self._of(len(mean)), 2  # their number cancels out
        metric.real_features_num_samples = torch.tensor(n)
        metric.real_features_sum = n * mean
        metric.real_features_cov_sum = (n - 1) * covariance + n * torch.outer(mean, mean)

    def compute(self) -> float:
        """The distance.

        Raises:
            FastdiffError: fewer than two images on either side.
        """
        metric = self._metric
        for side, n in (
            ("samples", metric.fake_features_num_samples),
            ("reference", metric.real_features_num_samples),
        ):
            if n < 2:
                raise FastdiffError(
                    f"a Fréchet distance needs at least 2 images, and the {side} are {int(n)}"
                )
        return float(metric.compute())


def inception_score(logits: Tensor, *, seed: int = 0) -> float:
    r"""exp E KL(p(y|x) || p(y)), the mean over splits of about 5000 samples; from 1 to K.

    Args:
        logits: [N,K].
        seed: random seed of the order in which samples are split.

    Source: Salimans et al. 2016, "Improved techniques for training GANs".
    """
    splits = max(1, round(len(logits) / SPLIT))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # The warnings are that it keeps the logits, and that a single split has no spread.
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        metric: Any = _import("inception").InceptionScore(
            feature=_AsGiven(logits.shape[1]), splits=splits, **_ALONE
        )
        metric.update(logits.double())
        return float(metric.compute()[0])


def _import(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"torchmetrics.image.{module}")
    # RuntimeError: a torchvision that was built for another torch.
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise FastdiffError(
            f"these metrics need torchmetrics ({reason}); pip install 'fastdiff[evaluate]'"
        ) from None
