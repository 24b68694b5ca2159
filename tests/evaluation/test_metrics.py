"""All metrics of one comparison: they rank what can be ranked, and say what they cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_images import images, pictures

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.frechet import FrechetDistance, inception_score
from fastdiff.evaluation.manifold import precision_recall
from fastdiff.evaluation.metrics import METRICS, EvaluationOptions, compare
from fastdiff.evaluation.reference import Reference, read_reference, write_reference

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
QUIET = EvaluationOptions(batch_size=7, progress=False)


def _reference(n: int = 40, seed: int = 1) -> Reference:
    return Reference("reference", images=images(n, seed))


def test_every_metric_is_that_of_all_features_at_once(features) -> None:
    ours, theirs = images(30), _reference()
    found = compare(ours, theirs, features, options=QUIET).values
    a, b = features(ours.images), features(theirs.images.images)
    for name, x, y in (("fid", a.pool, b.pool), ("sfid", a.spatial, b.spatial)):
        distance = FrechetDistance()
        distance.update(x)
        distance.update(y, is_reference=True)
        assert found[name] == pytest.approx(distance.compute(), rel=1e-3)
    assert found["is"] == pytest.approx(inception_score(a.logits), rel=1e-5)
    assert (found["precision"], found["recall"]) == precision_recall(a.pool, b.pool)
    assert list(found) == list(METRICS)


def test_alike_is_better_than_unlike(features) -> None:
    theirs = _reference(200)
    like = compare(images(200, 2), theirs, features, options=QUIET).values
    unlike = compare(images(200, 3, brightness=60), theirs, features, options=QUIET).values
    assert like["fid"] < 0.3 * unlike["fid"] and like["sfid"] < 0.5 * unlike["sfid"]
    assert like["precision"] > unlike["precision"] and like["recall"] > unlike["recall"]


def test_batch_size_does_not_matter(features) -> None:
    one, other = (
        compare(images(20), _reference(), features, options=EvaluationOptions(n, progress=False)).values
        for n in (3, 64)
    )
    assert one == pytest.approx(other, rel=1e-3)


def test_statistics_stand_in_for_images(features, tmp_path: Path) -> None:
    """Written and read again they give the same numbers, and nobody looks at the reference's images."""
    whole = compare(images(30), _reference(), features, ["fid"], QUIET, keep=True)
    assert whole.statistics is not None and list(whole.values) == ["fid"]
    write_reference(tmp_path / "reference.npz", whole.statistics)
    stored = read_reference(tmp_path / "reference.npz")
    assert stored.images is None and stored.features == "tiny"
    found = compare(images(30), stored, features, options=QUIET).values
    assert found == pytest.approx(compare(images(30), _reference(), features, options=QUIET).values, rel=1e-6)


def test_adm_reference_batches(features, tmp_path: Path) -> None:
    """arr_0 beside mu, sigma, mu_s, sigma_s of more images: distances by these, precision and recall by arr_0."""
    many = compare(images(30), _reference(200, 4), features, options=QUIET, keep=True).statistics
    assert many is not None and many.fid is not None and many.sfid is not None
    names = dict(
        mu=many.fid.mean, sigma=many.fid.covariance, mu_s=many.sfid.mean, sigma_s=many.sfid.covariance
    )
    np.savez(tmp_path / "batch.npz", arr_0=pictures(40, 1), **names)
    found = compare(images(30), read_reference(tmp_path / "batch.npz"), features, options=QUIET).values
    by_many = compare(images(30), _reference(200, 4), features, options=QUIET).values
    by_few = compare(images(30), _reference(40, 1), features, options=QUIET).values
    expected = {name: (by_few if name in ("precision", "recall") else by_many)[name] for name in METRICS}
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_a_reference_lacks_is_left_out_or_refused(features, tmp_path: Path) -> None:
    kept = compare(images(30), _reference(), features, ["fid"], QUIET, keep=True).statistics
    assert kept is not None and kept.fid is not None
    np.savez(tmp_path / "fid.npz", mu=kept.fid.mean, sigma=kept.fid.covariance)
    bare = read_reference(tmp_path / "fid.npz")
    found = compare(images(60), bare, features, options=QUIET)
    assert list(found.values) == ["fid", "is"]
    assert [w.partition(":")[0] for w in found.warnings] == ["no sFID", "no Precision", "no Recall"]
    with pytest.raises(FastdiffError, match="Recall cannot be computed: .* has neither images nor"):
        compare(images(30), bare, features, ["recall"], QUIET)


def test_inception_score_needs_no_reference(features) -> None:
    assert list(compare(images(9), None, features, ["is"], QUIET).values) == ["is"]
    with pytest.raises(FastdiffError, match="FID cannot be computed: it needs a reference"):
        compare(images(9), None, features, ["fid"], QUIET)


def test_fewer_samples_than_features_are_warned_of(features) -> None:
    found = compare(images(32), _reference(), features, ["fid"], QUIET)
    assert found.warnings[0].startswith("FID of 32 samples in 32 features says more of their number")
    assert not compare(images(33), _reference(), features, ["fid"], QUIET).warnings


def test_mistakes(features) -> None:
    with pytest.raises(FastdiffError, match="unknown metric 'kid'; known: fid, sfid, is, precision, recall"):
        compare(images(9), _reference(), features, ["kid"], QUIET)
    with pytest.raises(FastdiffError, match="statistics of the features of other, not of tiny"):
        compare(images(9), Reference("r", features="other", images=images(9)), features, options=QUIET)
    with pytest.raises(FastdiffError, match="2 images, and the samples are 1"):
        compare(images(1), _reference(), features, ["fid"], QUIET)
    with pytest.raises(FastdiffError, match="batch_size must be at least 1"):
        EvaluationOptions(batch_size=0)
    small = images(9)
    small = type(small)(torch.zeros(9, 1, 4, 4, dtype=torch.uint8), "small")
    with pytest.raises(
        FastdiffError, match="small holds grey images of 4 x 4 pixels; tiny looks at grey images"
    ):
        compare(small, _reference(), features, options=QUIET)


@pytest.mark.parametrize(
    "arrays",
    [{"mu": np.zeros(3)}, {"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, {"mu": np.zeros((3, 1))}],
    ids=["no-covariance", "not-square", "mean-of-two-dimensions"],
)
def test_broken_statistics(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(FastdiffError, match=r"mu must be \[D\] and sigma \[D,D\]"):
        read_reference(tmp_path / "broken.npz")
