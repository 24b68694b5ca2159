"""Every CUDA kernel, compiled for every architecture that nvcc knows, and for the V100 by NVRTC: nothing spills."""

from __future__ import annotations

from pathlib import Path

import pytest
import toolchain

ARCHITECTURES = (75, 80, 90, 100, 120)
MOST_REGISTERS = 255  # of a thread, in hardware
# Device code that NVRTC instantiates for sm_70, which CUDA 13 dropped.
NVRTC_KERNELS = {
    "cuda/adamw_ema.cuh": [
        f"fastdiff::adamw::adamw_ema_kernel<{grad}>"
        for grad in ("float", "fastdiff::BFloat16", "fastdiff::Float16")
    ],
    "cuda/philox.cuh": [f"fastdiff::philox_op::philox_kernel<{kind}>" for kind in ("true", "false")],
    "cuda/reverse_step.cuh": ["fastdiff::step::reverse_step_kernel"],
    "cuda/decision.cuh": [
        f"fastdiff::decision::decision_kernel<fastdiff::decision::{method}>"
        for method in ("Exact", "Bridge", "Euler")
    ],
}


def _check(rows: list[toolchain.Usage]) -> None:
    print(toolchain.table(rows))
    for row in rows:
        assert row.stack == 0, f"{row.kernel} on {row.arch}: {row.stack} bytes of local memory"
        assert row.spills == 0, f"{row.kernel} on {row.arch}: {row.spills} bytes spilled"
        assert row.registers <= MOST_REGISTERS


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc: the CUDA sources are not compiled")
@pytest.mark.parametrize("source", toolchain.KERNEL_SOURCES, ids=lambda path: path.stem)
def test_nothing_spills(source: Path, tmp_path: Path) -> None:
    rows = toolchain.nvcc_usage(source, ARCHITECTURES, tmp_path)
    assert {row.arch for row in rows} == {f"sm_{a}" for a in ARCHITECTURES}
    _check(rows)


@pytest.mark.skipif(toolchain.find_nvrtc() is None, reason="no NVRTC of CUDA 12 (nvidia-cuda-nvrtc-cu12)")
@pytest.mark.skipif(toolchain.find_cuobjdump() is None, reason="no cuobjdump, of CUDA or of Triton")
@pytest.mark.parametrize("header", NVRTC_KERNELS)
def test_nothing_spills_on_a_v100(header: str, tmp_path: Path) -> None:
    kernels = NVRTC_KERNELS[header]
    rows = toolchain.cubin_usage(toolchain.nvrtc_cubin(header, kernels, 70), 70, tmp_path)
    assert len(rows) == len(kernels)
    _check(rows)


@pytest.mark.parametrize("header", sorted((toolchain.ROOT / "csrc/cuda").glob("*.cuh")), ids=lambda p: p.name)
def test_device_code_knows_no_torch(header: Path) -> None:
    text = header.read_text()
    assert "torch" not in text.replace("torch's", "") and "ATen" not in text
