"""The compilers that see the GPU's code where there is no GPU, and what they say about it."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROVEN = ROOT / "tests" / "gpu" / "proven.json"  # the hash of each proof's sources
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
KERNEL_SOURCES = [path for path in CUDA_SOURCES if path.stem != "library"]  # which has no kernel
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")


@dataclass(frozen=True)
class Usage:
    """What one kernel asks of one architecture."""

    kernel: str
    arch: str  # "sm_90"
    registers: int
    stack: int  # bytes of local memory a thread
    spills: int  # bytes written to local memory for want of registers


def build_emulated(*extra: str) -> Path:
    """csrc/cuda compiled for the CPU (csrc/emulation); rebuilt where a source is newer."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "cuda_emulated.lock", "w") as lock:  # several processes may ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_emulated(*extra)


def _build_emulated(*extra: str) -> Path:
    inputs = [*CUDA_SOURCES, *ROOT.glob("csrc/c[uo]*/*.*h"), *ROOT.glob("csrc/emulation/*.h")]
    target = ROOT / "build" / f"cuda_emulated{'_sanitized' if extra else ''}.so"
    if target.exists() and all(target.stat().st_mtime > path.stat().st_mtime for path in inputs):
        return target
    # Compiling takes longer than all that is run.
    flags = [
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
        "-fPIC",
    ]
    with tempfile.TemporaryDirectory() as folder:
        objects = {source: f"{folder}/{source.stem}.o" for source in CUDA_SOURCES}
        compilers = [
            subprocess.Popen(
                ["g++", *flags, *extra, f"-I{ROOT / 'csrc'}", "-x", "c++", "-c", str(source), "-o", out],
                stderr=subprocess.PIPE,
                text=True,
            )
            for source, out in objects.items()
        ]
        for compiler in compilers:
            _, errors = compiler.communicate()
            assert compiler.returncode == 0, errors
        link = ["g++", "-shared", *extra, *objects.values(), "-o", str(target)]
        subprocess.run(link, check=True)
    return target


def remembered(files: Iterable[Path], words: Sequence[str], work: Callable[[], list[Any]]) -> list[Any]:
    """What ``work`` returned for files of this content and these words (flags, versions): kept in build/proofs."""
    known = ROOT / "build" / "proofs" / f"{digest(files, words)}.json"
    if known.exists():
        return json.loads(known.read_text())
    result = work()
    known.parent.mkdir(parents=True, exist_ok=True)
    unfinished = known.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(known)
    return result


def digest(files: Iterable[Path], words: Sequence[str]) -> str:
    """A hash of words and files; of Python's, without comments, docstrings and layout."""
    found = hashlib.sha256("\0".join(words).encode())
    for file in sorted(files):
        text = file.read_text(encoding="utf-8")
        found.update(f"\0{file.name}\0{_code(text) if file.suffix == '.py' else text}".encode())
    return found.hexdigest()


def _code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def prove(name: str, found: str, work: Callable[[], None]) -> None:
    """Do ``work``, which raises where a promise is broken, unless PROVEN says that it was done for this hash.

    PROVEN is kept in the repository, and written here: a changed kernel's new hash is committed with the kernel.
    ``FASTDIFF_PROVEN=ignore`` does all the work again.
    """
    if _proven().get(name) == found and os.environ.get("FASTDIFF_PROVEN") != "ignore":
        return
    work()
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "proven.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = sorted({**_proven(), name: found}.items())
        PROVEN.write_text(json.dumps(dict(rows), indent=1) + "\n")


def _proven() -> dict[str, str]:
    return json.loads(PROVEN.read_text()) if PROVEN.exists() else {}


def included(source: Path) -> set[Path]:
    """A file of csrc and all of csrc that it includes."""
    found, to_read = set(), {source}
    while to_read:
        file = to_read.pop()
        found.add(file)
        names = re.findall(r'^#include "(.+)"', file.read_text(), flags=re.MULTILINE)
        to_read |= {ROOT / "csrc" / name for name in names} - found
    return found


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


@functools.cache
def _nvcc_version() -> str:
    return subprocess.run([str(find_nvcc()), "--version"], capture_output=True, text=True, check=True).stdout


def nvcc_usage(source: Path, arch: int, folder: Path) -> list[Usage]:
    """Compiles one file as setup.py would, and reads what ptxas says of each kernel."""
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v"]

    def work() -> list[dict[str, Any]]:
        files = ["-c", str(source), "-o", str(folder / "kernels.o")]
        command = [str(find_nvcc()), *flags, f"-I{ROOT / 'csrc'}", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [asdict(usage) for usage in _parse_ptxas(done.stderr)]

    return [Usage(**row) for row in remembered(included(source), [_nvcc_version(), *flags], work)]


def _parse_ptxas(text: str) -> list[Usage]:
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers",
        text,
        flags=re.DOTALL,
    )
    return [
        Usage(kernel, arch, int(registers), int(stack), int(spills))
        for kernel, arch, stack, spills, registers in found
    ]


def find_nvrtc() -> Path | None:
    """NVRTC of CUDA 12, which still knows sm_70, from its wheel."""
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in Path(folder).glob("lib/libnvrtc.so.12")]
    return found[0] if found else None


_CSTDINT = """
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long int64_t; typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;
"""


def nvrtc_usage(header: str, kernels: Sequence[str], arch: int, folder: Path) -> list[Usage]:
    """The named kernels of csrc/<header>, instantiated for an architecture that nvcc may have dropped."""

    def work() -> list[dict[str, Any]]:
        return [asdict(u) for u in _cubin_usage(_nvrtc_cubin(header, kernels, arch), arch, folder)]

    version = importlib.metadata.version("nvidia-cuda-nvrtc-cu12")
    words = ["NVRTC", version, str(arch), *kernels]
    return [Usage(**row) for row in remembered(included(ROOT / "csrc" / header), words, work)]


def _nvrtc_cubin(header: str, kernels: Sequence[str], arch: int) -> bytes:
    path = find_nvrtc()
    assert path
    nvrtc = ctypes.CDLL(str(path))
    program = ctypes.c_void_p()
    one = ctypes.c_char_p * 1
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), f'#include "{header}"\n'.encode(), b"kernels.cu", 1,
        one(_CSTDINT.encode()), one(b"cstdint"),
    )  # fmt: skip
    for kernel in kernels:
        nvrtc.nvrtcAddNameExpression(program, f"&{kernel}".encode())
    flags = [
        f"--gpu-architecture=sm_{arch}",
        "--std=c++17",
        "-default-device",
        f"--include-path={ROOT / 'csrc'}",
    ]
    options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def find_cuobjdump() -> str | None:
    """CUDA's, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    beside = (
        Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    )
    return shutil.which("cuobjdump") or (str(beside) if beside and beside.exists() else None)


def _cubin_usage(cubin: bytes, arch: int, folder: Path) -> list[Usage]:
    """Registers and local memory of each kernel of a cubin."""
    tool = find_cuobjdump()
    assert tool
    file = folder / "kernels.cubin"
    file.write_bytes(cubin)
    text = subprocess.run(
        [tool, "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True
    )
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text.stdout)
    return [
        Usage(kernel, f"sm_{arch}", int(registers), int(stack) + int(local), 0)
        for kernel, registers, stack, local in found
    ]


def table(rows: Sequence[Usage]) -> str:
    """One line a kernel: its registers on each architecture."""
    kernels = sorted({row.kernel for row in rows})
    return "\n".join(
        f"{kernel[:90]:<90} " + " ".join(f"{r.arch}: {r.registers:>3}" for r in rows if r.kernel == kernel)
        for kernel in kernels
    )
