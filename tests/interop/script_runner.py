"""Scripts of other projects, in their manner, under ``fastdiff run`` in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"


def flags(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_script(script: str, *arguments: str, logdir: Path, processes: int = 1) -> str:
    """What the script prints."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "fastdiff", "run", str(SCRIPTS / f"{script}.py"), *arguments]
    environment = {**os.environ, "OPENAI_LOGDIR": str(logdir), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
