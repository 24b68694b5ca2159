"""What a reader passes over: counted by kind, or refused, so that nothing is left out without a word."""

from __future__ import annotations

import logging
import os
from collections import Counter

from fastdiff.errors import FastdiffError

_LOG = logging.getLogger(__name__)


class LeftOut:
    """Counts of what is no image, and what cannot be read.

    Args:
        skip_broken: leave out what cannot be read, and list it, instead of raising.

    Attributes:
        kinds: how many of each kind were passed over: ".txt", "FIFO", ...
        broken: a sentence for each thing that could not be read.
    """

    def __init__(self, skip_broken: bool = False) -> None:
        self.skip_broken = skip_broken
        self.kinds: Counter[str] = Counter()
        self.broken: list[str] = []

    def count(self, kind: str) -> None:
        """One more of a kind that is no image."""
        self.kinds[kind] += 1

    def count_file(self, name: str) -> None:
        """One more file that is no image, by its extension."""
        self.count(os.path.splitext(name)[1].lower() or "without an extension")

    def refuse(self, sentence: str) -> None:
        """Something that should be an image, or hold some, and cannot be read.

        Raises:
            FastdiffError: unless such things are to be skipped.
        """
        if not self.skip_broken:
            raise FastdiffError(f"{sentence}; --skip-broken leaves it out")
        self.broken.append(sentence)

    def report(self, source: str) -> None:
        """Log it, once for all processes of a run."""
        if os.environ.get("RANK", "0") != "0":
            return
        if self.kinds:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
            _LOG.warning("%s: left out %s", source, counts)
        if self.broken:
            _LOG.warning("%s: left out %d that cannot be read:", source, len(self.broken))
            for sentence in self.broken:
                _LOG.warning("  %s", sentence)
