"""CONTRIBUTING.md names every file that a new flag and a new dtype need, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SOURCES = [p for p in (*ROOT.glob("fastdiff/**/*.py"), *ROOT.glob("csrc/*/*.*"), *ROOT.glob("csrc/*.cpp"))]


def _listed(title: str) -> set[str]:
    """The files of one list of the page, with the folders that stand before several."""
    section = PAGE.split(f"*{title}*", 1)[1].split("\n\n*", 1)[0].split("\n\nOn a machine", 1)[0]
    files, folder = set(), ""
    for name in re.findall(r"`([\w./]+)`", section):
        if name.endswith("/"):
            folder = name
        elif "/" in name:
            files.add(name)
        elif "." in name:
            files.add(folder + name)
    return files


def _mention(pattern: str, within: str = "") -> set[str]:
    """The sources whose code, comments left out, holds the pattern."""
    code = {p: re.sub(r"(//|#).*", "", p.read_text()) for p in SOURCES if within in str(p)}
    return {str(p.relative_to(ROOT)) for p, text in code.items() if re.search(pattern, text)}


def test_files_of_a_flag() -> None:
    """Every file of the op but the ones that know nothing of the activation."""
    assert _listed("A flag of an op") == _mention(r"\b(silu|SILU|kSilu)\b", within="group_norm_silu")


def test_files_of_a_dtype() -> None:
    """Where 16-bit floats of one kind are named: bfloat16 is asked for apart only where the formats differ."""
    listed = _listed("A dtype")
    assert len(listed) == 5 and all((ROOT / name).is_file() for name in listed)
    chains = _mention(r"(==|case) *(fastdiff::)?k(BFloat16|Float16)\b")
    assert chains <= {"csrc/common/dtype.h", "csrc/torch/adamw_ema.cpp"}, (
        "a chain of ifs beside dispatch_dtype"
    )
    tables = _mention(r"torch\.float32, torch\.bfloat16, torch\.float16\)")
    assert tables == {"fastdiff/ops/_library.py"}, "another table of the kernels' dtypes"
