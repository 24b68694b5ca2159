"""Means over what varies between trials: the drift (normal), the start and the non-decision time (uniform)."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.parameters import Parameters

NODES = {"sz": 11, "st0": 15, "sv": 31}
_VARIES = {"sz": "z", "st0": "t0", "sv": "v"}


def spread(
    t: Tensor, upper: Tensor, p: Parameters, over: tuple[str, ...]
) -> tuple[Tensor, Tensor, Parameters, Tensor]:
    """A last axis of nodes for everything: t and upper [..., 1], the parameters [..., 1] or [..., K], weights [..., K].

    Gauss-Hermite nodes for the drift, Gauss-Legendre nodes for the ranges; K = 1 where nothing varies. The nodes of
    t0 cover only the part of its range that lies before t, where the density is smooth; weights sum to that part.
    """
    values = {name: x[..., None] for name, x in vars(p).items()}
    weights = torch.ones(1, dtype=torch.float64)
    for width in over:
        if not bool((values[width] != 0).any()):
            continue
        nodes, node_weights = (torch.from_numpy(x) for x in _rule(width))
        size = len(nodes)
        values = {n: x.repeat_interleave(size, -1) if x.shape[-1] > 1 else x for n, x in values.items()}
        nodes = nodes.repeat(weights.shape[-1])
        weights = weights.repeat_interleave(size, -1) * node_weights.repeat(weights.shape[-1])
        name, extent = _VARIES[width], values[width]
        if name == "t0":
            covered = torch.minimum(extent, (t[..., None] - values["t0"]).clamp_min(0))
            weights = weights * torch.where(extent > 0, covered / extent.clamp_min(1e-300), 1.0)
            values["t0"] = values["t0"] + covered * (nodes + 0.5)
        else:
            values[name] = values[name] + extent * nodes
    return t[..., None], upper[..., None], Parameters(**values), weights


@functools.cache
def _rule(width: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes for unit width around 0 (uniform) or unit deviation (normal), and weights that sum to 1."""
    if width == "sv":
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[width])
        return nodes, weights / math.sqrt(2 * math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(NODES[width])
    return nodes / 2, weights / 2
