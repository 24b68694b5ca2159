"""The dispatch table of ``fastdiff/ops/_measured.py``, from the rows that were measured."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastdiff.files import atomic_path
from fastdiff.ops import _measured
from fastdiff.ops._op import OPS
from parts.gpu_store import Store

KERNELS = ("cuda", "triton", "cpu")
LIBRARY = ("eager", *(f"eager:{kernel}" for kernel in _measured.LIBRARY_KERNELS))


def fastest(rows: list[dict[str, Any]], allowed: tuple[str, ...]) -> str | None:
    """The side with the least geometric mean of times, of those that are right in every row; None without rows."""
    common = set.intersection(*(set(row["seconds"]) for row in rows)) if rows else set()
    sides = [name for name in allowed if name in common]

    def mean(side: str) -> float:
        return math.fsum(math.log(row["seconds"][side]["median"]) for row in rows)

    return min(sides, key=mean) if sides else None


def entry(store: Store) -> dict[str, Any]:
    """What the table says of this device."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in store.part("ops").values():
        name = f"{row['op']}_backward" if row["direction"] == "backward" else row["op"]
        if name in OPS:
            groups[name, row["class"]].append(row)
    for row in store.part("attention").values():
        name = {"forward": "attention", "backward": "attention_backward", "training": "attention_training"}
        groups[name[row["direction"]], row["class"]].append(row)
    ops: dict[str, dict[str, str]] = defaultdict(dict)
    for (op, kind), rows in sorted(groups.items()):
        # The backward of a call of ours is ours; whether a call is, its forward or its training decides.
        allowed = (*KERNELS, *LIBRARY) if op in ("attention", "attention_training") else KERNELS
        best = fastest(rows, allowed)
        if best is not None:
            ops[op][kind] = best
    about = store.about
    return {**{k: about[k] for k in ("capability", "date", "torch", "triton")}, "ops": dict(ops)}


def write(store: Store, path: Path) -> None:
    """Merge this device's entry into the table at ``path``, for this process too; nothing measured, nothing written."""
    found = entry(store)
    if not found["ops"]:
        return
    content = json.loads(path.read_text()) if path.exists() else {"devices": {}}
    content["devices"][store.about["processor"]] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as target:
        Path(target).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    _measured.table.cache_clear()
    _measured.entry.cache_clear()
