"""Every CUDA kernel compiles without spills.

``make test`` compiles one instance of each by NVRTC; ``make proofs`` all of them, by nvcc for every architecture that
it knows and by NVRTC for the V100.
"""

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
# What uses tensor cores needs a later architecture.
MMA_KERNELS = {
    "cuda/attention_forward.cuh": [
        "fastdiff::attention::attention_forward_mma_kernel<fastdiff::BFloat16, 64>"
    ],
    "cuda/attention_backward.cuh": [
        "fastdiff::attention::attention_backward_dkdv_mma_kernel<fastdiff::BFloat16, 64, true, true>",
        "fastdiff::attention::attention_backward_dq_mma_kernel<fastdiff::BFloat16, 64>",
    ],
}


def _check(rows: list[toolchain.Usage]) -> None:
    print(toolchain.table(rows))
    for row in rows:
        assert row.stack == 0, f"{row.kernel} on {row.arch}: {row.stack} bytes of local memory"
        assert row.spills == 0, f"{row.kernel} on {row.arch}: {row.spills} bytes spilled"
        assert row.registers <= MOST_REGISTERS


def _one_of_each(kernels: list[str]) -> list[str]:
    """The first instance of each template."""
    return list({kernel.split("<")[0]: kernel for kernel in reversed(kernels)}.values())


@pytest.mark.proof
@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc: the CUDA sources are not compiled")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", toolchain.KERNEL_SOURCES, ids=lambda path: path.stem)
def test_nothing_spills(source: Path, arch: int, tmp_path: Path) -> None:
    rows = toolchain.nvcc_usage(source, arch, tmp_path)
    assert rows
    _check(rows)


@pytest.mark.skipif(toolchain.find_nvrtc() is None, reason="no NVRTC of CUDA 12 (nvidia-cuda-nvrtc-cu12)")
@pytest.mark.skipif(toolchain.find_cuobjdump() is None, reason="no cuobjdump, of CUDA or of Triton")
@pytest.mark.parametrize(
    ("header", "kernels", "arch"),
    [
        *(pytest.param(h, _one_of_each(k), 70, id=f"{h}-one") for h, k in NVRTC_KERNELS.items()),
        *(pytest.param(h, k, 90, id=f"{h}-one") for h, k in MMA_KERNELS.items()),
        *(pytest.param(h, k, 70, id=h, marks=pytest.mark.proof) for h, k in NVRTC_KERNELS.items()),
    ],
)
def test_nothing_spills_by_nvrtc(header: str, kernels: list[str], arch: int, tmp_path: Path) -> None:
    rows = toolchain.nvrtc_usage(header, kernels, arch, tmp_path)
    assert len(rows) == len(kernels)
    _check(rows)


@pytest.mark.parametrize("header", sorted((toolchain.ROOT / "csrc/cuda").glob("*.cuh")), ids=lambda p: p.name)
def test_device_code_knows_no_torch(header: Path) -> None:
    text = header.read_text()
    assert "torch" not in text.replace("torch's", "") and "ATen" not in text
