"""Rows of benchmarks/models.py, their Markdown, and where an optimized network spends its time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType

from fastdiff.bench import machine
from fastdiff.bench.clock import Timing
from fastdiff.bench.report import table

SHARES: tuple[str, ...] = (
    "conv2d 3x3",
    "conv2d 1x1",
    "attention",
    "norm coefficients",
    "other convolutions",
    "rest",
)


def digits(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


@dataclass(frozen=True)
class Row:
    """One side on one setting."""

    side: str
    dtype: str
    seconds: Timing  # of one call
    ratio: float  # times as fast as eager, float32, contiguous
    images_per_second: float
    direct_gflops: float  # per second, were every convolution computed directly
    of_peak: float  # the same as a fraction of the float32 matmul peak; Winograd may exceed 1
    error: float | None  # relative L2 against float64; None where that was not asked for
    build_seconds: float | None

    def cells(self, eager: float) -> tuple[str, ...]:
        """``eager``: seconds of the faster layout of eager PyTorch in this dtype."""
        s = self.seconds
        return (
            self.side,
            self.dtype,
            f"{s.median * 1e3:.1f} ({s.low * 1e3:.1f} to {s.high * 1e3:.1f})",
            digits(self.images_per_second),
            f"**{self.ratio:.2f}x**",
            f"{eager / s.median:.2f}x",
            f"{self.direct_gflops:.0f}",
            f"{self.of_peak:.2f}",
            "" if self.error is None else f"{self.error:.1e}",
            "" if self.build_seconds is None else f"{self.build_seconds:.1f} s",
        )


@dataclass(frozen=True)
class Result:
    """All sides on one setting, measured turn by turn."""

    preset: str
    batch: int
    parameters: int
    direct_gflop_per_image: float
    rows: list[Row]
    profile: dict[str, dict[str, float]] = field(default_factory=dict)  # dtype -> shares
    skipped: list[str] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """What is the same for all rows of the setting."""
        return {key: value for key, value in asdict(self).items() if key != "rows"}

    def json_rows(self) -> list[dict[str, Any]]:
        return [{"preset": self.preset, "batch": self.batch, **asdict(row)} for row in self.rows]

    def markdown(self) -> str:
        title = (
            f"### {self.preset}, batch {self.batch}\n\n{self.parameters / 1e6:.1f} M parameters,"
            f" {self.direct_gflop_per_image:.3g} GFLOP an image."
        )
        head = (
            "",
            "dtype",
            "ms (20% to 80%)",
            "images/s",
            "ratio",
            "to its eager",
            "GFLOP/s",
            "of peak",
            "error",
            "built in",
        )
        skipped = [f"Skipped: {reason}" for reason in self.skipped]
        body = [row.cells(self._eager(row.dtype)) for row in self.rows]
        return "\n\n".join([title, table(head, body), *skipped, self._shares()])

    def _eager(self, dtype: str) -> float:
        return min(
            row.seconds.median for row in self.rows if row.side.startswith("eager") and row.dtype == dtype
        )

    def _shares(self) -> str:
        body = [
            (dtype, *(f"{shares[kind]:.1%}" for kind in SHARES)) for dtype, shares in self.profile.items()
        ]
        return table(("fastdiff's time", *SHARES), body)


def shares_of_time(run: Callable[[], object], calls: int = 3) -> dict[str, float]:
    """Shares of the self time of all operators, by kind. Python between them is not in it."""
    run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as found:
        for _ in range(calls):
            run()
    shares: dict[str, float] = dict.fromkeys(SHARES, 0.0)
    for event in found.key_averages(group_by_input_shape=True):
        if event.device_type == DeviceType.CPU:
            shares[_kind(event.key, event.input_shapes)] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: time / total for kind, time in shares.items()}


def _kind(op: str, shapes: list[list[int]]) -> str:
    if op == "fastdiff::conv2d":
        return "conv2d 3x3" if shapes[1][-1] == 3 else "conv2d 1x1"  # arguments: x, weight, ...
    if op in ("fastdiff::attention", "fastdiff::norm_coefficients"):
        return op.removeprefix("fastdiff::").replace("_", " ")
    return "other convolutions" if "conv" in op.lower() else "rest"


def heading(about: dict[str, Any], peak: dict[str, Any]) -> str:
    """Where and how it was measured, and what the columns mean."""
    gflops, copied = peak["matmul_gflops"], peak["copy_gb_per_s"]["memory"]
    return "\n\n".join(
        [
            machine.in_words(about),
            f"Peak: a product of {peak['matmul_size']}^3 reaches {gflops['float32']:.0f} GFLOP/s in float32,"
            f" {gflops['bfloat16']:.0f} in bfloat16; a copy beyond every cache, {copied:.1f} GB/s read and written.",
            "Ratio: times as fast as eager, float32, contiguous; to its eager: as eager in the same"
            " dtype, in its faster layout. GFLOP/s: as if every convolution were computed"
            " directly, so that Winograd may exceed the peak, which is float32's in every row. Error: relative L2"
            " against float64 on the same weights and inputs.",
        ]
    )
