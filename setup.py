"""Builds the compiled parts with ninja: kernels, the operators that give them to PyTorch, and a small Python module.

    fastdiff/lib/cpu_<isa>.so   the CPU's kernels, once per instruction set; no torch, no Python
    fastdiff/lib/cuda.so        CUDA's, where nvcc and a CUDA build of torch are
    fastdiff/lib/ops.so         the operators, on LibTorch's stable ABI: one build for every Python and torch from 2.11
    fastdiff/_C.<python>.so     what is no operator, by pybind11

FASTDIFF_CUDA=1 builds CUDA's also where torch has none, 0 never; TORCH_CUDA_ARCH_LIST is like "8.0;9.0+PTX".
What cannot be compiled is left out, with the compiler's words: fastdiff then runs on its reference.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MACOS = platform.system() == "Darwin"
# Never -march=native: the build machine is not the machine it runs on.
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
ISA_FLAGS = {"default": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS |= {"avx2": AVX2, "avx512": AVX512}
OPENMP = "" if MACOS else "-fopenmp"  # Apple's compiler has none: the kernels run on one thread there
HOST = "-fPIC -Wall -Wno-psabi"
# No -ffast-math: NaN and infinity must come through. errno and traps are not needed here.
KERNEL = f"{HOST} {OPENMP} -std=c++17 -DNDEBUG -fwrapv -fno-math-errno -fno-trapping-math -ffp-contract=fast"
# For torch 2.11 and later: fastdiff/ops/_library.py, OLDEST_TORCH.
DOOR = f"{HOST} -std=c++20 -fvisibility=hidden -Wno-maybe-uninitialized -DTORCH_TARGET_VERSION=0x020b000000000000"
LINK = "-undefined dynamic_lookup" if MACOS else "-s"  # the process brings what is undefined

RULES = """
rule compile
  command = $compiler $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $compiler -shared $in -o $out $flags
"""


@dataclass(frozen=True)
class Library:
    module: str  # lib.cpu_avx2, _C
    sources: str
    flags: str
    link: str = ""
    compiler: str = "$cxx"

    def statements(self, output: Path) -> str:
        lines, objects, always = [], [], f"  compiler = {self.compiler}"
        for source in sorted(ROOT.glob(f"csrc/{self.sources}")):
            objects.append(f"{self.module}/{source.stem}.o")
            flags = f'  flags = -O3 -I"{ROOT}/csrc" {self.flags}'
            lines += [f"build {objects[-1]}: compile {_escaped(source)}", flags, always]
        lines += [f"build {_escaped(output)}: link {' '.join(objects)}", f"  flags = {self.link}", always, ""]
        return "\n".join(lines)


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def libraries() -> list[Library]:
    found = []
    for isa, flags in ISA_FLAGS.items():
        found.append(Library(f"lib.cpu_{isa}", "cpu/*.cpp", f"{KERNEL} {flags}", f"{OPENMP} {LINK}"))
    if spec := importlib.util.find_spec("torch"):
        torch = Path(str(spec.origin)).parent
        link = f"-L'{torch}/lib' -ltorch_cpu -lc10 {LINK}"
        found.append(Library("lib.ops", "torch/*.cpp", f"{DOOR} -isystem '{torch}/include'", link))
    if importlib.util.find_spec("pybind11"):
        import pybind11

        headers = f"-isystem '{pybind11.get_include()}' -isystem '{sysconfig.get_paths()['include']}'"
        found.append(Library("_C", "bindings.cpp", f"{HOST} -std=c++17 -fvisibility=hidden {headers}", LINK))
    if nvcc():
        flags = f"-std=c++17 -lineinfo -Xcompiler -fPIC {architectures()}"
        found.append(Library("lib.cuda", "cuda/*.cu", flags, compiler="$nvcc"))
    return found


def nvcc() -> str | None:
    """The compiler, or None where CUDA is not to be built."""
    home, wanted = os.environ.get("CUDA_HOME", "/usr/local/cuda"), os.environ.get("FASTDIFF_CUDA")
    if wanted is None and importlib.util.find_spec("torch"):
        import torch

        wanted = "1" if torch.version.cuda else "0"
    return (shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")) if wanted == "1" else None


def architectures() -> str:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST: numbers, each with "+PTX" if later cards shall run it too."""
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(";", " ").split():
        if not (parts := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {name!r} is not like 9.0 or 9.0+PTX")
        arch = parts[1] + parts[2]
        flags.append(f"-gencode=arch=compute_{arch},code=[sm_{arch}{f',compute_{arch}' if parts[3] else ''}]")
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
        (base / "fastdiff" / "lib").mkdir(parents=True, exist_ok=True)
        text = [f"cxx = {os.environ.get('CXX', 'c++')}", f"nvcc = {nvcc()}", RULES]
        text += [library.statements(path) for library, path in outputs.items()]
        (folder / "build.ninja").write_text("\n".join(text))
        if self._ninja(folder, "--quiet", "-k", "0").returncode:
            self._give_up(folder, outputs)

    def _ninja(self, folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
        program = shutil.which("ninja", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
        if program is None:
            raise SystemExit("fastdiff: not compiled: there is no ninja (pip install ninja)")
        return subprocess.run([program, *arguments], cwd=folder, check=False, **options)

    def _give_up(self, folder: Path, outputs: dict[Library, Path]) -> None:
        """A library that does not match its sources is worse than none."""
        left = {p: self._ninja(folder, "-n", str(p), capture_output=True).stdout for p in outputs.values()}
        failed = [path for path, plan in left.items() if b"no work to do" not in plan]
        for path in failed:
            path.unlink(missing_ok=True)
        self.warn(f"not compiled: {', '.join(p.name for p in failed)}, see above; fastdiff is slower without")


LIBRARIES = libraries()
EXTENSIONS = [Extension(f"fastdiff.{library.module}", [], optional=True) for library in LIBRARIES]
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildWithNinja})
