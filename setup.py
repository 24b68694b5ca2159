"""Builds the kernels as plain shared libraries: the CPU's, one per instruction set, and CUDA's where nvcc is.

The sources know neither torch nor Python: a C++17 compiler builds the first in seconds, nvcc the last in minutes, and
one build serves every torch and Python. CUDA is left out where torch has none (FASTDIFF_CUDA=1 builds it all the same,
0 never). TORCH_CUDA_ARCH_LIST names the architectures, e.g. "8.0;9.0+PTX". Everything declarative is in pyproject.toml.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*.cpp"))
CUDA_SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/*.*h"))

# Never -march=native: the build machine is not the machine it runs on.
ISA_FLAGS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = [
        *ISA_FLAGS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]
# Apple's compiler has no OpenMP: the kernels run on one thread there.
OPENMP = [] if platform.system() == "Darwin" else ["-fopenmp"]
# No -ffast-math: NaN and infinity must come through. errno and traps are nobody's business here.
COMPILE = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
COMPILE += ["-Wall", "-Wno-psabi"]
CUDA_COMPILE = ["-std=c++17", "-O3", "-lineinfo", "-Icsrc", "-Xcompiler", "-fPIC"]


def nvcc() -> str | None:
    """The compiler, or None where CUDA is not to be built."""
    home, wanted = os.environ.get("CUDA_HOME", "/usr/local/cuda"), os.environ.get("FASTDIFF_CUDA")
    found = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if found and wanted is None:
        with contextlib.suppress(ImportError):
            import torch

            return found if torch.version.cuda else None
    return found if wanted == "1" else None


def architectures() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST: numbers, each with "+PTX" if later cards shall run it too."""
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(";", " ").split():
        if not (parts := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)):
            raise BaseError(f"TORCH_CUDA_ARCH_LIST: {name!r} is not like 9.0 or 9.0+PTX")
        arch = parts[1] + parts[2]
        codes = [f"sm_{arch}", f"compute_{arch}"] if parts[3] else [f"sm_{arch}"]
        flags += [f"-gencode=arch=compute_{arch},code={code}" for code in codes]
    return flags


class BuildLibraries(build_ext):
    """Compiles each library into its own object folder, so that they can be built side by side."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True
        self._failed: dict[str, str] = {}

    def run(self) -> None:
        super().run()
        if self._failed:  # no compiler, or none for these sources: fastdiff still works, on its reference
            names, reason = ", ".join(sorted(self._failed)), next(iter(self._failed.values()))
            print(
                f"fastdiff: not compiled: {names} ({reason}); it runs without, only slower", file=sys.stderr
            )

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def copy_extensions_to_source(self) -> None:
        # The folder holds nothing but libraries, so no one else makes it.
        (ROOT / "fastdiff" / "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()
        for name in self._failed:
            (ROOT / "fastdiff" / "lib" / f"{name}.so").unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        if not self.force and _is_newer(target, [*ext.sources, *HEADERS, "setup.py"]):
            return
        target.unlink(missing_ok=True)  # a library that does not match its sources is worse than none
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._compile_cuda(ext, target) if target.stem == "cuda" else self._compile(ext, target)
        except (CCompilerError, BaseError, OSError) as error:
            reason = str(error).partition("\n")[0]
            self._failed[target.stem] = reason if len(reason) < 100 else "the compiler failed"

    def _compile(self, ext: Extension, target: Path) -> None:
        folder, flags = str(Path(self.build_temp) / ext.name), ext.extra_compile_args
        objects = self.compiler.compile(ext.sources, folder, include_dirs=["csrc"], extra_postargs=flags)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=ext.extra_link_args, target_lang="c++"
        )

    def _compile_cuda(self, ext: Extension, target: Path) -> None:
        compiler, folder = nvcc(), Path(self.build_temp) / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        objects = {source: str(folder / (Path(source).stem + ".o")) for source in ext.sources}

        def run(*arguments: str) -> None:
            if subprocess.run([str(compiler), *arguments]).returncode:
                raise BaseError("nvcc failed, see above")

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            flags = [*CUDA_COMPILE, *architectures()]
            list(pool.map(lambda source: run(*flags, "-c", source, "-o", objects[source]), objects))
        run("-shared", "-o", str(target), *objects.values())


def _is_newer(target: Path, inputs: list[str]) -> bool:
    built = target.stat().st_mtime if target.exists() else 0.0
    return all(built > (ROOT / name).stat().st_mtime for name in inputs)


# `optional`: may be missing in the end, see BuildLibraries.run.
LIBRARIES = [Extension("fastdiff.lib.cuda", CUDA_SOURCES, optional=True)] if nvcc() else []
for isa, isa_flags in ISA_FLAGS.items():
    flags = {"extra_compile_args": [*COMPILE, *isa_flags, *OPENMP], "extra_link_args": OPENMP}
    LIBRARIES.append(Extension(f"fastdiff.lib.cpu_{isa}", SOURCES, **flags, optional=True))

setup(ext_modules=LIBRARIES, cmdclass={"build_ext": BuildLibraries})
