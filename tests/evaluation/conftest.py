"""Features of the tiny classifier."""

from __future__ import annotations

import pytest
from tiny_images import tiny_classifier

from fastdiff.evaluation.features import ClassifierFeatures


@pytest.fixture(scope="session")
def features() -> ClassifierFeatures:
    return ClassifierFeatures(tiny_classifier(), "tiny")
