"""How fast is everything beside eager PyTorch and ``torch.compile``? The whole suite, its JSON and its pictures.

    python benchmarks/suite.py [--out FOLDER] [pytest's options ...]

Some minutes: ``make bench``. Runs ``pytest benchmarks``, writes ``benchmarks/results/suite-<machine>.json`` and draws
pictures under docs/img. Options go to pytest: ``-k "conv2d or attention"``, ``--compile-budget=0``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from parts import RESULTS, ROOT

from fastdiff.bench import machine, results

QUICK = ("--benchmark-max-time=0.1", "--benchmark-min-rounds=3")  # unless the options say otherwise


def main(options: list[str]) -> int:
    name = results.file_name("suite", machine.default_device())
    file, pictures = RESULTS / name, ROOT / "docs" / "img"
    if options[:1] == ["--out"]:
        pictures = Path(options[1])
        file, options = pictures / name, options[2:]
    suite = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-group-by=group"]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        done = subprocess.run([*suite, *QUICK, f"--benchmark-json={raw}", *options], cwd=ROOT)
        if done.returncode:
            return done.returncode
        found = json.loads(raw.read_text())
    results.write(file, found["machine_info"]["fastdiff"], benchmarks=found["benchmarks"])
    print(f"wrote {file}")
    plots = ROOT / "benchmarks" / "plots.py"
    return subprocess.run([sys.executable, str(plots), str(file), str(pictures)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
