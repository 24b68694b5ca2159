"""Settings every test runs under, and what the suite says of its time."""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As many processes as cores: one thread each, also for their children.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# Triton's kernels then run on the CPU's tensors. It must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import programs
import toolchain

from fastdiff.backend import Backend
from fastdiff.ops._library import LIBRARIES


@pytest.fixture(autouse=True)
def _state_of_the_process() -> Iterator[None]:
    """What a test changes of PyTorch's settings is over with it."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proofs", action="store_true", help="run what `make test` leaves out, and that alone")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proof: takes minutes, or repeats in full what another test samples")
    config.addinivalue_line("markers", "large: a case of the size that a network has")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test is a proof or not: `make test` runs the one kind, `make proofs` the other."""
    wanted = config.getoption("--proofs")
    kinds: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        kinds[item.get_closest_marker("proof") is not None].append(item)
    config.hook.pytest_deselected(items=kinds[not wanted])
    items[:] = kinds[wanted]


def pytest_collection_finish() -> None:
    """Python's collector skips ten thousand tests and all modules, which took a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Or Triton's bindings complain of what is left at the end."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of an ``xdist_group``, so that what they share is made once.

    xdist 3.8 writes groups into the names of tests, which pytest 9.2 does not let it do. The process that distributes
    tests knows nothing but their names; a group is therefore that of a whole file.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::")[0]) or nodeid

    return ByGroup(config, log)


@functools.cache
def _group(file: str) -> str | None:
    """The name in a file's ``xdist_group``."""
    found = re.search(r"xdist_group\(\"(\w+)\"\)", (toolchain.ROOT / file).read_text(encoding="utf-8"))
    return found and found[1]


@pytest.fixture(autouse=True)
def _poison_empty_memory() -> Iterator[None]:
    """``torch.empty`` yields NaN, so that a kernel that leaves an element unwritten is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The CUDA kernels compiled for the CPU; built where it is not there yet."""
    if given := os.environ.get("FASTDIFF_EMULATION_LIBRARY"):
        return Path(given)
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the emulation with")
    return toolchain.build_emulated()


@pytest.fixture(scope="session")
def emulated_cuda(emulated_library: Path) -> None:
    """``use_backend("emulation")`` runs the CUDA kernels on the CPU's tensors, from here on.

    In an order of threads that changes from launch to launch: where a barrier is missing, values are wrong.
    """
    os.environ.setdefault("FASTDIFF_EMULATION_ORDER", "shuffle")
    LIBRARIES.open(Backend.EMULATION, emulated_library, "")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The parameter of ``backends.each``, for ``use_backend``."""
    if request.param is Backend.EMULATION:
        request.getfixturevalue("emulated_cuda")
    return request.param


def _cpu_seconds() -> float:
    """CPU time of this process, of its children that have ended, and of the programs that :mod:`programs` runs."""
    return sum(os.times()[:4]) + programs.seconds


_counted = _cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """The report of each phase of a test carries the CPU time since the one before, across processes too."""
    global _counted
    report = yield
    now = _cpu_seconds()
    report.cpu, _counted = now - _counted, now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """CPU time of each folder and of the ten most expensive files."""
    folders: dict[str, float] = defaultdict(float)
    files: dict[str, float] = defaultdict(float)
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if hasattr(report, "cpu"):
            file = Path(report.nodeid.split("::")[0])
            files[str(file)] += report.cpu
            folders[str(file.parent)] += report.cpu
    if len(files) < 2:
        return
    terminalreporter.section("CPU time")
    most = int(os.environ.get("FASTDIFF_TEST_TIMES", 10))
    for name, seconds in [*_largest(folders, len(folders)), *_largest(files, most)]:
        terminalreporter.write_line(f"{seconds:8.1f}s {name}")


def _largest(seconds: dict[str, float], n: int) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])[:n]
