"""The training loop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.loss import training_losses
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet
from fastdiff.training.batches import Batches, seeded
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import load_data
from fastdiff.training.ema import EMA
from fastdiff.training.log import Log
from fastdiff.training.optimizer import AdamWEMA, clip_factor
from fastdiff.training.setup import architecture, usable_device
from fastdiff.training.state import TrainState, checkpoints, identity, load_checkpoint, save_checkpoint
from fastdiff.training.timesteps import make_times


class TrainResult(NamedTuple):
    """How a run ended: updates made, and the saved model, or None if it was interrupted."""

    step: int
    model: Path | None


def train(config: TrainConfig) -> TrainResult:
    """Train a denoiser as ``config`` says; see :class:`TrainConfig` for every choice.

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
        self._diffusion = GaussianDiffusion(diffusion_config)
        data = load_data(
            config.data,
            image_size=model_config.image_size,
            channels=model_config.in_channels,
            num_classes=model_config.num_classes,
            labels=config.labels,
            class_names=config.class_names,
            fit=config.fit,
        )
        self._batches = Batches(data, config, model_config.null_class)
        self._identity = identity(config, len(data), model_config, diffusion_config)
        self._log = Log(config.out / "log.jsonl")
        torch.manual_seed(config.seed)
        model = UNet(model_config).train()
        model.diffusion, model.class_names = diffusion_config, data.class_names
        model.recompute = config.recompute if config.recompute != "none" else model.recompute
        model = model.to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        ema = EMA(model, config.ema)
        optimizer = AdamWEMA(
            model.parameters(), config.lr, weight_decay=config.weight_decay, ema_rates=(config.ema,)
        )
        optimizer.use_averages(0, ema.model.parameters())
        times = make_times(config.timesteps, diffusion_config.steps)
        self.state = TrainState(model, ema, optimizer, times)

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
        """One update. Returns [loss, gradient norm], still on the device: reading them would stall a GPU."""
        config, state = self.config, self.state
        batch = self._batches.draw(state.step, state.times)
        x0, noise, t, weight, y = batch.to(self._device)
        cond = {} if y is None else {"y": y}
        torch.manual_seed(
            seeded(config.seed, "dropout", state.step).initial_seed()
        )  # dropout has no generator
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate(state.step)
            group["ema_rates"] = (state.ema.decay_at(state.step),)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            losses = training_losses(
                self._diffusion, state.model, x0, t, noise=noise, loss=config.loss, **cond
            )["loss"]
        loss = (losses * weight).mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
        state.optimizer.step(grad_factor=clip_factor(norm, config.clip_norm) if config.clip_norm else None)
        state.ema.copy_buffers(state.model)
        state.times.update(batch.t, losses.detach())
        state.step += 1
        return torch.stack([loss.detach(), norm.detach()])

    def _write_what_is_due(self, bar: tqdm) -> None:
        config, step = self.config, self.state.step
        if step % config.log_every == 0:
            loss = self._write_log()
            bar.set_postfix(step=step, loss=f"{loss:.4f}", refresh=False)
        if step % config.checkpoint_every == 0:
            self._checkpoint()
        if config.sample_every and step % config.sample_every == 0:
            from fastdiff.training.preview import write_preview

            write_preview(self.state.ema.model, config.out / "samples" / f"step-{step:08d}.png")

    def _write_log(self) -> float:
        """A line with the means since the last one. Returns the loss."""
        state, config = self.state, self.config
        loss, norm = self._finite().mean(dim=0).tolist()
        state.pending.clear()
        self._log.write(
            {
                "step": state.step,
                "loss": loss,
                "grad_norm": norm,
                "lr": config.learning_rate(state.step - 1),
                "seconds": round(state.seconds, 2),
            }
        )
        return loss

    def _checkpoint(self) -> None:
        self._finite()
        save_checkpoint(self.config.out, self.state, self._identity, self.config.keep)

    def _finite(self) -> Tensor:
        """The pending [loss, gradient norm] rows, float64 on the CPU; the guard against NaN and Inf."""
        state = self.state
        rows = torch.stack(state.pending).double().cpu() if state.pending else torch.empty(0, 2)
        bad = (~rows.isfinite()).any(dim=1).nonzero()
        if len(bad):
            step = state.step - len(rows) + int(bad[0]) + 1
            last = checkpoints(self.config.out)
            raise FastdiffError(
                f"loss {rows[bad[0], 0].item()}, gradient norm {rows[bad[0], 1].item()} at step {step}: "
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
