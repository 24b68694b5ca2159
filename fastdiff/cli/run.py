"""``fastdiff run``: an unchanged guided-diffusion script on fastdiff."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fastdiff.errors import FastdiffError

_MIRROR = "fastdiff.interop.guided_diffusion"
_MODULES = (
    "dist_util",
    "fp16_util",
    "gaussian_diffusion",
    "image_datasets",
    "logger",
    "losses",
    "nn",
    "resample",
    "respace",
    "script_util",
    "train_util",
    "unet",
)


@dataclass(frozen=True)
class Run:
    """Run an unchanged guided-diffusion script: its ``guided_diffusion`` is fastdiff's. What follows it is its own.

    On several GPUs: torchrun --nproc-per-node 8 -m fastdiff run SCRIPT ...
    """

    script: Positional[Path]  # the script's file
    arguments: Annotated[Positional[tuple[str, ...]], arg(metavar="...")] = ()  # its own, as they are

    def run(self) -> int:
        return run_script([str(self.script), *self.arguments])


def run_script(argv: Sequence[str]) -> int:
    """Run argv[0] as ``__main__`` with the rest as its arguments.

    Raises:
        FastdiffError: no such file.
    """
    script = Path(argv[0])
    if not script.is_file():
        raise FastdiffError(
            f"no script {script}; give the file of a guided-diffusion script, such as image_sample.py"
        )
    _alias()
    sys.argv = [str(script), *argv[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _alias() -> None:
    """``guided_diffusion`` and its modules by their names; blobfile too, if it is not installed."""
    sys.modules["guided_diffusion"] = importlib.import_module(_MIRROR)
    for name in _MODULES:
        sys.modules[f"guided_diffusion.{name}"] = importlib.import_module(f"{_MIRROR}.{name}")
    if importlib.util.find_spec("blobfile") is None:
        sys.modules["blobfile"] = importlib.import_module(f"{_MIRROR}.blobfile")
