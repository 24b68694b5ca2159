"""csrc/cuda/mma.cuh alone, emulated: against the tables of the PTX ISA, "Matrix fragments for mma.m16n8k16"."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
LANES = range(32)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the emulation with")
    target = tmp_path_factory.mktemp("mma") / "probe.so"
    flags = ["-std=c++17", "-O1", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", "-fPIC", "-shared"]
    source = Path(__file__).with_name("mma_probe.cu")
    subprocess.run(["g++", *flags, "-x", "c++", str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_mma(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 16, generator=g).to(dtype), torch.randn(16, 8, generator=g).to(dtype)
    c = torch.randn(16, 8, generator=g)
    a_lanes, b_lanes = torch.empty(32, 8, dtype=dtype), torch.empty(32, 4, dtype=dtype)
    c_lanes = torch.empty(32, 4)
    for lane in LANES:
        group, inside = lane // 4, lane % 4
        for i in range(8):
            row = group + (8 if i in (2, 3, 6, 7) else 0)
            a_lanes[lane, i] = a[row, 2 * inside + i % 2 + (8 if i >= 4 else 0)]
        for i in range(4):
            b_lanes[lane, i] = b[2 * inside + i % 2 + (8 if i >= 2 else 0), group]
            c_lanes[lane, i] = c[group + (8 if i >= 2 else 0), 2 * inside + i % 2]
    assert (
        probe.probe_mma(_pointer(a_lanes), _pointer(b_lanes), _pointer(c_lanes), dtype == torch.bfloat16) == 0
    )
    expected = c + a.float() @ b.float()
    for lane in LANES:
        rows, columns = [lane // 4, lane // 4 + 8], [lane % 4 * 2, lane % 4 * 2 + 1]
        torch.testing.assert_close(c_lanes[lane].view(2, 2), expected[rows][:, columns])


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(probe: ctypes.CDLL, transposed: bool) -> None:
    rows = torch.arange(256, dtype=torch.int16).view(4, 8, 8)  # matrix, row, column
    result = torch.empty(32, 4, 2, dtype=torch.int16)
    assert probe.probe_ldmatrix(_pointer(rows), _pointer(result), transposed) == 0
    for lane in LANES:
        for i in range(4):
            matrix = rows[i].T if transposed else rows[i]
            assert torch.equal(result[lane, i], matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2])


@pytest.mark.parametrize("pending", [0, 1, 2, 3])
def test_copies_arrive_with_the_wait_and_not_before(probe: ctypes.CDLL, pending: int) -> None:
    numbers = torch.arange(32 * 12, dtype=torch.float32).view(32, 3, 4)
    shown = torch.zeros(32, 3, 4)
    assert probe.probe_cp_async(_pointer(numbers), _pointer(shown), pending) == 0
    expected = numbers.clone()
    expected[5] = 0  # the lane whose copies are not valid
    arrived = 3 - pending
    assert torch.equal(shown[:, :arrived], expected[:, :arrived])
    assert shown[:, arrived:].isnan().all()
