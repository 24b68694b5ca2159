"""Rows of benchmarks/engine.py, and their Markdown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from engine_machine import SHARES
from timing import Timing


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

    def markdown(self) -> str:
        s = self.seconds
        cells = (
            self.side,
            self.dtype,
            f"{s.median * 1e3:.1f} ({s.low * 1e3:.1f} to {s.high * 1e3:.1f})",
            digits(self.images_per_second),
            f"**{self.ratio:.2f}x**",
            f"{self.direct_gflops:.0f}",
            f"{self.of_peak:.2f}",
            "" if self.error is None else f"{self.error:.1e}",
            "" if self.build_seconds is None else f"{self.build_seconds:.1f} s",
        )
        return f"| {' | '.join(cells)} |"


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

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        title = (
            f"### {self.preset}, batch {self.batch}\n\n{self.parameters / 1e6:.1f} M parameters,"
            f" {self.direct_gflop_per_image:.3g} GFLOP an image."
        )
        head = "| | dtype | ms (20% to 80%) | images/s | ratio | GFLOP/s | of peak | error | built in |"
        rows = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|", *(row.markdown() for row in self.rows)]
        skipped = [f"Skipped: {reason}" for reason in self.skipped]
        return "\n\n".join([title, "\n".join(rows), *skipped, self._shares()])

    def _shares(self) -> str:
        lines = [f"| fastdiff's time | {' | '.join(SHARES)} |", f"|---|{'---:|' * len(SHARES)}"]
        for dtype, shares in self.profile.items():
            lines.append(f"| {dtype} | {' | '.join(f'{shares[kind]:.1%}' for kind in SHARES)} |")
        return "\n".join(lines)


def heading(about: dict[str, Any], machine: dict[str, float]) -> str:
    """Where and how it was measured, and what the columns mean."""
    return "\n\n".join(
        [
            ", ".join(f"{key} {value}" for key, value in about.items()),
            "Peak: torch.mm of {matmul_size:.0f}^3 reaches {matmul_float32_gflops:.0f} GFLOP/s in float32,"
            " {matmul_bfloat16_gflops:.0f} in bfloat16; copying {copy_megabytes:.0f} MB, {copy_gb_per_s:.1f} GB/s"
            " read and written.".format(**machine),
            "Ratio: times as fast as eager, float32, contiguous. GFLOP/s: as if every convolution were computed"
            " directly, so that Winograd may exceed the peak, which is float32's in every row. Error: relative L2"
            " against float64 on the same weights and inputs.",
        ]
    )
