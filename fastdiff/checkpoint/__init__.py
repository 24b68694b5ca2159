"""Checkpoints: models with their configuration in one file, and released ones recognised by their weights."""

from fastdiff.checkpoint.load import bundled as bundled
from fastdiff.checkpoint.load import load as load
from fastdiff.checkpoint.save import save as save
