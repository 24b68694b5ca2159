"""guided-diffusion's ``train_util``: the training loop, its checkpoints and how it finds them again."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from fastdiff.checkpoint.detect import of_tokens
from fastdiff.files import atomic_path
from fastdiff.interop.guided_diffusion import dist_util, logger
from fastdiff.interop.guided_diffusion.fp16_util import INITIAL_LOG_LOSS_SCALE as INITIAL_LOG_LOSS_SCALE
from fastdiff.interop.guided_diffusion.fp16_util import MixedPrecisionTrainer
from fastdiff.interop.guided_diffusion.nn import update_ema
from fastdiff.interop.guided_diffusion.resample import LossAwareSampler, UniformSampler


class TrainLoop:
    """Trains a model until lr_anneal_steps (0: without end), logging and saving on the way; arguments as there.

    Checkpoints are plain state_dicts: modelNNNNNN.pt, ema_RATE_NNNNNN.pt, optNNNNNN.pt in the log's folder, written
    whole or not at all. The step of ``resume_checkpoint`` is read from its name.
    """

    optimizer: Any = AdamW

    def __init__(
        self,
        *,
        model: Any,
        diffusion: Any,
        data: Iterator[tuple[Tensor, dict[str, Tensor]]],
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: Any = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
    ) -> None:
        self.model, self.diffusion, self.data = model, diffusion, data
        self.batch_size, self.microbatch = batch_size, microbatch if microbatch > 0 else batch_size
        self.lr, self.weight_decay, self.lr_anneal_steps = lr, weight_decay, lr_anneal_steps
        rates = [float(rate) for rate in str(ema_rate).split(",")]
        self.ema_rate = rates
        self.log_interval, self.save_interval = log_interval, save_interval
        self.resume_checkpoint = resume_checkpoint
        self.use_fp16, self.fp16_scale_growth = use_fp16, fp16_scale_growth
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.step = self.resume_step = 0
        self._world = dist.get_world_size() if dist.is_initialized() else 1
        self.global_batch = batch_size * self._world

        self._load_and_sync_parameters()
        self.mp_trainer = MixedPrecisionTrainer(
            model=model, use_fp16=use_fp16, fp16_scale_growth=fp16_scale_growth
        )
        self.opt = self.optimizer(self.mp_trainer.master_params, lr=lr, weight_decay=weight_decay)
        if self.resume_step:
            self._load_optimizer_state()
        self.ema_params = [self._load_ema_parameters(rate) for rate in rates]
        self.use_ddp = self._world > 1
        devices = [dist_util.dev()] if torch.cuda.is_available() else None
        self.ddp_model = DistributedDataParallel(model, device_ids=devices) if self.use_ddp else model

    def run_loop(self) -> None:
        """Train."""
        while not self.lr_anneal_steps or self.step + self.resume_step < self.lr_anneal_steps:
            batch, cond = next(self.data)
            self.run_step(batch, cond)
            if self.step % self.log_interval == 0:
                logger.dumpkvs()
            if self.step % self.save_interval == 0:
                self.save()
                if os.environ.get("DIFFUSION_TRAINING_TEST") and self.step > 0:
                    return  # a short run for tests, as there
            self.step += 1
        if (self.step - 1) % self.save_interval != 0:
            self.save()

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """One batch."""
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            self._update_ema()
        self._anneal_lr()
        self.log_step()

    def forward_backward(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Gradients of the mean loss over each microbatch, added up as there (not divided by their number)."""
        self.mp_trainer.zero_grad()
        for start in range(0, len(batch), self.microbatch):
            part = slice(start, start + self.microbatch)
            micro = batch[part].to(dist_util.dev())
            micro_cond = {k: v[part].to(dist_util.dev()) for k, v in cond.items()}
            last = start + self.microbatch >= len(batch)
            t, weights = self.schedule_sampler.sample(len(micro), dist_util.dev())
            losses_of = self._losses_of(micro, t, micro_cond)
            if last or not self.use_ddp:
                losses = losses_of()
            else:
                with self.ddp_model.no_sync():
                    losses = losses_of()
            if isinstance(self.schedule_sampler, LossAwareSampler):
                self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
            log_loss_dict(self.diffusion, t, {k: v * weights for k, v in losses.items()})
            self.mp_trainer.backward((losses["loss"] * weights).mean())

    def _losses_of(self, micro: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Any:
        """The function that computes a microbatch's losses."""
        return functools.partial(self.diffusion.training_losses, self.ddp_model, micro, t, model_kwargs=cond)

    def _to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A model's state_dict as files have it."""
        return state

    def _other_states(self) -> dict[str, Any]:
        """What else is saved, by file name."""
        return {}

    def save(self) -> None:
        """Model, averages and optimizer, by the first process."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            logger.log("saving model and its averages...")
            state_dict_of = self.mp_trainer.master_params_to_state_dict
            own = state_dict_of(self.mp_trainer.master_params)
            _save(f"model{self._saved_step:06d}.pt", self._to_file(own))
            for rate, params in zip(self.ema_rate, self.ema_params, strict=True):
                _save(f"ema_{rate}_{self._saved_step:06d}.pt", self._to_file(state_dict_of(params)))
            for name, state in self._other_states().items():
                _save(name, state)
            _save(f"opt{self._saved_step:06d}.pt", self.opt.state_dict())
        if dist.is_initialized():
            dist.barrier()

    def log_step(self) -> None:
        logger.logkv("step", self.step + self.resume_step)
        logger.logkv("samples", (self.step + self.resume_step + 1) * self.global_batch)

    @property
    def _saved_step(self) -> int:
        return self.step + self.resume_step

    def _load_and_sync_parameters(self) -> None:
        checkpoint = find_resume_checkpoint() or self.resume_checkpoint
        if checkpoint:
            self.resume_step = parse_resume_step_from_filename(checkpoint)
            logger.log(f"loading model from checkpoint: {checkpoint}...")
            self.model.load_state_dict(dist_util.load_state_dict(checkpoint, map_location=dist_util.dev()))
        dist_util.sync_params(self.model.parameters())

    def _load_optimizer_state(self) -> None:
        main = find_resume_checkpoint() or self.resume_checkpoint
        checkpoint = Path(main).with_name(f"opt{self.resume_step:06d}.pt")
        if checkpoint.exists():
            logger.log(f"loading optimizer state from checkpoint: {checkpoint}")
            self.opt.load_state_dict(dist_util.load_state_dict(str(checkpoint), map_location=dist_util.dev()))

    def _load_ema_parameters(self, rate: float) -> list[Tensor]:
        params = copy.deepcopy([p.detach() for p in self.mp_trainer.master_params])
        main = find_resume_checkpoint() or self.resume_checkpoint
        if checkpoint := find_ema_checkpoint(main, self.resume_step, rate):
            logger.log(f"loading EMA from checkpoint: {checkpoint}...")
            state = dist_util.load_state_dict(checkpoint, map_location=dist_util.dev())
            params = self.mp_trainer.state_dict_to_master_params(of_tokens(state))
        dist_util.sync_params(params)
        return params

    def _update_ema(self) -> None:
        for rate, params in zip(self.ema_rate, self.ema_params, strict=True):
            update_ema(params, self.mp_trainer.master_params, rate=rate)

    def _anneal_lr(self) -> None:
        if self.lr_anneal_steps:
            done = (self.step + self.resume_step) / self.lr_anneal_steps
            for group in self.opt.param_groups:
                group["lr"] = self.lr * (1 - done)


def _save(name: str, state: Any) -> None:
    with atomic_path(Path(get_blob_logdir() or ".") / name) as temporary:
        torch.save(state, temporary)


def parse_resume_step_from_filename(filename: str) -> int:
    """path/to/modelNNNNNN.pt -> NNNNNN; 0 for another name."""
    found = re.search(r"model(\d+)\.pt$", filename)
    return int(found[1]) if found else 0


def get_blob_logdir() -> str | None:
    """Folder of the checkpoints: that of the log. To be overridden, as in the original."""
    return logger.get_dir()


def find_resume_checkpoint() -> str | None:
    """A place to override: a checkpoint that is found by itself."""
    return None


def find_ema_checkpoint(main_checkpoint: str | None, step: int, rate: float) -> str | None:
    """The average that was saved beside a model, or None."""
    path = Path(main_checkpoint).with_name(f"ema_{rate}_{step:06d}.pt") if main_checkpoint else None
    return str(path) if path and path.exists() else None


def log_loss_dict(diffusion: Any, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """Means of the losses, over all and by quarters of the timesteps ("loss_q0" to "loss_q3")."""
    quarters = (4 * ts / diffusion.num_timesteps).long().tolist()
    for key, values in losses.items():
        logger.logkv_mean(key, values.mean().item())
        for quarter, value in zip(quarters, values.tolist(), strict=True):
            logger.logkv_mean(f"{key}_q{quarter}", value)
