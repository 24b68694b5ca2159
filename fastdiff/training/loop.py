"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.backend import usable_device
from fastdiff.checkpoint import save
from fastdiff.choices import Fit
from fastdiff.data.images import ImageData, load_data
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import locked, remove_halves
from fastdiff.models import Classifier, ModelConfig, UNet, build_model
from fastdiff.training.augment import Augment, describe
from fastdiff.training.batches import Batches
from fastdiff.training.config import TrainConfig
from fastdiff.training.distributed import Processes, join, local_device
from fastdiff.training.log import Log, NoLog
from fastdiff.training.optimizer import AdamWEMA, LossScale
from fastdiff.training.parallel import Parallel
from fastdiff.training.pretrained import transfer
from fastdiff.training.setup import architecture, load_pretrained
from fastdiff.training.state import (
    FOLDER,
    TrainState,
    checkpoints,
    identity,
    load_checkpoint,
    save_checkpoint,
)
from fastdiff.training.tasks import HELD, Validation, make_task
from fastdiff.training.timesteps import make_times
from fastdiff.training.trackers import Tracker
from fastdiff.training.update import Update

_LOG = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """Result of a run: number of steps made, and the saved model, or None if it was interrupted."""

    step: int
    model: Path | None


def train(
    config: TrainConfig, *, augment: Augment | None = None, trackers: Sequence[Tracker] = ()
) -> TrainResult:
    """Train a denoiser, an upsampler or a classifier; :class:`TrainConfig` has all options.

    Weights, data order, mirroring, times, noise, dropped labels and dropped units are functions of
    (seed, step, row) alone. A run that is stopped, or even killed, and started again therefore has the same results,
    bit for bit, as an unbroken run on the same machine and library versions. Ctrl-C writes a checkpoint first.

    Under torchrun, processes share each batch, and the run is that of one process up to rounding.

    Args:
        augment: function that turns an image [1,C,H,W] uint8 into another of the same shape, such as torchvision's
            transforms of version 2; see :class:`fastdiff.training.augment.Augmented`.
        trackers: objects of your own that follow the run, beside those of ``config.track``. They are closed at its end.

    Returns:
        The number of steps and ``OUT/model.safetensors``: the averaged weights, with their configuration. A stopped run
        has written that file, too, with the weights so far, and returns None in its place.

    Raises:
        FastdiffError: bad input; NaN or Inf in the loss or its gradient, with the step's number.
    """
    config = dataclasses.replace(config, device=local_device(config.device))
    device = usable_device(config.device)
    with join(device, group=config.strategy == "fsdp") as processes:
        return Trainer(config, processes, augment=augment, trackers=trackers).run()


