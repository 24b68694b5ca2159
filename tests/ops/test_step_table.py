"""The columns of reverse_step's table have one order in Python, in C++ and in Triton."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.ops.reverse_step.table import TABLE_COLUMNS, make_table

HEADER = Path(__file__).parents[2] / "csrc" / "common" / "reverse_step.h"


def test_cpp_names_the_columns_in_the_same_order() -> None:
    header = HEADER.read_text()
    (names,) = re.findall(r"enum StepColumn : int \{(.*?)\};", header, re.DOTALL)
    as_in_python = [re.sub("(?<!^)([A-Z])", r"_\1", name.strip()[1:]).lower() for name in names.split(",")]
    assert tuple(as_in_python) == COLUMNS
    assert f"kTableColumns = {TABLE_COLUMNS};" in header


def test_triton_names_the_columns_in_the_same_order() -> None:
    kernel = pytest.importorskip(
        "fastdiff.ops.reverse_step.triton", reason="triton is not installed", exc_type=ImportError
    )
    assert [getattr(kernel, f"_{name.upper()}").value for name in COLUMNS] == list(range(len(COLUMNS)))


def test_a_table_is_made_of_named_columns() -> None:
    table = make_table(2, x0=[3, 4], std=0.5)
    assert table.shape == (2, TABLE_COLUMNS) and table[:, COLUMNS.index("x0")].tolist() == [3, 4]
    assert dict(zip(COLUMNS, table[0], strict=False)) == {
        **dict.fromkeys(COLUMNS, 0), "x0": 3, "std": 0.5, "guidance": 1
    }  # fmt: skip
