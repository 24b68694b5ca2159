"""guided-diffusion's ``respace``: a process that visits some of the timesteps only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion import schedule
from fastdiff.errors import FastdiffError
from fastdiff.interop.guided_diffusion.gaussian_diffusion import GaussianDiffusion, publish


def space_timesteps(num_timesteps: int, section_counts: str | Iterable[int]) -> set[int]:
    """The timesteps that are kept: counts per section ("10,10" or [10, 10]), or "ddimN" for a fixed stride."""
    text = (
        section_counts
        if isinstance(section_counts, str)
        else ",".join(str(int(count)) for count in section_counts)
    )
    try:
        return set(schedule.space_timesteps(text, num_timesteps))
    except FastdiffError as error:
        raise ValueError(str(error)) from None


class SpacedDiffusion(GaussianDiffusion):
    """A process that skips timesteps of another one.

    Args:
        use_timesteps: those of the original process that are kept.
        kwargs: the original's arguments.
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any) -> None:
        self.use_timesteps = set(use_timesteps)
        self.original_num_steps = len(kwargs["betas"])
        self.timestep_map = sorted(t for t in self.use_timesteps if 0 <= t < self.original_num_steps)
        kept = np.cumprod(1 - np.array(kwargs["betas"], dtype=np.float64))[self.timestep_map]
        super().__init__(**{**kwargs, "betas": 1 - kept / np.append(1.0, kept[:-1])})

    def p_mean_variance(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().p_mean_variance(self._wrap_model(model), *args, **kwargs)

    def p_sample(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().p_sample(self._wrap_model(model), *args, **kwargs)

    def ddim_sample(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().ddim_sample(self._wrap_model(model), *args, **kwargs)

    def training_losses(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().training_losses(self._wrap_model(model), *args, **kwargs)

    def condition_mean(self, cond_fn: Any, *args: Any, **kwargs: Any) -> Tensor:
        return super().condition_mean(self._wrap_model(cond_fn), *args, **kwargs)

    def condition_score(self, cond_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().condition_score(self._wrap_model(cond_fn), *args, **kwargs)

    def _wrap_model(self, model: Any) -> _WrappedModel:
        if isinstance(model, _WrappedModel):
            return model
        return _WrappedModel(model, self.timestep_map, self.rescale_timesteps, self.original_num_steps)

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t  # the wrapped model does it


publish(SpacedDiffusion)


class _WrappedModel:
    """Tells the model the original's timesteps. Attributes are the model's own."""

    _maps: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}  # noqa: RUF012 (shared: wrapping is done at each step)

    def __init__(
        self, model: Any, timestep_map: list[int], rescale_timesteps: bool, original_num_steps: int
    ) -> None:
        self.model, self.timestep_map = model, timestep_map
        self.rescale_timesteps, self.original_num_steps = rescale_timesteps, original_num_steps

    def __call__(self, x: Tensor, ts: Tensor, **kwargs: Any) -> Any:
        key = tuple(self.timestep_map), ts.device
        if key not in self._maps:
            self._maps[key] = torch.tensor(self.timestep_map, device=ts.device, dtype=ts.dtype)
        steps = self._maps[key][ts]
        if self.rescale_timesteps:
            steps = steps.float() * (1000.0 / self.original_num_steps)
        return self.model(x, steps, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
