"""Builds the compiled parts with ninja: the kernels, the operators that give them to PyTorch, and a small Python module.

    fastdiff/lib/cpu_<isa>.so   the CPU's kernels, once per instruction set; no torch, no Python
    fastdiff/lib/cuda.so        CUDA's, where nvcc and a CUDA build of torch are
    fastdiff/lib/ops.so         the operators, on LibTorch's stable ABI: one build for every Python and torch from 2.11
    fastdiff/_C.<python>.so     what is no operator, by pybind11

FASTDIFF_CUDA=1 builds CUDA's also where torch has none, 0 never; TORCH_CUDA_ARCH_LIST names the architectures, e.g.
"8.0;9.0+PTX". What cannot be compiled is left out, with the compiler's words: fastdiff then runs on its reference, slower.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # 2.11: fastdiff/ops/_library.py, OLDEST_TORCH
MACOS = platform.system() == "Darwin"

# Never -march=native: the build machine is not the machine it runs on.
ISA_FLAGS = {"default": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
OPENMP = "" if MACOS else "-fopenmp"  # Apple's compiler has none: the kernels run on one thread there
# No -ffast-math: NaN and infinity must come through. errno and traps are nobody's business here.
KERNEL = f"-std=c++17 -DNDEBUG -fwrapv -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-psabi {OPENMP}"
LOADED = "-undefined dynamic_lookup" if MACOS else ""  # symbols that the process brings

RULES = f"""
rule cxx
  command = $cxx -O3 -fPIC -Wall -I"{ROOT}/csrc" $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared {"" if MACOS else "-s"} $in -o $out $flags
rule nvcc
  command = $nvcc -std=c++17 -O3 -lineinfo -Xcompiler -fPIC -I"{ROOT}/csrc" $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link_cuda
  command = $nvcc -shared $in -o $out
"""


@dataclass(frozen=True)
class Library:
    """How one shared library is compiled and linked."""

    module: str  # lib.cpu_avx2, _C
    sources: str
    flags: str
    link: str = ""
    cuda: bool = False

    def statements(self, output: Path) -> str:
        compile_rule, link_rule = ("nvcc", "link_cuda") if self.cuda else ("cxx", "link")
        lines, objects = [], []
        for source in sorted(ROOT.glob(self.sources)):
            objects.append(f"{self.module}/{source.stem}.o")
            lines += [f"build {objects[-1]}: {compile_rule} {_escaped(source)}", f"  flags = {self.flags}"]
        return "\n".join([*lines, f"build {_escaped(output)}: {link_rule} {' '.join(objects)}", f"  flags = {self.link}", ""])


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def libraries() -> list[Library]:
    found = [Library(f"lib.cpu_{isa}", "csrc/cpu/*.cpp", f"{KERNEL} {f}", OPENMP) for isa, f in ISA_FLAGS.items()]
    if spec := importlib.util.find_spec("torch"):
        torch = Path(str(spec.origin)).parent
        flags = f"-std=c++20 -fvisibility=hidden -Wno-maybe-uninitialized -DTORCH_TARGET_VERSION={TORCH_TARGET} -isystem '{torch}/include'"
        found.append(Library("lib.ops", "csrc/torch/*.cpp", flags, f"-L'{torch}/lib' -ltorch_cpu -lc10 {LOADED}"))
    if importlib.util.find_spec("pybind11"):
        import pybind11

        folders = pybind11.get_include(), sysconfig.get_paths()["include"]
        flags = " ".join(["-std=c++17 -fvisibility=hidden", *(f"-isystem '{folder}'" for folder in folders)])
        found.append(Library("_C", "csrc/bindings.cpp", flags, LOADED))
    return [Library("lib.cuda", "csrc/cuda/*.cu", architectures(), cuda=True), *found] if builds_cuda() else found


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def builds_cuda() -> bool:
    wanted = os.environ.get("FASTDIFF_CUDA")
    if not nvcc() or wanted is not None or not importlib.util.find_spec("torch"):
        return bool(nvcc()) and wanted == "1"
    import torch

    return torch.version.cuda is not None


def architectures() -> str:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST: numbers, each with "+PTX" if later cards shall run it too."""
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(";", " ").split():
        if not (parts := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {name!r} is not like 9.0 or 9.0+PTX")
        arch = parts[1] + parts[2]
        codes = f"[sm_{arch},compute_{arch}]" if parts[3] else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code={codes}")
    return " ".join(flags)


class BuildWithNinja(build_ext):
    """One ninja file for everything: in parallel, and what did not change is not compiled again."""

    def get_ext_filename(self, fullname: str) -> str:
        name = super().get_ext_filename(fullname)
        return name if fullname.endswith("_C") else fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        base = ROOT if self.inplace else Path(self.build_lib).absolute()
        outputs = {lib: base / self.get_ext_filename(f"fastdiff.{lib.module}") for lib in LIBRARIES}
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        head = [f"cxx = {os.environ.get('CXX', 'c++')}", f"nvcc = {nvcc()}", RULES]
        (folder / "build.ninja").write_text("\n".join([*head, *(lib.statements(p) for lib, p in outputs.items())]))
        if self._ninja(folder, "--quiet", "-k", "0").returncode:
            self._give_up(folder, outputs)

    @staticmethod
    def _ninja(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
        program = shutil.which("ninja", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
        if program is None:
            raise SystemExit("fastdiff: not compiled: there is no ninja (pip install ninja)")
        return subprocess.run([program, *arguments], cwd=folder, check=False, **options)

    def _give_up(self, folder: Path, outputs: dict[Library, Path]) -> None:
        """A library that does not match its sources is worse than none."""
        left = {path: self._ninja(folder, "-n", str(path), capture_output=True).stdout for path in outputs.values()}
        failed = [path for path, plan in left.items() if b"no work to do" not in plan]
        for path in failed:
            path.unlink(missing_ok=True)
        names = ", ".join(path.name for path in failed)
        print(f"fastdiff: not compiled: {names} (see above); it runs without, only slower", file=sys.stderr)


LIBRARIES = libraries()
EXTENSIONS = [Extension(f"fastdiff.{lib.module}", [], optional=True) for lib in LIBRARIES]  # some may be missing in the end
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildWithNinja})
