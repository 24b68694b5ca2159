"""Files that a reader skips: counted by kind, or refused, so that no file is skipped silently."""

from __future__ import annotations

import logging
import os
from collections import Counter

from fastdiff.errors import FastdiffError

_LOG = logging.getLogger(__name__)
ADVICE = "--skip-broken leaves it out, and fastdiff data check finds all such"


class LeftOut:
    """Counts of skipped files that are no images, and of images that cannot be read.

    Args:
        skip_broken: skip and list images that cannot be read, instead of raising.

    Attributes:
        kinds: number of skipped files of each kind: ".txt", "FIFO", ...
        broken: one sentence for each image that could not be read.
    """

    def __init__(self, skip_broken: bool = False) -> None:
        self.skip_broken = skip_broken
        self.kinds: Counter[str] = Counter()
        self.broken: list[str] = []

    def count(self, kind: str) -> None:
        """Count one skipped file of a kind that is no image."""
        self.kinds[kind] += 1

    def count_file(self, name: str) -> None:
        """Count one skipped file that is no image, by its extension."""
        self.count(os.path.splitext(name)[1].lower() or "without an extension")

    def refuse(self, sentence: str) -> None:
        """Record an image, or a file with images, that cannot be read.

        Raises:
            FastdiffError: unless such files are to be skipped.
        """
        if not self.skip_broken:
            raise FastdiffError(f"{sentence}; {ADVICE}")
        self.broken.append(sentence)

    def report(self, source: str) -> None:
        """Log the skipped files, once for all processes of a run."""
        if os.environ.get("RANK", "0") != "0":
            return
        if self.kinds:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
            _LOG.warning("%s: left out %s", source, counts)
        if self.broken:
            _LOG.warning("%s: left out %d that cannot be read:", source, len(self.broken))
            for sentence in self.broken:
                _LOG.warning("  %s", sentence)
