"""Every CUDA kernel, compiled for every architecture that nvcc knows, and for the V100 by NVRTC: nothing spills."""

from __future__ import annotations

from pathlib import Path

import pytest
import toolchain

ARCHITECTURES = (75, 80, 90, 100, 120)
MOST_REGISTERS = 255  # of a thread, in hardware
# Device code that NVRTC instantiates for sm_70, which CUDA 13 dropped.
ELEMENTS = ("float", "fastdiff::BFloat16", "fastdiff::Float16")
HEADS = (32, 64, 96, 128, 192, 256)


def _tile_kernels(direction: str) -> list[str]:
    """group_norm_silu's, by element, layout, and elements of a pack: 16 bytes or one."""
    name = f"fastdiff::group_norm::group_norm_silu_{direction}_tile_kernel"
    return [
        f"{name}<{element}, {last}, {vec}>"
        for element in ELEMENTS
        for last in ("false", "true")
        for vec in (4 if element == "float" else 8, 1)
    ]


def _plain_kernels(*names: str) -> list[str]:
    return [f"fastdiff::attention::attention_{name}_plain_kernel<{d}>" for name in names for d in HEADS]


NVRTC_KERNELS = {
    "cuda/adamw_ema.cuh": [
        "fastdiff::adamw::adamw_ema_count_kernel",
        *(f"fastdiff::adamw::adamw_ema_kernel<{grad}>" for grad in ELEMENTS),
    ],
    "cuda/philox.cuh": [f"fastdiff::philox_op::philox_kernel<{kind}>" for kind in ("true", "false")],
    "cuda/reverse_step.cuh": ["fastdiff::step::reverse_step_kernel"],
    "cuda/bernoulli_step.cuh": ["fastdiff::bernoulli::bernoulli_step_kernel"],
    "cuda/decision.cuh": [
        f"fastdiff::decision::decision_kernel<fastdiff::decision::{method}>"
        for method in ("Exact", "Bridge", "Euler")
    ],
    "cuda/group_norm_silu_forward.cuh": [
        *_tile_kernels("forward"),
        *(f"fastdiff::group_norm::group_norm_silu_forward_merge_kernel<{b}>" for b in ("false", "true")),
    ],
    "cuda/group_norm_silu_backward.cuh": [
        *_tile_kernels("backward"),
        "fastdiff::group_norm::group_norm_silu_backward_merge_kernel",
        "fastdiff::group_norm::group_norm_silu_backward_parameters_kernel",
    ],
    "cuda/attention_delta.cuh": ["fastdiff::attention::attention_delta_kernel"],
    "cuda/attention_plain.cuh": _plain_kernels("forward"),
    "cuda/attention_plain_backward.cuh": _plain_kernels("backward_dkdv", "backward_dq"),
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
