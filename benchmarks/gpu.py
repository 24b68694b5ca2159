"""How fast is everything on a GPU? Build, test, measure: ``make gpu``.

    python benchmarks/gpu.py [--part PART ...] [--minutes M] [--dry-run --device cpu]

Takes the Python that is there and installs nothing. Writes ``benchmarks/results/gpu-<device>.json`` row by row, and a
copy under $OUT if that is set; rows that are there are not measured again, so that a run that was cut off, or one of
nine minutes, goes on where the last one ended. The table of ``fastdiff/assets/dispatch.json`` is made of the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # fastdiff need not be installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import attention  # noqa: E402
import ops  # noqa: E402
import torch  # noqa: E402
from parts import RESULTS, gpu_dispatch, gpu_models, gpu_programs  # noqa: E402
from parts.gpu_report import report  # noqa: E402
from parts.gpu_store import Context, Store, about, copy_out  # noqa: E402

from fastdiff.bench import results  # noqa: E402
from fastdiff.bench.ceilings import TF32, ceilings  # noqa: E402
from fastdiff.ops import _measured  # noqa: E402


def measure_ceilings(context: Context) -> None:
    """What a copy moves a second, and what large matrix products reach."""
    key = "ceilings/speed"
    if not context.wanted(key):
        return
    count, size = (1 << 18, 256) if context.dry else (1 << 29, 8192)
    dtypes = ("bfloat16", "float16", TF32, "float32")
    found = ceilings(
        context.device,
        copies={"memory": count},
        size=size,
        dtypes=dtypes,
        rounds=context.rounds,
        turn=context.turn,
    )
    row = {"copy_bytes": 2 * count, "copy_gb_per_s": found["copy_gb_per_s"]["memory"], "matmul_size": size}
    tflops = {name: gflops / 1e3 for name, gflops in found["matmul_gflops"].items()}
    context.store.put(key, row | {"matmul_tflops": tflops})


# part -> what runs it, and its share of the time; what one leaves, the next ones have.
PARTS: dict[str, tuple[Callable[[Context], None], float]] = {
    "build": (gpu_programs.run_build, 4),
    "tests": (gpu_programs.run_tests, 6),
    "ceilings": (measure_ceilings, 0.5),
    "ops": (ops.run, 5),
    "attention": (attention.run, 1.5),
    "models": (gpu_models.run_sampling, 5),
    "training": (gpu_models.run_training, 2),
    "sanitizer": (gpu_programs.run_sanitizer, 1),
}


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of them together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--keep", action="store_true", help="keep rows of other sources and versions")
    parser.add_argument("--results", type=Path, help="folder of the results file; out/ in a dry run")
    parser.add_argument("--table", type=Path, help="the dispatch table to write; nowhere in a dry run")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    given = options(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible to torch; --dry-run --device cpu runs the same code on tiny sizes")
        return 2
    start = time.monotonic()
    known = about(given.device, given.dry_run)
    name = results.file_name("gpu", given.device)
    name = name.replace(".json", "-dry-run.json") if given.dry_run else name
    folder = given.results or (ROOT / "out" if given.dry_run else RESULTS)
    store = Store(folder / name, known, keep=given.keep)
    shares = sum(PARTS[part][1] for part in PARTS if part in given.part)
    table = given.table or (None if given.dry_run else _measured.PATH)
    used = 0.0
    for part in [p for p in PARTS if p in given.part]:
        run, share = PARTS[part]
        used += share
        deadline = start + 60 * given.minutes * used / shares
        print(f"{part}: until {deadline - start:.0f} s of {60 * given.minutes:.0f}", flush=True)
        quick = {"rounds": 2, "seconds": 1e-4} if given.dry_run else {}
        run(Context(given.device, given.dry_run, store, deadline, **quick))
        if table is not None:  # at once: the models that follow are to run on what was the fastest
            gpu_dispatch.write(store, table)
    store.write()
    if table is not None and table.exists():
        copy_out(table)
    print("", report(store), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
