"""What the schedulers share: rows of ``reverse_step``'s table on the sample's device, and options that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops.reverse_step import TABLE_COLUMNS, reverse_step

COLUMNS = ("o_x", "o_m", "a", "b", "c1", "c2", "s", "l0", "l1", "n", "w")


def rows(count: int, **columns: Tensor | float) -> Tensor:
    """[count, 12] float32, with columns as ``fastdiff.ops.reverse_step`` names them; w is 1, what is not given 0."""
    table = torch.zeros(count, TABLE_COLUMNS)
    for name, values in {"w": 1.0, **columns}.items():
        table[:, COLUMNS.index(name)] = torch.as_tensor(values, dtype=torch.float32)
    return table


class Table:
    """Rows and their numbers where the sample is: uploaded once, so that a step uploads nothing."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._numbers = torch.arange(len(table))

    def to(self, device: torch.device) -> Table:
        if self._table.device != device:
            self._table, self._numbers = self._table.to(device), self._numbers.to(device)
        return self

    def step(
        self,
        sample: Tensor,
        model_output: Tensor,
        row: int | Tensor,
        *,
        h1: Tensor | None = None,
        h2: Tensor | None = None,
        noise: Tensor | None = None,
        clip: bool = False,
        variance: str = "none",
    ) -> tuple[Tensor, Tensor]:
        """-> the next sample, and x_0 (or whatever o_x, o_m make of the model's output), both like sample.

        ``row``: a number, or a tensor of one, which is not read on the host.
        """
        self.to(sample.device)
        is_tensor = isinstance(row, Tensor)
        index = row.to(sample.device, torch.int64).reshape(()) if is_tensor else self._numbers[row]
        given = (None if t is None else _history(t, sample) for t in (h1, h2, noise))
        first, second, z = given
        after, x0, _ = reverse_step(
            sample,
            model_output,
            self._table,
            index,
            h1=first,
            h2=second,
            noise=z,
            clip=clip,
            variance=variance,
        )
        return after, x0


def _history(t: Tensor, sample: Tensor) -> Tensor:
    """reverse_step takes history and noise in the state's dtype or in float32."""
    return t if t.dtype in (sample.dtype, torch.float32) else t.to(sample.dtype)


class RefusesOptions:
    """A scheduler that names the options of diffusers' own that it does not have, instead of ignoring them."""

    if TYPE_CHECKING:  # made by diffusers' ConfigMixin and schedulers
        config: Any
        _step_index: Any

    def register_to_config(self, **options: Any) -> None:
        super().register_to_config(**options)  # pyright: ignore[reportAttributeAccessIssue]
        if reason := self._unsupported():
            raise FastdiffError(
                f"{type(self).__name__} does not support {reason}; use diffusers'"
                f" {type(self).__mro__[2].__name__} for that"
            )

    def _unsupported(self) -> str | None:
        """The first option of the config that is not supported, as ``name=value``, or None."""
        if self.config.get("thresholding"):
            return "thresholding=True (dynamic thresholding needs a quantile of each image)"
        if self.config.get("clip_sample") and self.config.clip_sample_range != 1.0:
            return f"clip_sample_range={self.config.clip_sample_range} (it clamps to [-1, 1])"
        return None


def converted(prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """x_0 = o_x x + o_m m, for x = alpha x_0 + sigma epsilon -> o_x, o_m.

    Source: DDPM eq. 15 (epsilon); Salimans & Ho 2022, "Progressive distillation", section 4 (v).
    """
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    return 0.0, 1.0
