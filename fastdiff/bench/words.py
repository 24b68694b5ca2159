"""Results as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence


def columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Plain text in columns, for a terminal; ``right`` are the numbers of the columns that end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def seconds_in_words(seconds: float) -> str:
    """Two digits and a unit: "35 ms", "1.8 s", "2.4 min"."""
    units = (("ms", 1e-3), ("s", 1.0), ("min", 60.0))
    unit, length = next((u for u in units if seconds < 99.5 * u[1]), ("h", 3600.0))
    return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f} {unit}"
