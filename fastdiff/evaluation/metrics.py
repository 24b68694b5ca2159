"""Metrics of samples against a reference, all from one pass over each of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.features import Features
from fastdiff.evaluation.frechet import SPLIT, FrechetDistance, inception_score
from fastdiff.evaluation.images import Images, Shape, describe_shape
from fastdiff.evaluation.manifold import NEIGHBOURS, precision_recall
from fastdiff.evaluation.reference import Reference
from fastdiff.scalars import plain


class Metric(NamedTuple):
    """A metric's title, whether higher or lower is better, its definition and its source."""

    title: str
    better: str
    definition: str
    source: str


METRICS = {
    "fid": Metric(
        "FID", "lower", "Fréchet distance of the Gaussians fitted to pooled features", "Heusel et al. 2017"
    ),
    "sfid": Metric(
        "sFID",
        "lower",
        "the same of spatial features: 7 channels at every position",
        "Nash et al. 2021, as in Dhariwal & Nichol 2021",
    ),
    "is": Metric(
        "Inception Score",
        "higher",
        f"exp E KL(p(y|x) || p(y)), mean over splits of about {SPLIT} samples",
        "Salimans et al. 2016",
    ),
    "precision": Metric(
        "Precision",
        "higher",
        f"share of samples within a reference image's ball of {NEIGHBOURS} neighbours",
        "Kynkäänniemi et al. 2019",
    ),
    "recall": Metric(
        "Recall",
        "higher",
        f"share of reference images within a sample's ball of {NEIGHBOURS} neighbours",
        "Kynkäänniemi et al. 2019",
    ),
}
_FRECHET = ("fid", "sfid")
_MANIFOLD = ("precision", "recall")


@dataclass(frozen=True)
class Comparison:
    """Values by metric, warnings, and the reference as statistics, if requested."""

    values: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    statistics: Reference | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of computing the metrics."""

    batch_size: int = 64  # number of images at a time
    seed: int = 0  # random seed of the Inception Score's splits
    device: torch.device | str = "cpu"  # device for the distances of precision and recall
    progress: bool = True  # show progress bars

    def __post_init__(self) -> None:
        for name in ("batch_size", "seed"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if self.batch_size < 1:
            raise FastdiffError(f"batch_size must be at least 1, got {self.batch_size}")


def compare(
    samples: Images,
    reference: Reference | None,
    features: Features,
    metrics: Sequence[str] | None = None,
    options: EvaluationOptions | None = None,
    *,
    keep: bool = False,
) -> Comparison:
    """Metrics of samples.

    Args:
        reference: the images or statistics to compare with; None if only the Inception Score is requested.
        metrics: names from :data:`METRICS`; None: all that can be computed from the reference.
        keep: also return the reference as statistics of pooled and spatial features.

    Raises:
        FastdiffError: a metric that the reference does not allow, statistics of other features, too few images.
    """
    options = options or EvaluationOptions()
    wanted, warnings = _wanted(metrics, reference)
    _check_images(samples, features)
    if reference is not None:
        check_reference(reference, features, samples.shape)
    distances = {name: FrechetDistance() for name in _FRECHET if name in wanted or keep}
    ours = _gather(samples, features, distances, options, is_reference=False)
    for name, distance in distances.items():
        if name in wanted and len(samples) <= distance.num_features:
            warnings.append(
                f"{METRICS[name].title} of {len(samples)} samples in {distance.num_features} features says more of "
                "their number than of their quality; give more samples than features"
            )
    values: dict[str, float] = {}
    if "is" in wanted:
        values["is"] = inception_score(ours.logits, seed=options.seed)
    kept = None
    if reference is not None:
        stored = {name: reference.moments(name) for name in distances}
        for name, moments in stored.items():
            if moments is not None:
                distances[name].reference = moments
        pool, missing = reference.pool, {n: d for n, d in distances.items() if stored[n] is None}
        if reference.images is not None and (missing or keep or {*_MANIFOLD} & {*wanted}):
            pool = _gather(reference.images, features, missing, options, is_reference=True).pool
        values |= {name: distances[name].compute() for name in distances if name in wanted}
        if pool is not None and {*_MANIFOLD} & {*wanted}:
            sets = (ours.pool.to(options.device), pool.to(options.device))
            values |= zip(_MANIFOLD, precision_recall(*sets, progress=options.progress), strict=True)
        if keep:
            known = {name: distance.reference for name, distance in distances.items()}
            kept = Reference(reference.name, known["fid"], known["sfid"], pool, features=features.name)
    return Comparison({name: values[name] for name in METRICS if name in wanted}, warnings, kept)


class _Gathered(NamedTuple):
    pool: Tensor  # [N,D]
    logits: Tensor  # [N,K]


def _gather(
    images: Images,
    features: Features,
    distances: dict[str, FrechetDistance],
    options: EvaluationOptions,
    *,
    is_reference: bool,
) -> _Gathered:
    """Features of all images. The spatial features, which are not needed again, are accumulated and not kept."""
    pool, logits = [], []
    bar = tqdm(total=len(images), disable=not options.progress, unit="img", desc="features")
    with bar:
        for rows in torch.arange(len(images)).split(options.batch_size):
            found = features(images.fetch(rows))
            for name, distance in distances.items():
                distance.update(
                    found.pool if name == "fid" else found.spatial,
                    is_reference=is_reference,
                )
            pool.append(found.pool)
            logits.append(found.logits)
            bar.update(len(rows))
    return _Gathered(torch.cat(pool), torch.cat(logits))


def check_reference(reference: Reference, features: Features, shape: Shape) -> None:
    """Raise an error now, before the work, if these features cannot be compared with the reference.

    Args:
        shape: shape of the samples.

    Raises:
        FastdiffError: images of another shape, statistics of other features, no torchmetrics.
    """
    if reference.images is not None:
        _check_images(reference.images, features)
    if reference.features not in (None, features.name):
        raise FastdiffError(
            f"{reference.name} has statistics of the features of {reference.features}, not of {features.name}"
        )
    one = features(torch.zeros(1, *shape, dtype=torch.uint8))
    for found, moments in ((one.pool, reference.fid), (one.spatial, reference.sfid)):
        distance = FrechetDistance()
        distance.update(found)
        if moments is not None:
            distance.reference = moments


def _check_images(images: Images, features: Features) -> None:
    if features.shape not in (None, images.shape):
        raise FastdiffError(
            f"{images.name} holds {describe_shape(images.shape)};"
            f" {features.name} looks at {describe_shape(features.shape)}"
        )


def _wanted(metrics: Sequence[str] | None, reference: Reference | None) -> tuple[list[str], list[str]]:
    """The metrics to compute, and a message for each metric that is left out."""
    lacks: dict[str, str] = {}
    for name in METRICS:
        if reference is None:
            lacks |= {} if name == "is" else {name: "it needs a reference; give --reference DATA"}
        elif name in _FRECHET and reference.images is None and reference.moments(name) is None:
            lacks[name] = (
                f"{reference.name} has no {'mu_s and sigma_s' if name == 'sfid' else 'mu and sigma'}"
            )
        elif name in _MANIFOLD and reference.images is None and reference.pool is None:
            lacks[name] = f"{reference.name} has neither images nor their features"
    if metrics is None:
        return [n for n in METRICS if n not in lacks], [f"no {METRICS[n].title}: {lacks[n]}" for n in lacks]
    for name in metrics:
        if name not in METRICS:
            raise FastdiffError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
        if name in lacks:
            raise FastdiffError(f"{METRICS[name].title} cannot be computed: {lacks[name]}")
    return list(metrics), []
