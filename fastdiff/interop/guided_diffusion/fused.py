"""The steps of the mirrored loops: the samplers' rows for ``reverse_step``, on the device once; noise from outside."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.ops.reverse_step import reverse_step
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import make_plan
from fastdiff.sampling.samplers import ancestral, ddim


class FusedSteps:
    """Rows for all steps of a process.

    A step needs the number of its row, which is the same for all samples, and reading it from a tensor of timesteps
    would wait for the device. Therefore the loops get their timesteps from here, and ``knows`` recognises them.
    """

    def __init__(self, process: GaussianDiffusion, possible: bool) -> None:
        self._process, self._possible = process, possible
        self._tables: dict[tuple[object, torch.device], Tensor] = {}
        self._rows: dict[torch.device, Tensor] = {}
        self._current: tuple[Tensor, int] | None = None

    def timesteps(self, i: int, n: int, device: torch.device | str) -> Tensor:
        """[n] int64, all i, made without an upload."""
        t = self._numbers(torch.device(device))[i].expand(n).contiguous()
        self._current = t, i
        return t

    def knows(self, t: Tensor) -> bool:
        """True if these are the timesteps that the loop requested last."""
        return self._possible and self._current is not None and self._current[0] is t

    def ancestral(self, x: Tensor, output: Tensor, noise: Tensor, clip: bool) -> dict[str, Tensor]:
        """-> sample, pred_xstart."""
        variance = self._process.config.variance
        learned = variance if self._process.config.learns_variance else "none"
        return self._step(None, x, output, noise, clip, learned)

    def ddim(self, x: Tensor, output: Tensor, noise: Tensor, clip: bool, eta: float) -> dict[str, Tensor]:
        """-> sample, pred_xstart. The model's variance is not used."""
        return self._step(eta, x, output, noise if eta else None, clip, "none")

    def next_alphas_bar(self, t: Tensor, x: Tensor) -> Tensor:
        """abar_{t+1}, 0 after the last, as [N, 1, ..., 1]."""
        key = "next", x.device
        if key not in self._tables:
            after = np.append(self._process.alphas_bar.numpy()[1:], 0.0)
            self._tables[key] = torch.from_numpy(after).to(x.device, torch.float32)
        return self._tables[key][t].reshape(-1, *[1] * (x.dim() - 1))

    def _step(
        self, eta: float | None, x: Tensor, output: Tensor, noise: Tensor | None, clip: bool, variance: str
    ):
        assert self._current is not None
        key = eta, x.device
        if key not in self._tables:
            self._tables[key] = self._table(eta).to(x.device)
        index = self._numbers(x.device)[self._current[1]]
        sample, x0, _ = reverse_step(
            x, output, self._tables[key], index, noise=noise, clip=clip, variance=variance
        )
        return {"sample": sample, "pred_xstart": x0}

    def _numbers(self, device: torch.device) -> Tensor:
        if device not in self._rows:
            self._rows[device] = torch.arange(self._process.steps, device=device)
        return self._rows[device]

    def _table(self, eta: float | None) -> Tensor:
        """[T, 12] float64, the row of t = 0 first: DDIM's, or ancestral sampling's where eta is None."""
        config, alphas_bar = self._process.config, self._process.alphas_bar.numpy()
        times = np.arange(self._process.steps, dtype=np.float64)
        levels = Levels.preserving_variance(np.append(alphas_bar[::-1], 1.0), np.append(times[::-1], 0.0))
        rows = ancestral.rows(levels, config.variance) if eta is None else ddim.rows(levels, eta)
        return make_plan(rows, self._process).table.flip(0)
