"""Consistency training: a denoiser that samples in one to four steps, from data alone or from a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.choices import Distance
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.consistency import LevelPairs, Metric, consistency_losses, continuous_losses
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.models import Classifier, UNet, UNetConfig
from fastdiff.training.batches import Batch
from fastdiff.training.config import TrainConfig
from fastdiff.training.perceptual import Perceptual
from fastdiff.training.tasks import Denoising, Network

# Options of the diffusion loss, and their usual values.
_OF_DIFFUSION = {"loss": "mse", "loss_weighting": "none", "timesteps": "uniform", "noised": True}


class Consistency(Denoising):
    """The loss of :func:`fastdiff.diffusion.consistency.consistency_losses`, at levels that come closer with the steps.

    Or that of :func:`~fastdiff.diffusion.consistency.continuous_losses`, for levels without a gap.

    Args:
        process: of the model.
        teacher: the model to distil; None: consistency training, from the data alone.

    Attributes:
        target: the network that makes the lower level's image, an average of the weights; None: the model itself.

    Raises:
        FastdiffError: options of the diffusion loss, or a teacher that does not fit the model.
    """

    def __init__(
        self, config: TrainConfig, process: Process, model: UNetConfig, teacher: UNet | Classifier | None
    ) -> None:
        _check(config, process)
        super().__init__(config, process, model)
        self._pairs = None
        if config.pairs != "continuous":
            self._pairs = LevelPairs(config.pairs, *process.sigma_range, process.rho, config.pair_levels)
        self._steps = config.steps
        self._distance: Distance | Metric = Perceptual() if config.distance == "lpips" else config.distance
        self._teacher: tuple[Process, UNet] | None = None
        if teacher is not None:
            teacher = _fitting(teacher, model, process.config)
            self._teacher = make_process(teacher.diffusion), teacher
        self.target: UNet | Classifier | None = None
        self.measures: tuple[str, ...] = ("loss",)

    def losses(self, model: Network, batch: Batch) -> Tensor:
        sigma, cond = self._diffusion.sigmas(batch.t), dict[str, Any](self._condition(batch))
        teacher = self._on(batch.x0.device)
        if self._pairs is None:
            sigma = sigma.clamp(*self._diffusion.sigma_range)
            found = continuous_losses(
                self._diffusion, model, batch.x0, sigma, noise=batch.noise, teacher=teacher, **cond
            )
            return found[:, None]
        # Held-out images are measured at the last stage's levels, so that the values of a run can be compared.
        learning = torch.is_grad_enabled()
        progress = batch.step / self._steps if learning else 1.0
        found = consistency_losses(
            self._diffusion,
            model,
            batch.x0,
            self._pairs(sigma, min(progress, 1 - 1e-9)),
            noise=batch.noise,
            teacher=teacher,
            target=self.target if learning else None,
            distance=self._distance,
            **cond,
        )
        return found[:, None]

    def _on(self, device: torch.device) -> tuple[Process, UNet] | None:
        if self._teacher is not None and next(self._teacher[1].parameters()).device != device:
            self._teacher[1].to(device)
        return self._teacher


def _check(config: TrainConfig, process: Process) -> None:
    """Refuse options that consistency training does not have, and that its continuous form does not."""
    for name, usual in _OF_DIFFUSION.items():
        if getattr(config, name) != usual:
            option = name.replace("_", "-")
            raise FastdiffError(f"consistency training has a loss of its own; leave out --{option}")
    if config.pairs != "continuous":
        return
    if math.isfinite(process.most_steps):
        raise FastdiffError(
            "--pairs continuous needs levels between the steps, which a model in discrete steps does not have; give "
            "--parametrisation edm or flow, or other --pairs"
        )
    if config.distance in ("l1", "lpips") or config.target_ema or config.strategy == "fsdp":
        raise FastdiffError(
            "--pairs continuous has a squared distance, no target network and whole weights; leave out --distance, "
            "--target-ema and --strategy"
        )


def _fitting(teacher: UNet | Classifier, model: UNetConfig, diffusion: DiffusionConfig) -> UNet:
    """The teacher, frozen.

    Raises:
        FastdiffError: it is no denoiser, or one of other images, classes or noise levels than the model's.
    """
    if not isinstance(teacher, UNet) or teacher.config.low_res is not None:
        raise FastdiffError("only a denoiser can be a teacher, and --teacher is none")
    for name in ("image_size", "in_channels", "num_classes", "null_label"):
        ours, theirs = getattr(model, name), getattr(teacher.config, name)
        if ours != theirs:
            raise FastdiffError(
                f"the teacher has {name} {theirs!r} and the model {ours!r}; a teacher's must be the same"
            )
    assert teacher.diffusion is not None  # load_pretrained sees to it
    if _levels(teacher.diffusion) != _levels(diffusion):
        raise FastdiffError(
            f"the teacher's diffusion is {teacher.diffusion} and the model's {diffusion}: levels and times must be "
            "the same; begin with the teacher's weights (leave out --init and --preset)"
        )
    return teacher.eval().requires_grad_(False)


def _levels(diffusion: DiffusionConfig) -> DiffusionConfig:
    """What decides levels and times: not what the output means."""
    edm = "edm" if diffusion.parametrisation == "consistency" else diffusion.parametrisation
    usual = DiffusionConfig()
    return replace(
        diffusion,
        parametrisation=edm,
        prediction=usual.prediction,
        variance=usual.variance,
        few_steps=False,
    )
