"""The model's parameters: conventions made explicit, and everything checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import FastdiffError

ZMode = Literal["relative", "absolute"]
T0Mode = Literal["lower", "mid"]

# The noise s in papers after Ratcliff (1978); the other convention, and the default here, is 1.
RATCLIFF_S = 0.1


@dataclass(frozen=True)
class Parameters:
    """The decision model's parameters as float64 tensors that broadcast against one another, all conventions resolved.

        dx = v_i dt + s dW from z_i until x <= 0 or x >= a;  rt = time + t0_i
        v_i ~ N(v, sv),  z_i ~ U(z - sz/2, z + sz/2),  t0_i ~ U(t0, t0 + st0)

    z and sz are absolute here, and t0 is the lower edge. Units: a, z, sz lengths; v, sv lengths per second; s lengths
    per root of a second; t0, st0 seconds.
    """

    v: Tensor
    a: Tensor
    z: Tensor
    t0: Tensor
    s: Tensor
    sv: Tensor
    sz: Tensor
    st0: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape to which all parameters broadcast."""
        return torch.Size(np.broadcast_shapes(*(p.shape for p in vars(self).values())))

    def in_noise_units(self) -> Parameters:
        """The same model with s = 1: all lengths divided by s."""
        s = self.s
        if s.dim() == 0 and not s.requires_grad and float(s) == 1:
            return self
        scaled = {name: getattr(self, name) / s for name in ("v", "a", "z", "sv", "sz")}
        return replace(self, **scaled, s=torch.ones_like(s))


def parameters(
    v: Any,
    a: Any,
    z: Any = 0.5,
    t0: Any = 0.0,
    s: Any = 1.0,
    sv: Any = 0.0,
    sz: Any = 0.0,
    st0: Any = 0.0,
    *,
    z_mode: ZMode = "relative",
    t0_mode: T0Mode = "lower",
) -> Parameters:
    """Check parameters and resolve their conventions.

    Args:
        v: drift rate, towards the upper boundary if positive.
        a: separation of the boundaries, which lie at 0 and a.
        z, sz: start and the full width of its uniform range: as a fraction of a ("relative": HDDM, ssm-simulators) or
            as a length ("absolute": rtdists, Ratcliff).
        t0, st0: non-decision time and the full width of its uniform range; t0 is the range's "lower" edge (rtdists)
            or its middle ("mid": HDDM, Ratcliff's Ter).
        s: standard deviation of the noise after one second: 1, or 0.1 in Ratcliff's papers.
        sv: standard deviation of the drift rate between trials.

    All arguments are numbers, arrays or tensors that broadcast.

    Raises:
        FastdiffError: not finite; a or s not positive; a range negative; a start on or outside the boundaries; a
            non-decision time below zero; shapes that do not broadcast.
    """
    if z_mode not in ("relative", "absolute"):
        raise FastdiffError(f"z_mode must be 'relative' or 'absolute', got {z_mode!r}")
    if t0_mode not in ("lower", "mid"):
        raise FastdiffError(f"t0_mode must be 'lower' or 'mid', got {t0_mode!r}")
    given = {"v": v, "a": a, "z": z, "t0": t0, "s": s, "sv": sv, "sz": sz, "st0": st0}
    # Plain numbers stay plain until the end: the same checks, without a tensor's overhead for each.
    p = {name: float(x) if _is_plain(x) else as_tensor(name, x) for name, x in given.items()}
    tensors = {name: x for name, x in p.items() if isinstance(x, Tensor)}
    try:
        if tensors:
            np.broadcast_shapes(*(x.shape for x in tensors.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items() if x.dim())
        raise FastdiffError(f"the parameters must broadcast against one another, got {shapes}") from None
    _require(p["a"] > 0, p["a"], "a must be positive: the boundaries lie at 0 and a")
    _require(p["s"] > 0, p["s"], "s (the noise) must be positive")
    for name in ("sv", "sz", "st0"):
        _require(p[name] >= 0, p[name], f"{name} must be at least 0")
    low, high = p["z"] - p["sz"] / 2, p["z"] + p["sz"] / 2
    end, allowed = (1.0, "0 and 1") if z_mode == "relative" else (p["a"], "0 and a")
    _require((low > 0) & (high < end), p["z"], f"the start z, with its range sz, must lie between {allowed}")
    if z_mode == "relative":
        p |= {"z": p["z"] * p["a"], "sz": p["sz"] * p["a"]}
    if t0_mode == "mid":
        p["t0"] = p["t0"] - p["st0"] / 2
    _require(p["t0"] >= 0, p["t0"], "the non-decision time t0, with its range st0, must not be below 0")
    if tensors:
        return Parameters(**{name: as_tensor(name, x) for name, x in p.items()})
    return Parameters(*torch.tensor(list(p.values()), dtype=torch.float64).unbind())


def _is_plain(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def as_tensor(name: str, value: Any) -> Tensor:
    """A float64 tensor on the CPU; a tensor's gradient is kept.

    Raises:
        FastdiffError: not numbers, or not finite.
    """
    if _is_plain(value):
        return torch.tensor(value, dtype=torch.float64)
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
        tensor = tensor.to("cpu", torch.float64)
    except (TypeError, ValueError):
        raise FastdiffError(f"{name} must be a number or an array of numbers, got {value!r}") from None
    if not math.isfinite(
        float(tensor.detach().sum())
    ):  # of numbers that are all finite the sum may still not be
        _require(tensor.isfinite(), tensor, f"{name} must be finite")
    return tensor


def check_data(rt: Any, choice: Any) -> tuple[Tensor, Tensor]:
    """Observed trials as float64 times and a bool that is true for the upper boundary.

    Raises:
        FastdiffError: no trials; NaN; times not positive; choices other than 0 and 1; shapes that do not match.
    """
    times, chosen = as_tensor("rt", rt), as_tensor("choice", choice)
    if times.numel() == 0:
        raise FastdiffError("there are no trials: rt is empty")
    if times.shape != chosen.shape:
        raise FastdiffError(
            f"rt and choice must have one shape, got {list(times.shape)} and {list(chosen.shape)}"
        )
    _require(times > 0, times, "rt must be positive seconds")
    return times, is_upper(chosen)


def is_upper(choice: Any) -> Tensor:
    """True where the choice is 1.

    Raises:
        FastdiffError: choices other than 0 and 1.
    """
    chosen = as_tensor("choice", choice)
    upper = chosen == 1
    if not torch.equal(upper.to(chosen.dtype), chosen):
        _require(upper | (chosen == 0), chosen, "choice must be 1 (upper) or 0 (lower); leave timeouts out")
    return upper


def _require(holds: Tensor | bool, value: Tensor | float, message: str) -> None:
    if holds is True or (isinstance(holds, Tensor) and bool(holds.all())):
        return
    failed = ~torch.as_tensor(holds)
    values = torch.broadcast_to(torch.as_tensor(value), failed.shape)[failed].detach()
    raise FastdiffError(f"{message}, got {_number(float(values.flatten()[0]))}")


def _number(value: float) -> str:
    return str(value) if math.isnan(value) else f"{value:g}"
