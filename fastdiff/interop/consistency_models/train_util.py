"""consistency_models' ``train_util``: the training loops of EDM and consistency models, on guided-diffusion's."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import RAdam

from fastdiff.interop.consistency_models.unet import planar
from fastdiff.interop.guided_diffusion import dist_util, logger, train_util
from fastdiff.interop.guided_diffusion.fp16_util import MixedPrecisionTrainer
from fastdiff.interop.guided_diffusion.nn import update_ema
from fastdiff.interop.guided_diffusion.train_util import INITIAL_LOG_LOSS_SCALE as INITIAL_LOG_LOSS_SCALE
from fastdiff.interop.guided_diffusion.train_util import find_ema_checkpoint as find_ema_checkpoint
from fastdiff.interop.guided_diffusion.train_util import find_resume_checkpoint as find_resume_checkpoint
from fastdiff.interop.guided_diffusion.train_util import get_blob_logdir as get_blob_logdir
from fastdiff.interop.guided_diffusion.train_util import log_loss_dict as log_loss_dict
from fastdiff.interop.guided_diffusion.train_util import (
    parse_resume_step_from_filename as parse_resume_step_from_filename,
)


class TrainLoop(train_util.TrainLoop):
    """guided-diffusion's loop with RAdam. A step whose float16 gradient overflowed does not count."""

    optimizer = RAdam

    def run_loop(self) -> None:
        saved = False
        while self._goes_on():
            self.run_step(*next(self.data))
            saved = self.step > 0 and self.save_interval > 0 and self._saved_step % self.save_interval == 0
            if self._saved_step % self.log_interval == 0:
                logger.dumpkvs()
            if saved:
                self.save()
                if os.environ.get("DIFFUSION_TRAINING_TEST"):
                    return  # a short run for tests, as there
        if not saved:
            self.save()

    def _goes_on(self) -> bool:
        return not self.lr_anneal_steps or self._saved_step < self.lr_anneal_steps

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            self.step += 1
            self._update_ema()
        self._anneal_lr()
        self.log_step()

    def _to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return planar(state)


class CMTrainLoop(TrainLoop):
    """Consistency distillation, or training, which has no teacher.

    The target model's weights are an average of the model's; they are saved as target_modelNNNNNN.pt.

    Raises:
        NotImplementedError: a training_mode other than consistency_distillation and consistency_training. (In the
            original, progressive distillation ends with an error at its first step.)
    """

    def __init__(
        self,
        *,
        target_model: Any,
        teacher_model: Any,
        teacher_diffusion: Any,
        training_mode: str,
        ema_scale_fn: Callable[[int], tuple[float, int]],
        total_training_steps: int,
        **kwargs: Any,
    ) -> None:
        if training_mode not in ("consistency_distillation", "consistency_training"):
            raise NotImplementedError(
                f"training_mode {training_mode!r}; known: consistency_distillation, consistency_training"
            )
        super().__init__(**kwargs)
        self.training_mode, self.ema_scale_fn = training_mode, ema_scale_fn
        self.total_training_steps = total_training_steps
        self.target_model, self.teacher_model = target_model, teacher_model
        self.teacher_diffusion = teacher_diffusion
        self._load_target()
        self.target_model.requires_grad_(False).train()
        # In float16 the average is kept in float32.
        self._target = MixedPrecisionTrainer(model=target_model, use_fp16=self.use_fp16)
        if teacher_model:
            teacher_model.requires_grad_(False).eval()

    @property
    def global_step(self) -> int:
        """Number of steps made, those before a resumption included."""
        return self._saved_step

    def _goes_on(self) -> bool:
        return super()._goes_on() or self.global_step < self.total_training_steps

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        before = self.step
        super().run_step(batch, cond)
        if self.step > before:
            self._update_target_ema(self.global_step - 1)

    @torch.no_grad()
    def _update_target_ema(self, step: int) -> None:
        rate, _ = self.ema_scale_fn(step)
        update_ema(self._target.master_params, self.mp_trainer.master_params, rate=rate)
        for p, average in zip(self._target.model_params, self._target.master_params, strict=True):
            if p is not average:
                p.copy_(average)

    def _losses_of(
        self, micro: Tensor, t: Tensor, cond: dict[str, Tensor]
    ) -> Callable[[], dict[str, Tensor]]:
        distils = self.training_mode == "consistency_distillation"
        return functools.partial(
            self.diffusion.consistency_losses,
            self.ddp_model,
            micro,
            self.ema_scale_fn(self.global_step)[1],
            target_model=self.target_model,
            teacher_model=self.teacher_model if distils else None,
            teacher_diffusion=self.teacher_diffusion if distils else None,
            model_kwargs=cond,
        )

    def _load_target(self) -> None:
        main = find_resume_checkpoint() or self.resume_checkpoint
        if not main:
            return
        path = Path(main)
        saved = path.with_name(path.name.replace("model", "target_model"))
        if saved.exists():
            logger.log(f"loading the target model from checkpoint: {saved}...")
            state = dist_util.load_state_dict(str(saved), map_location=dist_util.dev())
            self.target_model.load_state_dict(state)
        dist_util.sync_params(self.target_model.parameters())

    def _other_states(self) -> dict[str, Any]:
        state = self._target.master_params_to_state_dict(copy.copy(self._target.master_params))
        return {f"target_model{self._saved_step:06d}.pt": self._to_file(state)}
