"""The wheel for 64-bit ARM, compiled on another processor, and its kernels under qemu: they compute what ours do."""

from __future__ import annotations

import platform
import re
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from building import build_wheel, run

import fastdiff

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("kernels_elsewhere.cpp")
CXX, QEMU, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
# Sums in another order and with fused multiply-adds; bfloat16 results may round to the neighbour.
WITHIN = {"density": 1e-13, "conv": 1e-5}
WITHIN |= dict.fromkeys(("norm16", "attention16", "step16", "conv16"), 2.0**-7)

pytestmark = [
    pytest.mark.proof,
    pytest.mark.xdist_group("package"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="ARM's wheel is compiled from x86-64 here"),
    pytest.mark.skipif(
        shutil.which(CXX) is None, reason=f"no {CXX} (Debian: apt-get install g++-aarch64-linux-gnu)"
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy of the tree, as `make wheel CROSS=...` does, and tagged by auditwheel."""
    pytest.importorskip("auditwheel")
    tree = tmp_path_factory.mktemp("cross") / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "lib", "tests", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    return build_wheel(tree, CXX=CXX)


def test_one_wheel_for_every_python(wheel: Path, tmp_path: Path) -> None:
    """Without the module that is a Python's own; PyTorch's libraries are needed under their own names."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    name = rf"fastdiff-{re.escape(fastdiff.__version__)}-py3-none-manylinux_2_\d+_aarch64\.whl"
    assert re.fullmatch(name, wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        compiled = {name for name in archive.namelist() if ".so" in name}
        assert compiled == {"fastdiff/lib/cpu_default.so", "fastdiff/lib/ops.so"}
        assert not any("not_compiled" in name for name in archive.namelist())
        for name in compiled:
            with archive.open(name) as file:
                elf = ELFFile(file)
                assert elf["e_machine"] == "EM_AARCH64"
                dynamic = elf.get_section_by_name(".dynamic")
                assert isinstance(dynamic, DynamicSection)
                needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
            assert ({"libtorch_cpu.so", "libc10.so"} <= needed) == name.endswith("ops.so")


def _printed(text: str) -> list[tuple[str, float]]:
    return [(part, float(value)) for part, value in map(str.split, text.splitlines())]


@pytest.mark.skipif(
    shutil.which(QEMU) is None, reason=f"no {QEMU} (Debian: apt-get install qemu-user-static)"
)
def test_kernels_compute_what_ours_do(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        theirs = archive.extract("fastdiff/lib/cpu_default.so", tmp_path)
    flags = ["-O1", "-std=c++17", "-fopenmp", "-Wl,--no-as-needed", "-Icsrc", PROGRAM, "-ldl", "-o"]
    run(CXX, *flags, tmp_path / "there", cwd=ROOT)
    run("c++", *flags, tmp_path / "here", cwd=ROOT)
    found = _printed(run(QEMU, "-L", SYSROOT, tmp_path / "there", theirs, cwd=ROOT))
    wanted = _printed(run(tmp_path / "here", ROOT / "fastdiff" / "lib" / "cpu_default.so", cwd=ROOT))
    assert [part for part, _ in found] == [part for part, _ in wanted] and len(wanted) > 30_000
    apart = defaultdict[str, float](float)
    for (part, value), (_, right) in zip(found, wanted, strict=True):
        if value != right:
            apart[part] = max(apart[part], abs(value - right) / max(1.0, abs(right)))
    too_far = {part: gap for part, gap in apart.items() if not gap < WITHIN.get(part, 2e-6)}
    assert not too_far
