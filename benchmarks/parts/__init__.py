"""What the programs of this folder share; none of these modules is a program."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
RESULTS = ROOT / "benchmarks" / "results"
