"""The sdist and the wheel as a stranger has them: built, checked, installed where no compiler is, and used."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import termios
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from building import build_wheel, run

import fastdiff

ROOT = Path(__file__).parents[2]
OPENMP = r"(libgomp|libiomp|libomp)"  # its runtimes: torch's is the only one that is wanted
SAMPLE = ["sample", "--checkpoint", "fashion-mnist", "--n", "4", "--steps", "3", "--seed", "5"]

pytestmark = [
    pytest.mark.proof,
    pytest.mark.xdist_group("package"),
    pytest.mark.skipif(sys.platform != "linux", reason="wheels with compiled parts are Linux's"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    assert archive.name == f"fastdiff-{fastdiff.__version__}.tar.gz"
    return archive


@pytest.fixture(scope="module")
def tree(sdist: Path) -> Path:
    """The sdist unpacked, with the objects that were compiled from the same sources, so that it need only link."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    tree = sdist.parent / sdist.name.removesuffix(".tar.gz")
    for objects in (ROOT / "build").glob("temp.*"):
        shutil.copytree(objects, tree / "build" / objects.name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    """The wheel for this Python, built by pip from the sdist, with auditwheel's tag."""
    pytest.importorskip("auditwheel")
    return build_wheel(tree)


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A fresh environment, with nothing but what fastdiff depends on, no compiler: PATH is its bin folder."""
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    assert shutil.which("c++", path=str(home / "bin")) is None
    return home


def _in(home: Path) -> dict[str, str]:
    return {"PATH": str(home / "bin"), "HOME": str(home), "OMP_NUM_THREADS": "2"}


def _install(home: Path, what: Path) -> list[str]:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir"]
    return [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(home / "bin" / "python"),
        "install",
        *options,
        str(what),
    ]


def _fastdiff(home: Path, *arguments: object) -> str:
    """What the command that pip installed prints, run outside of any checkout."""
    done = subprocess.run(
        [str(home / "bin" / "fastdiff"), *map(str, arguments)],
        cwd=home,
        env=_in(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _samples(home: Path, out: str) -> np.ndarray:
    _fastdiff(home, *SAMPLE, "--out", out)
    with np.load(home / out / "samples.npz") as archive:
        return archive["arr_0"]


def test_sdist_has_what_git_has(sdist: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    with tarfile.open(sdist) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "ls-files", cwd=ROOT).splitlines())
    assert tracked - carried == {".gitignore"}
    assert not {name for name in carried if name.endswith((".so", ".o", ".pyc"))}


def test_sdist_builds_and_passes_its_tests(tree: Path) -> None:
    """Some of those that it carries: what is there, what is written, and the kernels it has compiled."""
    run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=tree, FASTDIFF_COMPILE="1")
    built = "test_import.py::test_library_is_built_where_there_is_a_compiler"
    names = [
        built,
        "test_architecture.py",
        "test_prose.py",
        "package/test_setup.py",
        "test_backend.py",
        "test_images.py",
    ]
    said = run(sys.executable, "-m", "pytest", *(f"tests/{name}" for name in names), cwd=tree)
    assert re.search(r"^[1-9]\d+ passed", said, re.MULTILINE)
    where = "import fastdiff.ops._library as l; print(l.LIBRARIES.folder, l.LIBRARIES.door)"
    assert run(sys.executable, "-c", where, cwd=tree).split() == [str(tree / "fastdiff" / "lib"), "None"]


def test_what_the_wheel_holds(wheel: Path) -> None:
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    assert re.search(r"-cp3\d+-cp3\d+-manylinux_2_\d+_(x86_64|aarch64)(\.|$)", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        compiled = [name for name in names if re.search(r"\.so(\.|$)", name)]
        kernels = {Path(name).name for name in compiled if name.startswith("fastdiff/lib/")}
        assert {"cpu_default.so", "ops.so"} <= kernels
        assert len(compiled) == len(kernels) + 1, "besides the libraries, one module for this Python"
        assert not [name for name in names if ".libs/" in name or re.search(OPENMP, name)]
        assert {
            "fastdiff/py.typed",
            *(f"fastdiff/assets/fashion-mnist{few}.safetensors" for few in ("", "-few")),
            *(f"fastdiff/assets/emoji{upsampler}.safetensors" for upsampler in ("", "-upsampler")),
        } <= names
        assert "fastdiff/lib/not_compiled.txt" not in names
        assert not [
            name for name in names if name.split("/")[0] not in ("fastdiff",) and ".dist-info/" not in name
        ]
        for name in compiled:
            with archive.open(name) as file:
                elf = ELFFile(file)
                assert elf.get_section_by_name(".symtab") is None, f"{name} is not stripped"
                dynamic = elf.get_section_by_name(".dynamic")
                assert isinstance(dynamic, DynamicSection)
                needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
            assert not [library for library in needed if re.search(f"{OPENMP}|python", library)], (
                name,
                needed,
            )


def test_wheel_without_a_compiler(stranger: Path, wheel: Path) -> None:
    run(*_install(stranger, wheel), cwd=stranger, **_in(stranger))
    told = _fastdiff(stranger, "info")
    assert "operators    compiled, lib/ops.so" in told and "module       by gcc" in told
    assert re.search(r"  used +(default|avx2|avx512|amx)\n", told)
    assert re.search(r"\n  group_norm_silu +cpu\n", told)
    assert "left out" not in told
    with_module = _samples(stranger, "a")
    assert with_module.shape == (4, 32, 32, 1)
    (module,) = stranger.glob("lib/python*/site-packages/fastdiff/_C.*.so")
    module.unlink()
    assert "fastdiff._C is missing" in _fastdiff(stranger, "info")
    assert np.array_equal(_samples(stranger, "b"), with_module)


_RUNTIMES = """
import re
import fastdiff
fastdiff.sample(fastdiff.load("fashion-mnist"), 2, steps=2, progress=False)
names = {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib(g|i|)omp", line)}
print(*names, sep="\\n")
"""


def test_one_openmp_runtime(stranger: Path, wheel: Path) -> None:
    """The one that torch has loaded, from its own folder, whatever else the machine has."""
    run(*_install(stranger, wheel), cwd=stranger, **_in(stranger))
    loaded = run(stranger / "bin" / "python", "-c", _RUNTIMES, cwd=stranger, **_in(stranger)).split()
    assert len(loaded) == 1
    assert Path(loaded[0]).is_relative_to(Path(torch.__file__).resolve().parent)


def test_sdist_without_a_compiler_says_so(stranger: Path, sdist: Path) -> None:
    """On the terminal, although pip hides what a build prints; in `fastdiff info`; and it runs all the same."""
    terminal, theirs = pty.openpty()
    done = subprocess.run(
        _install(stranger, sdist),
        cwd=stranger,
        env=_in(stranger),
        stdin=theirs,
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    os.set_blocking(terminal, False)
    shown = os.read(terminal, 100_000).decode()
    os.close(theirs)
    os.close(terminal)
    assert "fastdiff: NOT COMPILED: there is no C++ compiler here" in shown
    told = _fastdiff(stranger, "info")
    assert "left out     there is no C++ compiler here (c++ was not found)" in told
    assert re.search(r"\n  group_norm_silu +reference\n", told)
    assert _samples(stranger, "a").shape == (4, 32, 32, 1)
