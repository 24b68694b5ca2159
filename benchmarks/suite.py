"""Runs the whole suite, writes its JSON under benchmarks/results/ and draws the pictures under docs/img/.

    python benchmarks/suite.py [--out FOLDER] [pytest's options ...]

Some minutes. The file is named after processor, instruction set or GPU, and PyTorch's version. Options go to pytest:
``-k "conv2d or attention"``, ``--compile-budget=0``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from ratios import processor

from fastdiff.bench.machine import backends_in_words

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--benchmark-max-time=0.1", "--benchmark-min-rounds=3")  # unless the options say otherwise


def file_name() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = f"suite {processor()} {backends_in_words(device)} torch{torch.__version__.partition('+')[0]}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", about).strip("-").lower() + ".json"


def main(options: list[str]) -> int:
    results, pictures = ROOT / "benchmarks" / "results", ROOT / "docs" / "img"
    if options[:1] == ["--out"]:
        results = pictures = Path(options[1])
        options = options[2:]
    results.mkdir(parents=True, exist_ok=True)
    file = results / file_name()
    suite = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-group-by=group"]
    done = subprocess.run([*suite, *QUICK, f"--benchmark-json={file}", *options], cwd=ROOT)
    if done.returncode:
        return done.returncode
    print(f"wrote {file}")
    plots = ROOT / "benchmarks" / "plots" / "suite.py"
    return subprocess.run([sys.executable, str(plots), str(file), str(pictures)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
