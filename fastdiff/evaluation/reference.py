"""References for samples: images, statistics of their features, or both (ADM's reference batches)."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.choices import Fit
from fastdiff.data.readers.arrays import read_arrays
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.frechet import Moments
from fastdiff.evaluation.images import Images, Shape, read_images
from fastdiff.files import atomic_path


@dataclass(frozen=True)
class Reference:
    """A reference: moments of pooled and spatial features, pooled features [M,D], and images, each if available."""

    name: str
    fid: Moments | None = None
    sfid: Moments | None = None
    pool: Tensor | None = None
    images: Images | None = None
    features: str | None = None  # the feature network of the statistics, if known

    def moments(self, metric: str) -> Moments | None:
        return self.fid if metric == "fid" else self.sfid

    @property
    def has_statistics(self) -> bool:
        return self.fid is not None or self.sfid is not None


def read_reference(
    path: Path,
    shape: Shape | None = None,
    *,
    fit: Fit | None = None,
    why: str = "",
    skip_broken: bool = False,
    progress: bool = False,
) -> Reference:
    """Images, or an .npz with statistics under ADM's names: mu, sigma, mu_s, sigma_s, and with them arr_0 (images).

    :func:`write_reference` adds pool and the features' name. Arguments as in :func:`read_images`.

    Raises:
        FastdiffError: what cannot be read.
    """
    reading: dict[str, Any] = {"fit": fit, "why": why, "skip_broken": skip_broken, "progress": progress}
    statistics = _statistics(path) if path.suffix == ".npz" and zipfile.is_zipfile(path) else {}
    if not statistics:
        return Reference(str(path), images=read_images(path, shape, **reading))
    has_images = bool(statistics.keys() & {"arr_0", "images"})
    pool, features = statistics.get("pool"), statistics.get("features")
    if pool is not None and (pool.ndim != 2 or not _is_finite(pool)):
        raise FastdiffError(f"{path}: pool must be finite numbers [M,D], got {pool.dtype} {list(pool.shape)}")
    return Reference(
        str(path),
        fid=_moments(path, statistics, "mu", "sigma"),
        sfid=_moments(path, statistics, "mu_s", "sigma_s"),
        pool=None if pool is None else torch.from_numpy(pool),
        images=read_images(path, shape, **reading) if has_images and pool is None else None,
        features=None if features is None else str(features),
    )


def write_reference(path: Path, reference: Reference) -> None:
    """Statistics that :func:`read_reference` reads, under the names that ADM's reference batches have.

    Raises:
        FastdiffError: a place that cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for moments, mean, covariance in ((reference.fid, "mu", "sigma"), (reference.sfid, "mu_s", "sigma_s")):
        if moments is not None:
            arrays |= {mean: moments.mean, covariance: moments.covariance}
    if reference.pool is not None:
        arrays["pool"] = reference.pool.numpy()
    if reference.features is not None:
        arrays["features"] = np.array(reference.features)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _statistics(path: Path) -> dict[str, np.ndarray]:
    """The arrays but the images, which are only named; empty if the file holds no statistics."""
    arrays = read_arrays(path, leave_out={"arr_0", "arr_1", "images", "labels"})
    return arrays if {"mu", "mu_s"} & arrays.keys() else {}


def _moments(path: Path, arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Moments | None:
    if mean not in arrays:
        return None
    mu, sigma = arrays[mean], arrays.get(covariance)
    if mu.ndim != 1 or sigma is None or sigma.shape != 2 * mu.shape:
        found = "nothing" if sigma is None else list(sigma.shape)
        raise FastdiffError(
            f"{path}: {mean} must be [D] and {covariance} [D,D], got {list(mu.shape)} and {found}"
        )
    if not _is_finite(mu) or not _is_finite(sigma):
        raise FastdiffError(f"{path}: {mean} and {covariance} must be finite numbers")
    return Moments(mu, sigma)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isfinite(array).all())
