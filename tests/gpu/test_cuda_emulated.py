"""The CUDA kernels on the CPU, a GPU's threads as fibers: values, gradients, noise, and the order of threads.

The generic cases run in processes of their own, which find the library by the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toolchain
import torch

from fastdiff.backend import use_backend
from fastdiff.ops import AdamWHyper, adamw_ema, first_passage, normal, random_bits
from fastdiff.ops.decision import METHODS, PARAMETERS
from fastdiff.ops.reverse_step import reverse_step
from fastdiff.ops.reverse_step.cases import CASES

CASE_TESTS = Path(__file__).parents[1] / "ops" / "test_cases.py"
# Without the benchmarks' sizes, and what only takes longer.
LARGE = ("x256x", "4x128x", "16x3x64", "64x1x32", "4096x20", "B4", "B1-", "many_pixels", "several_blocks")
SMALL = " and not ".join(["emulation", *LARGE])


def _run_cases(chosen: str, library: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-k", chosen, str(CASE_TESTS)]
    environment = {
        **os.environ,
        "FASTDIFF_EMULATION_LIBRARY": str(library),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("order", ["forward", "shuffle"])
def test_cases(emulated_library: Path, order: str) -> None:
    """Another order of threads finds barriers that are missing."""
    assert " passed" in _run_cases(SMALL, emulated_library, FASTDIFF_EMULATION_ORDER=order)


def test_graphs_and_derivatives(emulated_library: Path) -> None:
    """Tracers, export, forward mode, vmap and second derivatives, of the ops that have a CUDA kernel."""
    environment = {"FASTDIFF_EMULATION_LIBRARY": str(emulated_library), "FASTDIFF_TEST_BACKEND": "emulation"}
    files = [str(CASE_TESTS.with_name(name)) for name in ("test_graphs.py", "test_transforms.py")]
    chosen = "not cpu and not reference and not f64 and not conv2d and not channel_moments and not norm_coefficients"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-k", chosen, *files],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_cases_touch_no_memory_of_others(emulated_library: Path) -> None:
    """AddressSanitizer and UBSan, once."""
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = found.stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no libasan")
    library = toolchain.build_emulated(*toolchain.SANITIZE)
    chosen = f"{SMALL} and (bf16 or f32) and (odd or 3_a_group or one or guidance or D96 or everything)"
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    assert " passed" in _run_cases(chosen, library, LD_PRELOAD=runtime, ASAN_OPTIONS=options)


@pytest.mark.parametrize(("count", "step", "stream", "first_block"), [(1, 0, 0, 0), (1027, 7, 3, 2**33 - 5)])
def test_random_bits_are_the_cpus(emulated_cuda: None, count, step, stream, first_block) -> None:
    seeds = torch.tensor([0, -1, -(2**63), 2**63 - 1])
    results = []
    for backend in ("emulation", "cpu"):
        with use_backend(backend):
            results.append(random_bits(seeds, count, step=step, stream=stream, first_block=first_block))
    assert torch.equal(*results)


def test_normals_are_the_cpus_to_rounding(emulated_cuda: None) -> None:
    seeds = torch.arange(5)
    results = []
    for backend in ("emulation", "cpu"):
        with use_backend(backend):
            results.append(normal(seeds, (3, 33, 31), step=4))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_a_step_is_the_same_whatever_the_layout(emulated_cuda: None) -> None:
    case = next(c for c in CASES if c.name == "learned_range-odd")
    kwargs = case.inputs(torch.float32, "cpu")
    with use_backend("emulation"):
        one = reverse_step(**kwargs)
        last = {
            k: v.contiguous(memory_format=torch.channels_last)
            for k, v in kwargs.items()
            if isinstance(v, torch.Tensor) and v.dim() == 4
        }
        two = reverse_step(**kwargs | last)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_index_that_is_no_row_gives_nan(emulated_cuda: None) -> None:
    kwargs = next(c for c in CASES if c.name == "plain").inputs(torch.float32, "cpu")
    with use_backend("emulation"):
        assert reverse_step(**kwargs | {"index": torch.tensor(3)})[0].isnan().all()


WAYS = pytest.mark.parametrize(
    ("method", "every_step"), [(method, every) for method in METHODS for every in (False, True)]
)


@WAYS
def test_walks_are_the_cpus_to_rounding(emulated_cuda: None, method, every_step: bool) -> None:
    n = 1003
    rows = {"v": (-3, 3), "a": (0.5, 3), "z": (0.2, 1.2), "t0": (0.1, 0.3), "s": (1, 1)}
    rows |= {"sv": (0, 1), "sz": (0, 0.1), "st0": (0, 0.2)}
    parameters = {name: torch.linspace(*rows[name], n) for name in PARAMETERS}
    parameters["z"][5] = 100.0  # outside the boundaries
    results = []
    for backend in ("emulation", "cpu"):
        with use_backend(backend):
            how = {"method": method, "dt": 0.01, "t_max": 1.5, "every_step": every_step}
            results.append(first_passage(torch.arange(n), **parameters, **how))
    cuda, cpu = results
    same = cuda.choice == cpu.choice
    assert float(same.float().mean()) > 0.998  # rounding may tip a decision, rarely
    assert cuda.rt[5].isnan() and cuda.choice[5] == -1
    torch.testing.assert_close(cuda.rt[same], cpu.rt[same], rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(cuda.position[same], cpu.position[same], rtol=1e-3, atol=1e-3, equal_nan=True)


@WAYS
@pytest.mark.parametrize(("v", "s"), [(1e9, 1e-4), (-1e9, 1e-4), (0.0, 1e-12), (900.0, 1.0)])
def test_walks_that_would_not_end_are_the_cpus(emulated_cuda: None, method, every_step: bool, v, s) -> None:
    values = {"v": v, "a": 1.4, "z": 0.75, "s": s}
    p = {name: torch.tensor(values.get(name, 0.0)).expand(33) for name in PARAMETERS}
    results = []
    for backend in ("emulation", "cpu"):
        with use_backend(backend):
            results.append(first_passage(torch.arange(33), **p, method=method, every_step=every_step))
    for cuda, cpu in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-5, atol=2e-10, equal_nan=True)


@pytest.mark.parametrize("grads", ["float32", "bfloat16"])
def test_updates_are_the_cpus_to_rounding(emulated_cuda: None, grads: str) -> None:
    """Tensors that lie anywhere, one without elements, a gradient that lies otherwise."""
    results = []
    for backend in ("emulation", "cpu"):
        g = torch.Generator().manual_seed(0)
        shapes = ((4, 3, 3, 2), (0,), (17,), (20_000,), ())
        p, grad, m, v, e = ([torch.randn(shape, generator=g) for shape in shapes] for _ in range(5))
        for state in (p, m, v, e):
            state[0] = state[0].contiguous(memory_format=torch.channels_last)
            state[3] = torch.cat([state[3], state[3][:1]])[1:]
        v, steps = [t.abs() for t in v], [torch.full((), 3.0) for _ in p]
        low = [t.half() for t in p]
        with use_backend(backend):
            grad = [t.to(getattr(torch, grads)) for t in grad]
            adamw_ema(p, grad, m, v, steps, AdamWHyper(lr=0.1, decays=(0.9,)), emas=[e], low=low)
        assert all(k == 4 for k in steps)
        results.append([*p, *m, *v, *e, *low])
    torch.testing.assert_close(*results)


def test_emulation_tells_of_threads_that_wait_for_ever(tmp_path: Path) -> None:
    """A barrier that only half of the threads reach."""
    source = tmp_path / "stuck.cu"
    source.write_text(
        '#include "cuda/launch.cuh"\n'
        "__global__ void kernel(int*) { if (threadIdx.x < 16) __syncthreads(); else fastdiff::cluster_sync(); }\n"
        "int main() { int* none = nullptr;"
        " return fastdiff::launch(kernel, fastdiff::Launch{dim3{1}, 32}, nullptr, none); }\n"
    )
    program = tmp_path / "stuck"
    include = f"-I{toolchain.ROOT / 'csrc'}"
    subprocess.run(["g++", "-std=c++17", include, "-x", "c++", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode != 0 and "32 threads wait at barriers" in done.stderr
