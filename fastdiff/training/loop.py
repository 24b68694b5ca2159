"""The training loop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path
from fastdiff.models import ModelConfig, build_model
from fastdiff.training.batches import Batches, seeded
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData, load_data
from fastdiff.training.ema import EMA
from fastdiff.training.log import Log
from fastdiff.training.optimizer import AdamWEMA, clip_factor
from fastdiff.training.preview import HELD
from fastdiff.training.setup import architecture, usable_device
from fastdiff.training.state import TrainState, checkpoints, identity, load_checkpoint, save_checkpoint
from fastdiff.training.tasks import make_task
from fastdiff.training.timesteps import make_times
from fastdiff.training.validation import Validation


class TrainResult(NamedTuple):
    """How a run ended: updates made, and the saved model, or None if it was interrupted."""

    step: int
    model: Path | None


def train(config: TrainConfig) -> TrainResult:
    """Train a denoiser, an upsampler or a classifier as ``config`` says; see :class:`TrainConfig` for every choice.

    Weights, data order, mirroring, times, noise, dropped labels and dropped units are functions of
    (seed, step) alone. A run that is stopped, even killed, and started again is therefore bit for bit the run
    that never stopped, on the same machine and library versions. Ctrl-C writes a checkpoint first.

    Returns:
        The number of updates and ``OUT/model.safetensors``: the averaged weights, with their configuration.

    Raises:
        FastdiffError: bad input; NaN or Inf in the loss or its gradient, with the step's number.
    """
    return Trainer(config).run()


class Trainer:
    """One run: what it reads, its state, and its one step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._device = usable_device(config.device)
        model_config, diffusion_config = architecture(config)
        self._task = make_task(config, model_config, diffusion_config)
        data = self._load(model_config, config.data, config.labels)
        self._batches = Batches(data, config, self._task.null_class)
        self._validation = self._make_validation(model_config, diffusion_config)
        self._identity = identity(config, len(data), model_config, diffusion_config)
        self._log = Log(config.out / "log.jsonl")
        torch.manual_seed(config.seed)
        model = build_model(model_config).train()
        model.diffusion, model.class_names = diffusion_config, data.class_names
        model = model.to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        ema = EMA(model, config.ema)
        optimizer = AdamWEMA(
            model.parameters(), config.lr, weight_decay=config.weight_decay, ema_rates=(config.ema,)
        )
        optimizer.use_averages(0, ema.model.parameters())
        times = make_times(config.timesteps, diffusion_config.steps)
        self.state = TrainState(model, ema, optimizer, times)

    def _load(self, model: ModelConfig, path: Path, labels: Path | None) -> ImageData:
        return load_data(
            path,
            image_size=model.image_size,
            channels=model.in_channels,
            num_classes=self._task.num_classes,
            labels=labels,
            class_names=self.config.class_names,
            fit=self.config.fit,
        )

    def _make_validation(self, model: ModelConfig, diffusion: DiffusionConfig) -> Validation | None:
        config = self.config
        if config.val_data is None:
            return None
        data = self._load(model, config.val_data, config.val_labels)
        batches = Batches(data, replace(config, flip=False), null_class=None)
        return Validation(self._task, batches, config.val_batches, diffusion.steps)

    def run(self) -> TrainResult:
        """Train to the end, or until Ctrl-C."""
        config, state = self.config, self.state
        self._resume()
        bar = tqdm(
            total=config.steps * config.batch_size,
            initial=state.step * config.batch_size,
            disable=not config.progress,
            unit="img",
            unit_scale=True,
        )
        with bar, _interrupts() as interrupted:
            started = time.perf_counter() - state.seconds
            while state.step < config.steps and not interrupted.is_set():
                state.pending.append(self._step())
                state.seconds = time.perf_counter() - started
                bar.update(config.batch_size)
                self._write_what_is_due(bar)
        self._checkpoint()
        if state.step < config.steps:
            return TrainResult(state.step, None)
        from fastdiff.checkpoint import save

        save(state.ema.model, config.out / "model.safetensors")
        return TrainResult(state.step, config.out / "model.safetensors")

    def _resume(self) -> None:
        config = self.config
        try:
            config.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastdiffError(f"cannot write to {config.out}: {error.strerror}") from None
        found = checkpoints(config.out)
        if found and config.resume == "never":
            raise FastdiffError(f"{config.out} holds an earlier run; resume it or give another --out")
        if found:
            load_checkpoint(found[-1], self.state, self._identity)
        if self.state.step > config.steps:
            raise FastdiffError(f"{config.out} is at step {self.state.step} already, beyond {config.steps}")
        self._log.cut(self.state.step)

    def _step(self) -> Tensor:
        """One update. Returns [measures ..., gradient norm], still on the device: reading them would stall a GPU."""
        config, state = self.config, self.state
        batch = self._batches.draw(state.step, state.times).to(self._device)
        torch.manual_seed(
            seeded(config.seed, "dropout", state.step).initial_seed()
        )  # dropout has no generator
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate(state.step)
            group["ema_rates"] = (state.ema.decay_at(state.step),)
        with self._autocast():
            measures = self._task.losses(state.model, batch)
        weighted = (measures * batch.weight[:, None]).mean(dim=0)
        state.optimizer.zero_grad(set_to_none=True)
        weighted[0].backward()
        norm = get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
        state.optimizer.step(grad_factor=clip_factor(norm, config.clip_norm) if config.clip_norm else None)
        state.ema.copy_buffers(state.model)
        state.times.update(batch.t, measures[:, 0].detach())
        state.step += 1
        return torch.cat([weighted.detach(), norm.detach()[None]])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _write_what_is_due(self, bar: tqdm) -> None:
        config, step = self.config, self.state.step
        if step % config.log_every == 0:
            loss = self._write_log()
            bar.set_postfix(step=step, loss=f"{loss:.4f}", refresh=False)
        if step % config.checkpoint_every == 0:
            self._checkpoint()
        if config.sample_every and step % config.sample_every == 0:
            self._write_picture()
        if self._validation is not None and step % config.val_every == 0:
            means = self._validation.measure(self.state.ema.model, self._device, self._autocast()).tolist()
            named = zip(self._task.measures, means, strict=True)
            self._log.write({"step": step, **{f"val_{name}": value for name, value in named}})

    def _write_picture(self) -> None:
        """OUT/samples/step-<step>.png, if the model makes images."""
        held, labels = self._batches.held(HELD)
        labels = None if labels is None else labels.to(self._device)
        picture = self._task.picture(self.state.ema.model, held.to(self._device), labels)
        if picture is not None:
            path = self.config.out / "samples" / f"step-{self.state.step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                picture.save(temporary, format="PNG")

    def _write_log(self) -> float:
        """A line with the means since the last one. Returns the loss."""
        state, config = self.state, self.config
        *means, norm = self._finite().mean(dim=0).tolist()
        state.pending.clear()
        self._log.write(
            {
                "step": state.step,
                **dict(zip(self._task.measures, means, strict=True)),
                "grad_norm": norm,
                "lr": config.learning_rate(state.step - 1),
                "seconds": round(state.seconds, 2),
            }
        )
        return means[0]

    def _checkpoint(self) -> None:
        self._finite()
        save_checkpoint(self.config.out, self.state, self._identity, self.config.keep)

    def _finite(self) -> Tensor:
        """The pending [measures ..., gradient norm] rows, float64 on the CPU; the guard against NaN and Inf."""
        state = self.state
        rows = torch.stack(state.pending).double().cpu() if state.pending else torch.empty(0, 1)
        bad = (~rows.isfinite()).any(dim=1).nonzero()
        if len(bad):
            step = state.step - len(rows) + int(bad[0]) + 1
            last = checkpoints(self.config.out)
            raise FastdiffError(
                f"loss {rows[bad[0], 0].item()}, gradient norm {rows[bad[0], -1].item()} at step {step}: "
                f"training stopped; the last good checkpoint is {last[-1] if last else 'none'}; "
                "try a smaller lr or clip_norm"
            )
        return rows


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step is finished first; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return

    def handle(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
