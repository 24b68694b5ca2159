"""Evaluation: FID, sFID, Inception Score, precision and recall of samples; bits per dimension of a model."""

from fastdiff.evaluation.features import load_features as load_features
from fastdiff.evaluation.images import Images as Images
from fastdiff.evaluation.images import read_images as read_images
from fastdiff.evaluation.likelihood import image_nll as image_nll
from fastdiff.evaluation.metrics import Comparison as Comparison
from fastdiff.evaluation.metrics import compare as compare
from fastdiff.evaluation.reference import Reference as Reference
from fastdiff.evaluation.reference import read_reference as read_reference
