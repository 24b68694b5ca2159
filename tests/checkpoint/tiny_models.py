"""The tiny networks as checkpoints have them: of gray images."""

from __future__ import annotations

from dataclasses import replace

import tiny

TINY = replace(tiny.UNET, in_channels=1, out_channels=1, num_classes=3)
TINY_CLASSIFIER = replace(tiny.CLASSIFIER, in_channels=1, num_outputs=3)
build = tiny.build
