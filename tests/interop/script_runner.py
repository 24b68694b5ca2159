"""Scripts of other projects, in their manner, under ``fastdiff run`` in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import programs

SCRIPTS = Path(__file__).parent / "scripts"


def flags(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_script(script: str, *arguments: str, logdir: Path, processes: int = 1) -> str:
    """What the script prints."""
    done = programs.run(
        *("-m", "fastdiff", "run", SCRIPTS / f"{script}.py", *arguments),
        processes=processes,
        env={**os.environ, "OPENAI_LOGDIR": str(logdir)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
