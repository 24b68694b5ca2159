"""``import fastdiff``: quick, complete, and possible without the compiled library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff.backend import Backend
from fastdiff.ops._library import unavailable


def _in_new_process(code: str) -> Any:
    """What ``code`` prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_takes_less_than_50_ms_beyond_torch() -> None:
    code = "import time, torch; t = time.process_time(); import fastdiff; print(time.process_time() - t)"
    seconds = []
    for _ in range(5):  # the quickest of several: a busy machine only ever adds
        seconds.append(_in_new_process(code))
        if seconds[-1] < 0.05:
            return
    pytest.fail(f"took {seconds} s")


def test_import_alone_does_not_import_torch() -> None:
    assert not _in_new_process("import sys, fastdiff; print(int('torch' in sys.modules))")


@pytest.mark.parametrize("name", fastdiff.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(fastdiff, name) is not None
    assert name in dir(fastdiff)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastdiff' has no attribute 'smaple'"):
        _ = fastdiff.smaple


BENCHMARKS = Path(fastdiff.__file__).parent.parent / "benchmarks"
OPTIONAL = (
    "tyro",
    "matplotlib",
    "scipy",
    "tensorboard",
    "wandb",
    "diffusers",
    "torchmetrics",
    "torch_fidelity",
    "pyright",
    "ruff",
)  # a machine with a GPU may have none of them


def test_optional_packages_are_optional() -> None:
    """Whatever the library is made of, and the benchmarks for GPUs, can be imported without them."""
    code = f"""
import importlib, pkgutil, runpy, sys
sys.modules |= dict.fromkeys({OPTIONAL})
import fastdiff
names = [m.name for m in pkgutil.walk_packages(fastdiff.__path__, "fastdiff.") if ".lib." not in m.name]
# The command line, and what derives from diffusers' own classes.
skipped = ("fastdiff.cli.", "fastdiff.__main__")
endings = (".triton", "_schedulers")
for name in names:
    if not name.startswith(skipped) and not name.endswith(endings) and ".triton_" not in name:
        importlib.import_module(name)
sys.argv = ["gpu.py", "--help"]
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu
print(len(names))
"""
    assert _in_new_process(code) > 50


_WITHOUT_LIBRARY = """
import json, logging, os, sys
os.environ["FASTDIFF_LIBRARIES"] = "hidden"
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("fastdiff").addHandler(handler)

import torch, fastdiff
from fastdiff.models import UNetConfig, build_model
from fastdiff.ops._op import OPS
model = build_model(UNetConfig(image_size=8, model_channels=32, channel_mult=(1,), attention_resolutions=(8,)))
called = []
for op in OPS.values():
    with_reference = op.reference
    op.reference = lambda *a, op=op, run=with_reference: (called.append(op.name), run(*a))[1]
for _ in range(2):
    x = fastdiff.sample(
        model, 2, steps=3, sampler="ancestral", diffusion=fastdiff.DiffusionConfig(), progress=False
    )
from fastdiff.training.optimizer import AdamWEMA
parameter = torch.ones(1, requires_grad=True)
optimizer = AdamWEMA([parameter])
parameter.sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
fastdiff.load("fashion-mnist")
print(json.dumps({
    "compiler": "torch._dynamo" in sys.modules,
    "finite": bool(x.isfinite().all()),
    "lines": lines,
    "called": sorted(set(called)),
}))
"""


def test_works_without_the_library_and_says_so_once() -> None:
    told = _in_new_process(_WITHOUT_LIBRARY)
    assert told["finite"]
    assert not told["compiler"], "PyTorch's compiler takes longer to import than all of fastdiff"
    assert "reverse_step" in told["called"] and "group_norm_silu" in told["called"]
    (line,) = told["lines"]
    assert line.startswith("all ops: not on the cpu backend: the compiled operators are not built")


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_library_is_built_where_there_is_a_compiler() -> None:
    """The build tolerates failure, for those without a compiler; this does not, for those who work on it."""
    sources = Path(fastdiff.__file__).parent.parent / "csrc"
    assert unavailable(Backend.CPU) is None, (
        f"{sources} did not compile; run python setup.py build_ext --inplace"
    )
