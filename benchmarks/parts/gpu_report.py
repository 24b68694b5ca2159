"""The short table that ``make gpu`` ends with."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from fastdiff.bench import machine
from fastdiff.bench.report import table
from parts.gpu_models import FULL
from parts.gpu_store import Store

OURS = ("cuda", "triton", "cpu")


def _best(row: dict[str, Any]) -> float | None:
    found = [row["seconds"][side]["median"] for side in OURS if side in row["seconds"]]
    return min(found) if found else None


def _ratio(row: dict[str, Any], side: str) -> float | None:
    best = _best(row)
    return row["seconds"][side]["median"] / best if best and side in row["seconds"] else None


def _of_ceiling(row: dict[str, Any]) -> float | None:
    best = _best(row)
    return row["ceiling_seconds"] / best if best and row["ceiling_seconds"] else None


def _cell(values: list[float | None], form: str = "{:.2f}") -> str:
    """The median, with the least and the most."""
    found = [v for v in values if v is not None]
    if not found:
        return ""
    middle = form.format(statistics.median(found))
    return middle if len(found) == 1 else f"{middle} ({form.format(min(found))} to {form.format(max(found))})"


def ops_table(store: Store) -> list[str]:
    """Per op, direction and dtype: ratios to eager and to the compiler, and the fraction of the ceiling."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    compiled: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for rows, kept in ((store.part("ops"), groups), (store.part("ops-compile"), compiled)):
        for row in rows.values():
            kept[row["op"], row["direction"], row["dtype"]].append(row)
    head = ("op", "direction", "dtype", "cases", "x eager", "x torch.compile", "of the ceiling")
    body = []
    for key, rows in groups.items():
        ratios = (
            _cell([_ratio(r, "eager") for r in rows]),
            _cell([_ratio(r, "compile") for r in compiled[key]]),
        )
        body.append((*key, str(len(rows)), *ratios, _cell([_of_ceiling(row) for row in rows])))
    return [table(head, body)] if body else []


def times_table(
    head: tuple[str, ...], rows: list[tuple[tuple[str, ...], dict[str, Any]]], form: str
) -> list[str]:
    """Milliseconds of every side, of one step when sampling.

    Args:
        head: of what identifies a row.
        rows: what identifies a row, and the row.
        form: of a number.
    """
    sides = list(dict.fromkeys(side for _, row in rows for side in row["seconds"]))
    body = []
    for name, row in rows:
        per = 1e3 / row.get("steps", 1)
        seconds = row["seconds"]
        body.append(
            (*name, *(form.format(seconds[s]["median"] * per) if s in seconds else "" for s in sides))
        )
    return [table((*head, *sides), body)] if body else []


def attention_table(store: Store) -> list[str]:
    rows = store.part("attention").values()
    named = [((row["case"], row["dtype"], row["direction"]), row) for row in rows]
    return times_table(("attention, ms", "dtype", "direction"), named, "{:.3f}")


def models_table(store: Store, part: str, title: str) -> list[str]:
    rows = [*store.part(part).values(), *store.part(f"{part}-compile").values()]
    return times_table((title, "batch"), [((r["preset"], str(r["batch"])), r) for r in rows], "{:.2f}")


def programs(store: Store) -> list[str]:
    lines = []
    for part in ("build", "tests", "sanitizer"):
        for name, row in store.part(part).items():
            counts = ", ".join(f"{n} {kind}" for kind, n in row.get("counts", {}).items())
            lines.append(
                f"{part} {name}: {'ok' if row['ok'] else 'FAILED'} {counts} ({row['seconds']:.0f} s)"
            )
    return lines


def not_timed(store: Store) -> list[str]:
    """Sides that were left out, each reason once."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for key, row in store.rows.items():
        for side, why in row.get("wrong", {}).items():
            reasons[f"{key.partition('/')[0]}, {side}: {why}"].append(key)
    return [f"not timed: {why} ({len(keys)} times, first {keys[0]})" for why, keys in reasons.items()]


def report(store: Store) -> str:
    parts = [[machine.in_words(store.about)], programs(store)]
    if found := store.rows.get("ceilings/speed"):
        peaks = ", ".join(f"{name} {value:.3g}" for name, value in found["matmul_tflops"].items())
        parts.append(
            [f"ceilings: copy {found['copy_gb_per_s']:.4g} GB/s read and written; products, TFLOP/s: {peaks}"]
        )
    parts += [ops_table(store), attention_table(store)]
    parts.append(models_table(store, "models", "sampling, ms a step"))
    parts.append(models_table(store, "training", "forward and backward, ms"))
    parts.append(not_timed(store))
    first_lines = [f"skipped: {key}: {why.partition(chr(10))[0]}" for key, why in store.skipped.items()]
    parts.append(first_lines[:20] + ([f"... {len(first_lines)} in all"] if len(first_lines) > 20 else []))
    note = f"images/s of {FULL} steps are in {store.path.name}" if store.part("models") else ""
    return "\n\n".join("\n".join(lines) for lines in [*parts, [note]] if any(lines))
