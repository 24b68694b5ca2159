"""The table of a sampling run: for each model call one row of coefficients of ``reverse_step``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Three loads of 16 bytes in float32: the entry after the last coefficient is padding.
TABLE_COLUMNS = 12


class Coefficients(NamedTuple):
    """One row, in the order of its columns; ``csrc/common/reverse_step.h`` names them for C++ and CUDA."""

    # x_0 = out_x x + out_m model_output
    out_x: Any
    out_m: Any
    # x' = x x + x0 x_0 + h1 h_1 + h2 h_2 + std z
    x: Any
    x0: Any
    h1: Any
    h2: Any
    # The deviation of the noise, unless the model's variance channels give it.
    std: Any
    # The log-variances that a learned range mixes, and the factor of a learned deviation: 0 in a step without noise.
    log_min: Any
    log_max: Any
    noise_on: Any
    # The weight w of uncond + w (cond - uncond).
    guidance: Any


COLUMNS = Coefficients._fields


def make_table(rows: int, **columns: Any) -> np.ndarray:
    """[rows, 12] float64 with the named columns, each a number or [rows]; by default guidance is 1, the others 0."""
    table = np.zeros((rows, TABLE_COLUMNS))
    for name, values in {"guidance": 1.0, **columns}.items():
        table[:, COLUMNS.index(name)] = values
    return table
