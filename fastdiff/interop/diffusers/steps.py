"""Shared by the schedulers: rows of ``reverse_step``'s table on the sample's device, and when they cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.reverse_step import reverse_step
from fastdiff.ops.reverse_step.table import make_table


def rows(count: int, **columns: Any) -> Tensor:
    """[count, 12] float32, with the columns that ``fastdiff.ops.reverse_step.COLUMNS`` names."""
    arrays = {name: v.numpy() if isinstance(v, Tensor) else v for name, v in columns.items()}
    return torch.from_numpy(make_table(count, **arrays)).float()


class Table:
    """Rows and their numbers where the sample is: uploaded once, so that a step uploads nothing."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._numbers = torch.arange(len(table))

    def to(self, device: torch.device) -> Table:
        if self._table.device != device:
            self._table, self._numbers = self._table.to(device), self._numbers.to(device)
        return self

    def __len__(self) -> int:
        return len(self._table)

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
        """-> the next sample, and x_0 (or whatever out_x, out_m make of the model's output), both like sample.

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


class Tables:
    """A scheduler's tables, kept as long as the values that they are made from do not change."""

    _NAMES = ("timesteps", "sigmas", "alphas_cumprod", "final_alpha_cumprod", "_internal_dict")
    _VALUES = ("num_inference_steps", "variance_type", "custom_timesteps")

    def __init__(self) -> None:
        self._made_of: list[Any] = []
        self._tables: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, scheduler: Any) -> Tables:
        """Empty where options, time steps or levels of the scheduler are other ones than before."""
        tables = scheduler.__dict__.setdefault("_fastdiff_tables", cls())
        found = vars(scheduler)
        now: list[Any] = [found.get(name) for name in cls._NAMES]
        now += [t._version if isinstance(t, Tensor) and not t.is_inference() else None for t in now]
        now += [found.get(name) for name in cls._VALUES]
        if len(now) != len(tables._made_of) or any(
            a is not b for a, b in zip(now, tables._made_of, strict=True)
        ):
            tables._made_of, tables._tables = now, {}
        return tables

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]

    def forget(self, key: Hashable) -> None:
        self._tables.pop(key, None)


def is_fusible(scheduler: Any, sample: Any, model_output: Any) -> bool:
    """True if one ``reverse_step`` does what the scheduler's own step would do.

    If an input needs a gradient, the scheduler's own operations make the graph. It cannot do what the op lacks:
    thresholding (a quantile of each image), and estimates of x_0 clamped to another range than [-1, 1].
    """
    config = scheduler.config
    if config.get("thresholding") or (config.get("clip_sample") and config.clip_sample_range != 1.0):
        return False
    if not all(type(t) is Tensor and t.is_floating_point() and t.dim() > 1 for t in (sample, model_output)):
        return False
    if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
        return False
    return sample.dtype == model_output.dtype and sample.device == model_output.device


def converted(prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """x_0 = out_x x + out_m m, for x = alpha x_0 + sigma epsilon -> out_x, out_m.

    Source: DDPM eq. 15 (epsilon); Salimans & Ho 2022, "Progressive distillation", section 4 (v).
    """
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    return 0.0, 1.0
