"""Conversion of other packages' parameters into keywords for ``simulate``, ``pdf``, ``cdf`` and ``moments``.

Here a is the whole separation, z and sz are fractions of a, t0 is the lower edge, sz and st0 are full widths, s = 1.
All functions take numbers or arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdiff.errors import FastdiffError


def from_ssms(
    v: Any, a: Any, z: Any = 0.5, t: Any = 0.0, *, sv: Any = 0.0, sz: Any = 0.0, st: Any = 0.0
) -> dict[str, Any]:
    """ssm-simulators (and HSSM): boundaries at -a and a, z a fraction, sz and st half-widths, sz as a length.

    The start is uniform in a (2 z - 1) +- sz and the non-decision time in t +- st.
    """
    whole = 2 * np.asarray(a, dtype=float)
    lower = np.asarray(t, dtype=float) - np.asarray(st, dtype=float)
    return _plain(
        v=v, a=whole, z=z, t0=lower, sv=sv, sz=2 * np.asarray(sz, dtype=float) / whole, st0=2 * np.asarray(st)
    )


def from_hddm(
    v: Any, a: Any, t: Any = 0.0, z: Any = 0.5, *, sv: Any = 0.0, sz: Any = 0.0, st: Any = 0.0
) -> dict[str, Any]:
    """HDDM: the whole separation, z and sz as fractions of it, t the middle of its range, full widths."""
    return _plain(v=v, a=a, z=z, t0=np.asarray(t, dtype=float) - np.asarray(st) / 2, sv=sv, sz=sz, st0=st)


def from_rtdists(
    a: Any, v: Any, t0: Any = 0.0, z: Any = None, *, d: float = 0.0, sz: Any = 0.0, sv: Any = 0.0, st0: Any = 0.0,
    s: Any = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """rtdists (and fast-dm's programs): z and sz as lengths (z left out: a / 2), t0 the lower edge.

    Raises:
        FastdiffError: d, the difference between both responses' non-decision times, which this model does not have.
    """
    if d != 0:
        raise FastdiffError(
            f"both responses have one non-decision time in this model; d must be 0, got {d:g}"
        )
    whole = np.asarray(a, dtype=float)
    start = 0.5 if z is None else np.asarray(z, dtype=float) / whole
    return _plain(v=v, a=a, z=start, t0=t0, s=s, sv=sv, sz=np.asarray(sz, dtype=float) / whole, st0=st0)


def from_pyddm(
    drift: Any, bound: Any = 1.0, noise: Any = 1.0, starting_position: Any = 0.0, nondecision: Any = 0.0
) -> dict[str, Any]:
    """PyDDM's ``gddm``: boundaries at -bound and bound, the start a fraction of bound in (-1, 1)."""
    return _plain(v=drift, a=2 * np.asarray(bound, dtype=float), z=(1 + np.asarray(starting_position, dtype=float)) / 2,
                  t0=nondecision, s=noise)  # fmt: skip


def _plain(**values: Any) -> dict[str, Any]:
    """Numbers as floats, everything else as arrays."""
    arrays = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    return {name: float(x) if x.ndim == 0 else x for name, x in arrays.items()}
