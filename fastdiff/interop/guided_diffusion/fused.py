"""The steps of the mirrored loops as rows of one ``reverse_step``: tables on the device once, noise from outside."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.ops.reverse_step import TABLE_COLUMNS, reverse_step


class FusedSteps:
    """Rows for all steps of a process.

    A step needs the number of its row, the same for all samples; a tensor of timesteps does not tell it without a look
    at the device. So the loops get their timesteps from here, and ``knows`` recognises them.
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
        """Whether these are the timesteps that the loop has asked for last."""
        return self._possible and self._current is not None and self._current[0] is t

    def ancestral(self, x: Tensor, output: Tensor, noise: Tensor, clip: bool) -> dict[str, Tensor]:
        """-> sample, pred_xstart."""
        variance = self._process.config.variance
        learned = variance if self._process.config.learns_variance else "none"
        return self._step("ancestral", x, output, noise, clip, learned)

    def ddim(self, x: Tensor, output: Tensor, noise: Tensor, clip: bool, eta: float) -> dict[str, Tensor]:
        """-> sample, pred_xstart. The model's variance has no say."""
        return self._step(eta, x, output, noise if eta else None, clip, "none")

    def next_alphas_bar(self, t: Tensor, x: Tensor) -> Tensor:
        """abar_{t+1}, 0 after the last, as [N, 1, ..., 1]."""
        key = "next", x.device
        if key not in self._tables:
            after = np.append(self._process.alphas_bar.numpy()[1:], 0.0)
            self._tables[key] = torch.from_numpy(after).to(x.device, torch.float32)
        return self._tables[key][t].reshape(-1, *[1] * (x.dim() - 1))

    def _step(self, kind, x: Tensor, output: Tensor, noise: Tensor | None, clip: bool, variance: str):
        assert self._current is not None
        key = kind, x.device
        if key not in self._tables:
            table = self._ancestral_rows() if kind == "ancestral" else self._ddim_rows(kind)
            self._tables[key] = torch.from_numpy(table).to(x.device)
        index = self._numbers(x.device)[self._current[1]]
        sample, x0, _ = reverse_step(
            x, output, self._tables[key], index, noise=noise, clip=clip, variance=variance
        )
        return {"sample": sample, "pred_xstart": x0}

    def _numbers(self, device: torch.device) -> Tensor:
        if device not in self._rows:
            self._rows[device] = torch.arange(self._process.steps, device=device)
        return self._rows[device]

    def _table(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """[T, 12] with the conversion to x_0 filled in, and the process's tables."""
        tables = self._process._tables
        table = np.zeros((self._process.steps, TABLE_COLUMNS))
        if self._process.config.prediction == "x0":
            table[:, 1] = 1
        else:
            table[:, 0], table[:, 1] = tables["recip_sqrt_alphas_bar"], -tables["sigmas"]
        table[:, 10] = 1
        return table, tables

    def _ancestral_rows(self) -> np.ndarray:
        table, tables = self._table()
        table[:, 2], table[:, 3] = tables["posterior_c_t"], tables["posterior_c_0"]
        large = self._process.config.variance == "fixed_large"
        log_variance = tables["log_variance_large" if large else "posterior_log_variance_clipped"]
        table[1:, 6] = np.exp(0.5 * log_variance[1:])
        table[:, 7], table[:, 8] = tables["posterior_log_variance_clipped"], tables["log_betas"]
        table[1:, 9] = 1
        return table

    def _ddim_rows(self, eta: float) -> np.ndarray:
        """x' = sqrt(abar_p) x_0 + k eps + sigma z, eps = (x / sqrt(abar) - x_0) / sigma_t."""
        table, tables = self._table()
        abar, before = tables["alphas_bar"], tables["alphas_bar_prev"]
        sigma = eta * np.sqrt((1 - before) / (1 - abar)) * np.sqrt(1 - abar / before)
        k = np.sqrt(1 - before - sigma**2) / tables["sigmas"]
        table[:, 2], table[:, 3] = k * tables["recip_sqrt_alphas_bar"], np.sqrt(before) - k
        table[1:, 6] = sigma[1:]
        return table
