"""The paper's networks for points and sequences (appendix D.1): shared hidden layers, a readout for each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastdiff.diffusion.binomial import BinomialDiffusion
from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion, GaussianOutput
from fastdiff.errors import FastdiffError


class StepReadout(nn.Module):
    """y = W_t h + b_t, a linear layer of its own for each step; h [N,F], t [N] in 0 .. T to [N,D].

    W_t = W + D_t: what all steps have in common is learned from all of them.
    """

    def __init__(self, steps: int, features: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shared = nn.Linear(features, outputs, dtype=dtype)
        self.weight = nn.Parameter(torch.zeros(steps + 1, outputs, features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(steps + 1, outputs, dtype=dtype))

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        own = torch.bmm(self.weight[t], h[:, :, None])[:, :, 0]
        return self.shared(h) + own + self.bias[t]


def spread(points: Tensor, n: int) -> Tensor:
    """n of the points [M,D], each the farthest from those already taken: even centres on whatever the data fill.

    Raises:
        FastdiffError: fewer points than n.
    """
    if not 0 < n <= len(points):
        raise FastdiffError(f"cannot take {n} centres of {len(points)} points")
    taken = [0]
    nearest = (points - points[0]).square().sum(1)
    while len(taken) < n:
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[taken[-1]]).square().sum(1))
    return points[taken]


class RBFNet(nn.Module):
    """Normalised radial basis functions with a readout for each step: x_t [N,2] to mean and variance (section D.1.1).

        h_k = softmax_k(-|x - c_k|^2 / (2 s_k^2));  x_0 = sum_k a_{k,t} h_k,  z = sum_k b_{k,t} h_k

    Args:
        steps: T.
        units: hidden units; the paper has 16.
        centres: [units, D] where the units start, for example samples of the data.

    Raises:
        FastdiffError: centres that are not [units, D].
    """

    def __init__(self, steps: int, centres: Tensor, width: float = 0.3) -> None:
        super().__init__()
        if centres.ndim != 2 or not len(centres):
            raise FastdiffError(f"centres must be [units, D], got {list(centres.shape)}")
        units, self.dimensions = centres.shape
        self.centres = nn.Parameter(centres.clone())
        self.log_width = nn.Parameter(torch.full((units,), math.log(width), dtype=centres.dtype))
        self.readout = StepReadout(steps, units, 2 * self.dimensions, centres.dtype)
        with torch.no_grad():  # starts at the estimate "x_0 is near the nearest centres"
            self.readout.shared.weight.zero_()
            self.readout.shared.weight[: self.dimensions] = centres.T
            self.readout.shared.bias.zero_()

    @torch.no_grad()
    def fit(self, diffusion: DiagonalGaussianDiffusion, points: Tensor, generator: torch.Generator) -> None:
        """Set each step's estimate of x_0 to the least-squares one for the units as they are, from points [M,D].

        The variance starts at the posterior's plus what that estimate leaves open. With the units fixed these are
        the maximum of K over the readout of the mean, and of a constant variance; gradient ascent goes on from there.
        """
        for step in range(2, diffusion.steps + 1):
            t = torch.full((len(points),), step)
            h = self.hidden(diffusion.diffuse(points, t, diffusion.noise(points, generator)))
            moments = h.T @ h / len(h) + 1e-7 * torch.eye(h.shape[1], dtype=h.dtype)
            best = torch.linalg.solve(moments, h.T @ points / len(h)).T
            self.readout.weight[step, : self.dimensions] = (
                best - self.readout.shared.weight[: self.dimensions]
            )
            unit = diffusion.posterior(torch.ones_like(points[:1]), torch.zeros_like(points[:1]), t[:1])
            left = (points - h @ best.T).square().mean(0)
            total = unit.variance[0] + unit.mean[0] ** 2 * left
            self.readout.bias[step, self.dimensions :] = torch.logit(total) - torch.logit(unit.variance[0])

    def hidden(self, x: Tensor) -> Tensor:
        """[N,D] to [N,units], rows that sum to one."""
        distance = (x[:, None] - self.centres).square().sum(2)
        return torch.softmax(-0.5 * distance * torch.exp(-2 * self.log_width), 1)

    def forward(self, x: Tensor, t: Tensor) -> GaussianOutput:
        y = self.readout(self.hidden(x), t)
        return GaussianOutput(y[:, : self.dimensions], y[:, self.dimensions :])


class SequenceMLP(nn.Module):
    """x_t [N,L] bits to the log-odds that each bit of x_0 was one, [N,L] (section D.1.2).

    Three sigmoid layers of 50 units, shared by all steps. What enters is each bit's evidence about x_0,
    log q(x_t | x_0 = 1) / q(x_t | x_0 = 0), a per-step affine function of the bit. The log-odds depend on x_t and t
    through the evidence alone, so that one readout serves all steps and is learned from all of them.

    Args:
        per_step: the paper's readout for each step instead; it learns more slowly, each from its own samples.
    """

    def __init__(
        self, diffusion: BinomialDiffusion, length: int, *, width: int = 50, per_step: bool = False
    ) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.hidden = nn.Sequential(
            nn.Linear(length, width), nn.Sigmoid(), nn.Linear(width, width), nn.Sigmoid(),
            nn.Linear(width, width), nn.Sigmoid(),
        )  # fmt: skip
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain=4.0)  # sigmoid's slope is 1/4
        self.readout = StepReadout(diffusion.steps, width, length) if per_step else nn.Linear(width, length)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.hidden(self.diffusion.evidence(x, t))
        return self.readout(h, t) if isinstance(self.readout, StepReadout) else self.readout(h)
