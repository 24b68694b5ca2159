"""``fastdiff info``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Info:
    """Print versions, devices, instruction sets, and which backend each op would use and why not a faster one."""

    def run(self) -> int:
        from fastdiff.cli.installation import report

        print(report())
        return 0
