"""Builds the CPU kernels: one plain shared library per instruction set, the best one chosen at run time.

The sources know neither torch nor Python, so this needs a C++17 compiler and setuptools and takes seconds.
Everything declarative is in pyproject.toml.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*.cpp"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/*.h"))

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
COMPILE = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wno-psabi",
]


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
        if not self.force and _is_newer(target, [*SOURCES, *HEADERS, "setup.py"]):
            return
        target.unlink(missing_ok=True)  # a library that does not match its sources is worse than none
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._compile(ext, target)
        except (CCompilerError, BaseError, OSError) as error:
            reason = str(error).partition("\n")[0]
            self._failed[target.stem] = reason if len(reason) < 100 else "the C++ compiler failed"

    def _compile(self, ext: Extension, target: Path) -> None:
        objects = self.compiler.compile(
            ext.sources,
            output_dir=str(Path(self.build_temp) / ext.name),
            include_dirs=["csrc"],
            extra_postargs=ext.extra_compile_args,
        )
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=ext.extra_link_args, target_lang="c++"
        )


def _is_newer(target: Path, inputs: list[str]) -> bool:
    built = target.stat().st_mtime if target.exists() else 0.0
    return all(built > (ROOT / name).stat().st_mtime for name in inputs)


setup(
    ext_modules=[
        Extension(
            f"fastdiff.lib.cpu_{isa}",
            SOURCES,
            extra_compile_args=[*COMPILE, *flags, *OPENMP],
            extra_link_args=OPENMP,
            optional=True,  # may be missing in the end, see BuildLibraries.run
        )
        for isa, flags in ISA_FLAGS.items()
    ],
    cmdclass={"build_ext": BuildLibraries},
)