class Trainer:
    """One run: its data, its state, and what it writes when.

    Args:
        config: settings of the run.
        processes: the processes that share the run. Default: this one alone.
        augment, trackers: see :func:`train`.
    """

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes | None = None,
        *,
        augment: Augment | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self._processes = processes or Processes()
        self._device = usable_device(config.device)
        self._log = Log(config.out, config.track, trackers) if self._processes.first else NoLog()
        self._logged = 0, 0.0  # steps and seconds at the last line of the log

        pretrained = load_pretrained(config)
        model_config, diffusion = architecture(config, pretrained)
        self._task = make_task(config, model_config, diffusion)
        data = self._load(model_config, config.data, config.labels, config.fit)
        rows = self._processes.rows(config.batch_size)
        self._batches = Batches(data, config, self._task.null_class, rows, augment)
        self._validation = self._make_validation(model_config, diffusion)
        self._fid = self._make_fid(model_config)
        self._identity = identity(
            config, len(data), model_config, diffusion, None if augment is None else describe(augment)
        )

        model = self._make_model(model_config, diffusion, data.class_names, pretrained)
        parallel = Parallel(model, config.strategy, self._processes, self._device)
        self.state = self._make_state(model, diffusion)
        self.update = Update(
            config, self._task, self._batches, parallel, self._processes, self.state, self._device
        )

    def _make_model(
        self,
        model_config: ModelConfig,
        diffusion: DiffusionConfig,
        class_names: tuple[str, ...],
        pretrained: UNet | Classifier | None,
    ) -> UNet | Classifier:
        torch.manual_seed(self.config.seed)
        model = build_model(model_config).train()
        model.diffusion, model.class_names = diffusion, class_names
        if pretrained is not None:
            transferred = transfer(pretrained, model)
            if self._processes.first and not checkpoints(self.config.out):
                _LOG.warning("fine-tuning %s: %s", self.config.init, transferred)
        model.recompute = self.config.recompute if self.config.recompute != "none" else model.recompute
        return model

    def _make_state(self, model: UNet | Classifier, diffusion: DiffusionConfig) -> TrainState:
        config = self.config
        optimizer = AdamWEMA(
            model.parameters(), config.lr, weight_decay=config.weight_decay, ema_rates=config.ema
        )
        optimizer.prepare()
        scale = LossScale() if config.precision == "float16" else None
        return TrainState(model, optimizer, make_times(config.timesteps, diffusion.steps), scale)

    def _load(self, model: ModelConfig, path: Path, labels: Path | None, fit: Fit) -> ImageData:
        return load_data(
            path,
            image_size=model.image_size,
            channels=model.in_channels,
            num_classes=self._task.num_classes,
            labels=labels,
            class_names=self.config.class_names,
            fit=fit,
            seed=self.config.seed,
            skip_broken=self.config.skip_broken,
            progress=self.config.progress and self._processes.first,
        )

    def _make_validation(self, model: ModelConfig, diffusion: DiffusionConfig) -> Validation | None:
        config = self.config
        if config.val_data is None:
            return None
        fit = "crop" if config.fit == "random-crop" else config.fit
        data = self._load(model, config.val_data, config.val_labels, fit)
        return Validation(config, self._task, data, diffusion.steps, self._processes)

    def _make_fid(self, model: ModelConfig) -> Any:
        if not self.config.fid_every:
            return None
        from fastdiff.training.fid import HeldOutFid  # and with it the feature networks

        data = None if self._validation is None else self._validation.data
        return HeldOutFid(self.config, model, data, self._processes, self._device)

    def run(self) -> TrainResult:
        """Train to the end, or until Ctrl-C on any process.

        Raises:
            FastdiffError: another run has the folder; what :func:`train` raises.
        """
        out = self.config.out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastdiffError(f"cannot write to {out}: {error.strerror}") from None
        with locked(out) if self._processes.first else contextlib.nullcontext():
            return self._run()

    def _run(self) -> TrainResult:
        config, state = self.config, self.state
        self._resume()
        bar = tqdm(
            total=config.steps * config.batch_size,
            initial=state.step * config.batch_size,
            disable=not (config.progress and self._processes.first),
            unit="img",
            unit_scale=True,
        )
        closing = contextlib.closing
        with bar, interrupts() as interrupted, closing(self._batches), closing(self._log):
            started = time.perf_counter() - state.seconds
            while state.step < config.steps and not self._processes.any(interrupted.is_set()):
                state.pending.append(self.update())
                state.seconds = time.perf_counter() - started
                bar.update(config.batch_size)
                self._write_what_is_due(bar)
            self._checkpoint()
        model = self._save()  # of a stopped run too
        self._processes.wait()
        return TrainResult(state.step, model if state.step == config.steps else None)

    def _resume(self) -> None:
        config = self.config
        found = checkpoints(config.out)
        if found and config.resume == "never":
            raise FastdiffError(f"{config.out} holds an earlier run; resume it or give another --out")
        if found:
            load_checkpoint(found[-1], self.state, self._identity)
        if not self._processes.agree(self.state.step):
            raise FastdiffError(
                f"processes found different checkpoints in {config.out}; give an --out that all machines share"
            )
        if self.state.step > config.steps:
            raise FastdiffError(f"{config.out} is at step {self.state.step} already, beyond {config.steps}")
        if self._processes.first:
            for folder in (config.out, config.out / FOLDER, config.out / "samples"):
                remove_halves(folder)
        self._log.resume(self.state.step, vars(config))
        self._logged = self.state.step, self.state.seconds

    def _write_what_is_due(self, bar: tqdm) -> None:
        config, step = self.config, self.state.step
        if step % config.log_every == 0:
            bar.set_postfix(self._write_log(), refresh=False)
        pictured = config.sample_every and step % config.sample_every == 0
        validated = self._validation is not None and step % config.val_every == 0
        judged = self._fid is not None and step % config.fid_every == 0
        if pictured or validated or judged:
            averaged = self.state.averaged()
            if self._validation is not None and validated:
                self._log.write({"step": step, **self._validation.measure(averaged, self._device)})
            if self._fid is not None and judged and (fid := self._fid.measure(averaged)) is not None:
                best, at = min([(fid, step), *self._log.values("fid")])
                self._log.write({"step": step, "fid": fid, "best_fid": best, "best_fid_step": at})
            if pictured and self._processes.first:
                self._write_picture(averaged)
        if step % config.checkpoint_every == 0:  # last, so that everything before is repeated after a kill
            self._checkpoint()

    def _write_picture(self, model: Any) -> None:
        held = self._batches.held(HELD).to(self._device)
        picture = self._task.picture(model, held.x0, held.y)
        if picture is not None:
            self._log.picture(self.state.step, picture)

    def _write_log(self) -> dict[str, Any]:
        """Log the means over the steps since the last line, without skipped steps. Returns the progress bar's text."""
        state, config = self.state, self.config
        rows = self._finite()
        kept = rows[rows[:, -1] == 0, :-1]
        means = kept.mean(dim=0).tolist() if len(kept) else [None] * (rows.shape[1] - 1)
        step, seconds = self._logged
        state.pending.clear()
        line = dict(zip(("step", *self._task.measures, "grad_norm"), (state.step, *means), strict=True))
        line["lr"] = config.learning_rate(state.step - 1)
        if state.scale is not None:
            line |= {"loss_scale": state.scale.scale, "skipped": int(rows[:, -1].sum())}
        line["images_per_second"] = round(
            (state.step - step) * config.batch_size / max(state.seconds - seconds, 1e-9), 2
        )
        line["seconds"] = round(state.seconds, 2)
        self._log.write(line)
        self._logged = state.step, state.seconds
        loss = means[0]
        return {"step": state.step, "loss": "-" if loss is None else f"{loss:.4f}"}

    def _checkpoint(self) -> None:
        self._finite()
        out, first = self.config.out, self._processes.first
        save_checkpoint(out, self.state, self._identity, self.config.keep, write=first)

    def _save(self) -> Path:
        """Save the averages as models. Returns the file of the first."""
        files = [
            self.config.out / ("model.safetensors" if i == 0 else f"model-ema-{decay}.safetensors")
            for i, decay in enumerate(self.config.ema)
        ]
        for i, file in enumerate(files):
            averaged = self.state.averaged(i)
            if self._processes.first:
                save(averaged, file)
        return files[0]

    def _finite(self) -> Tensor:
        """The pending rows (see :class:`Update`), float64 on the CPU, checked for NaN and Inf.

        Steps that float16 skipped do not raise an error.
        """
        state = self.state
        rows = torch.stack(state.pending).double().cpu() if state.pending else torch.empty(0, 2)
        bad = ((~rows.isfinite()).any(dim=1) & (rows[:, -1] == 0)).nonzero()
        if len(bad):
            step = state.step - len(rows) + int(bad[0]) + 1
            last = checkpoints(self.config.out)
            raise FastdiffError(
                f"loss {rows[bad[0], 0].item()}, gradient norm {rows[bad[0], -2].item()} at step {step}: "
                f"training stopped; the last good checkpoint is {last[-1] if last else 'none'}; "
                "try a smaller lr or clip_norm"
            )
        return rows


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step is finished first; a second signal stops at once."""
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
