"""``fastdiff run``: an unchanged script of guided-diffusion, improved-diffusion or consistency_models on fastdiff."""

from __future__ import annotations

import importlib
import importlib.util
import logging
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
# What differs in improved-diffusion, which is the older of the two.
_IMPROVED = {name: f"{_MIRROR}.improved_{name}" for name in ("image_datasets", "script_util", "unet")}
# consistency_models' package, which has these in place of the processes in discrete steps.
_CM = "fastdiff.interop.consistency_models"
_OF_CM = {
    name: f"{_CM}.{name}"
    for name in ("karras_diffusion", "random_util", "resample", "script_util", "train_util", "unet")
}


@dataclass(frozen=True)
class Run:
    """Run an unchanged script of guided-diffusion, improved-diffusion or consistency_models, on fastdiff's modules.

    On several GPUs: torchrun --nproc-per-node 8 -m fastdiff run SCRIPT ...
    """

    script: Annotated[Positional[Path], arg(metavar="SCRIPT")]
    """File of the script, such as image_sample.py."""
    arguments: Annotated[Positional[tuple[str, ...]], arg(metavar="...")] = ()
    """Arguments of the script, which are passed on unchanged."""

    def run(self) -> int:
        return run_script([str(self.script), *self.arguments])


def run_script(argv: Sequence[str]) -> int:
    """Run argv[0] as ``__main__`` with the rest as its arguments.

    Modules beside the script take precedence, such as a fork's own ``guided_diffusion``: fastdiff then provides only
    the modules that the fork lacks, and logs which ones are the fork's.

    Raises:
        FastdiffError: no such file.
    """
    script = Path(argv[0])
    if not script.is_file():
        raise FastdiffError(
            f"no script {script}; give the file of a guided-diffusion script, such as image_sample.py"
        )
    folder = script.resolve().parent
    sys.path.insert(0, str(folder))
    _alias("guided_diffusion", folder, {})
    _alias("improved_diffusion", folder, _IMPROVED)
    _alias("cm", folder, _OF_CM)
    if importlib.util.find_spec("blobfile") is None:
        sys.modules["blobfile"] = importlib.import_module(f"{_MIRROR}.blobfile")
    sys.argv = [str(script), *argv[1:]]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _alias(package: str, folder: Path, others: dict[str, str]) -> None:
    """Make a package and its modules importable by their names, except those that are in the script's folder."""
    own = folder / package
    if own.with_suffix(".py").is_file():
        return
    names = sorted({*_MODULES, *others})
    theirs = [name for name in names if (own / f"{name}.py").is_file() or (own / name).is_dir()]
    if not own.is_dir():
        sys.modules[package] = importlib.import_module(_MIRROR)
    elif theirs:
        logging.getLogger("fastdiff").warning(
            "%s: the script's own %s, not fastdiff's", package, ", ".join(theirs)
        )
    for name in names:
        if name not in theirs:
            module = importlib.import_module(others.get(name, f"{_MIRROR}.{name}"))
            sys.modules[f"{package}.{name}"] = module
