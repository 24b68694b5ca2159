"""Builds the package: with compiled parts where this machine can compile them (csrc/libraries.py says which), with
ninja, in parallel, and what did not change is not compiled again.

What is not compiled is left out, and fastdiff then runs on its reference. That is never silent: the build says what and
why, also from inside of pip, and writes it into fastdiff/lib/not_compiled.txt, which `fastdiff info` prints.

    FASTDIFF_COMPILE=0      compile nothing: a wheel that runs everywhere (py3-none-any)
    FASTDIFF_COMPILE=1      whatever does not compile is an error
    FASTDIFF_REPOSITORY     where the project's pages are, such as https://example.org/fastdiff/blob/main: the README's
                            relative links are made absolute with it, so that they hold on the page of a package
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from libraries import Library, cxx, is_cross, libraries, ninja_file, target, why_not_compiled  # noqa: E402

WANTED = os.environ.get("FASTDIFF_COMPILE", "")
NOTE = "fastdiff/lib/not_compiled.txt"


def say(reason: str) -> None:
    """Loudly: also on the terminal behind pip, which hides what a build prints. Or an error, if asked for."""
    text = f"fastdiff: NOT COMPILED: {reason}\nfastdiff runs without, on PyTorch alone, and is slower."
    if WANTED == "1":
        raise SystemExit(text)
    print(f"\n{text}\n", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        if not sys.stderr.isatty():
            Path("/dev/tty").write_text(f"\n{text}\n")


def write_note(base: Path, reason: str | None) -> None:
    note = base / NOTE
    note.unlink(missing_ok=True)
    if reason is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{reason}\n")
        say(reason)


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if NOTHING and not self.editable_mode:
            write_note(Path(self.build_lib), NOTHING)


class BuildWithNinja(build_ext):
    """One ninja file for everything."""

    def get_ext_filename(self, fullname: str) -> str:
        name = super().get_ext_filename(fullname)
        return name if fullname.endswith("_C") else fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        folder = ROOT / self.build_temp
        if self.editable_mode:  # which has a temporary folder: compile where `setup.py build_ext` does
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        base = ROOT if self.inplace else Path(self.build_lib).absolute()
        outputs = {lib: base / self.get_ext_filename(f"fastdiff.{lib.module}") for lib in LIBRARIES}
        (base / "fastdiff" / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(folder, outputs))
        done = self._ninja(folder, "--quiet", "-k", "0", stderr=subprocess.STDOUT)
        sys.stderr.write(done.stdout)
        failed = self._remove_stale(folder, outputs) if done.returncode else []
        built = {library.module for library in LIBRARIES}
        needed = {"lib.ops": "torch"} | ({} if is_cross() else {"_C": "pybind11"})
        for module, package in needed.items():
            if module not in built:
                failed.append(f"{module} ({package} is not installed here)")
        error = re.search(r".*error: .*|.*: not found.*", done.stdout)
        why = f": {error[0].strip()}" if error else ""
        write_note(base, f"{', '.join(failed)}{why}" if failed else None)

    def _ninja(self, folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        program = shutil.which("ninja", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
        if program is None:
            raise SystemExit("fastdiff: not compiled: there is no ninja (pip install ninja)")
        command = [program, "-f", str(folder / "build.ninja"), *arguments]
        return subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, **options)

    def _remove_stale(self, folder: Path, outputs: dict[Library, Path]) -> list[str]:
        """A library that does not match its sources is worse than none."""
        targets = {
            path: os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else path
            for path in outputs.values()
        }
        plans = {path: self._ninja(folder, "-n", str(target)).stdout for path, target in targets.items()}
        failed = [path for path, plan in plans.items() if "no work to do" not in plan]
        for path in failed:
            path.unlink(missing_ok=True)
        return [path.name for path in failed]


class Wheel(bdist_wheel):
    """Without fastdiff._C nothing in it depends on the Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, system = super().get_tag()
        if self.root_is_pure or any(library.module == "_C" for library in LIBRARIES):
            return python, abi, system
        return "py3", "none", system


def readme(pages: str) -> str:
    """README.md, with its relative links below the address ``pages`` (as they are without one)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not pages:
        return text
    raw = re.sub(r"/blob/", "/raw/", pages)  # where a picture itself is, and not the page that shows it
    text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\g<1>{raw}/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?![a-z]+:|#)", rf"\g<1>{pages}/", text)


if is_cross():  # what setuptools and pip take for the platform
    os.environ["_PYTHON_HOST_PLATFORM"] = f"{platform.system().lower()}-{target()}"
NOTHING = why_not_compiled(platform.system(), WANTED, shutil.which(cxx()))
LIBRARIES = [] if NOTHING else libraries()
EXTENSIONS = [Extension(f"fastdiff.{library.module}", [], optional=True) for library in LIBRARIES]
PAGES = os.environ.get("FASTDIFF_REPOSITORY", "").rstrip("/")
if __name__ == "__main__":
    setup(
        ext_modules=EXTENSIONS,
        cmdclass={"bdist_wheel": Wheel, "build_ext": BuildWithNinja, "build_py": BuildPackage},
        long_description=readme(PAGES),
        long_description_content_type="text/markdown",
        project_urls={"Source": re.sub(r"/blob/.*", "", PAGES), "Documentation": f"{PAGES}/docs/README.md"}
        if PAGES
        else {},
    )
