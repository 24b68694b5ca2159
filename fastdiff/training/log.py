"""The run's log: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdiff.files import atomic_path


class Log:
    """Lines with a ``step`` each, appended one by one, so that they can be watched while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def cut(self, step: int) -> None:
        """Drop the lines of later steps, which will be done again, and a line that was half written."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
