"""What is compiled, by which compiler and with which flags, as a ninja file's statements. For setup.py.

    fastdiff/lib/cpu_<isa>.so   the CPU's kernels, once per instruction set; no torch, no Python
    fastdiff/lib/cuda.so        CUDA's, where nvcc and a CUDA build of torch are
    fastdiff/lib/ops.so         the operators, on LibTorch's stable ABI: one build for every Python and torch from 2.11
    fastdiff/_C.<python>.so     what is no operator, by pybind11

FASTDIFF_CUDA=1 builds CUDA's also where torch has none, 0 never; TORCH_CUDA_ARCH_LIST is like "8.0;9.0+PTX".
A CXX for another processor, such as aarch64-linux-gnu-g++, makes all but fastdiff._C, which needs its Python.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACOS = platform.system() == "Darwin"
# Never -march=native: the build machine is not the machine it runs on.
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
AMX = f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16"
# Apple's compiler has none: the kernels run on one thread there. Nothing is linked for it: the functions are those of
# the runtime that torch has loaded, whatever the name of its file, so that there is never a second one.
OPENMP = "" if MACOS else "-fopenmp"
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
rule stand_in
  command = $cxx -shared -x c /dev/null -Wl,-soname,$soname -o $out
"""
# Empty libraries under the names of torch's, to link with where torch's own are for another processor.
STAND_INS = ("libtorch_cpu.so", "libc10.so")


@dataclass(frozen=True)
class Library:
    module: str  # lib.cpu_avx2, _C
    sources: str
    flags: str
    link: str = LINK
    compiler: str = "$cxx"
    stand_ins: tuple[str, ...] = ()  # of STAND_INS

    def statements(self, output: Path) -> str:
        lines, objects, always = [], [], f"  compiler = {self.compiler}"
        for source in sorted(ROOT.glob(f"csrc/{self.sources}")):
            objects.append(f"$objects/{self.module}/{source.stem}.o")
            flags = f"  flags = -O3 -Icsrc {self.flags}"
            lines += [f"build {objects[-1]}: compile {_escaped(source)}", flags, always]
        for name in self.stand_ins:
            lines += [f"build $objects/{name}: stand_in", f"  soname = {name}"]
        inputs = " ".join([*objects, "|", *(f"$objects/{name}" for name in self.stand_ins)])
        lines += [f"build {_escaped(output)}: link {inputs}", f"  flags = {self.link}", always, ""]
        return "\n".join(lines)


def ninja_file(folder: Path, outputs: dict[Library, Path]) -> str:
    """The whole of it, for objects in ``folder`` and the library files that are wanted; to be run in ROOT.

    Paths below ROOT are relative: a tree that was moved or copied with its objects is not compiled again.
    """
    text = [f"cxx = {cxx()}", f"nvcc = {nvcc()}", f"objects = {_escaped(folder)}"]
    text += [f"builddir = {_escaped(folder)}", RULES]
    return "\n".join([*text, *(library.statements(path) for library, path in outputs.items())])


def _escaped(path: Path) -> str:
    path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def why_not_compiled(system: str, wanted: str, compiler: str | None) -> str | None:
    """Why a package that is built here has no compiled parts; None: it has."""
    if wanted == "0":
        return "this package was built without them (FASTDIFF_COMPILE=0), for systems that have no package of their own"
    if system not in ("Linux", "Darwin"):
        return f"they are made for Linux and macOS, and this is {system}"
    if compiler is None:
        return (
            f"there is no C++ compiler here ({cxx()} was not found); install one and install fastdiff again"
        )
    return None


def isa_flags() -> dict[str, str]:
    """The instruction sets that kernels are compiled for, with their flags."""
    if target() != "x86_64":
        return {"default": ""}
    return {"default": "", "avx2": AVX2, "avx512": AVX512, "amx": AMX}


def libraries() -> list[Library]:
    found = []
    for isa, flags in isa_flags().items():
        found.append(Library(f"lib.cpu_{isa}", "cpu/*.cpp", f"{KERNEL} {flags}"))
    if spec := importlib.util.find_spec("torch"):
        torch = Path(str(spec.origin)).parent
        flags, link = f"{DOOR} -isystem '{torch}/include'", f"-L'{torch}/lib' -ltorch_cpu -lc10 {LINK}"
        if is_cross():
            names = " ".join(f"-l:{name}" for name in STAND_INS)
            link = f"-L$objects -Wl,--no-as-needed {names} {LINK}"
        found.append(
            Library("lib.ops", "torch/*.cpp", flags, link, stand_ins=STAND_INS if is_cross() else ())
        )
    if importlib.util.find_spec("pybind11") and not is_cross():
        import pybind11

        headers = f"-isystem '{pybind11.get_include()}' -isystem '{sysconfig.get_paths()['include']}'"
        found.append(Library("_C", "bindings*.cpp", f"{HOST} -std=c++17 -fvisibility=hidden {headers}"))
    if nvcc() and not is_cross():
        flags = f"-std=c++17 -lineinfo -Xcompiler -fPIC {architectures()}"
        found.append(Library("lib.cuda", "cuda/*.cu", flags, link="", compiler="$nvcc"))
    return found


def cxx() -> str:
    return os.environ.get("CXX", "c++")


@functools.cache
def target() -> str:
    """The processor that the compiler compiles for, as Linux names it: x86_64, aarch64."""
    name = platform.machine()
    if shutil.which(cxx()):
        said = subprocess.run([cxx(), "-dumpmachine"], capture_output=True, text=True, check=False)
        name = said.stdout.partition("-")[0].strip() or name
    return _known(name)


def is_cross() -> bool:
    """Whether that is another processor than this machine's."""
    return target() != _known(platform.machine())


def _known(name: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())


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
