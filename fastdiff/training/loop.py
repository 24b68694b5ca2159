"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.backend import device_name, usable_device, use_backend
from fastdiff.checkpoint import save
from fastdiff.checkpoint.lora import save_lora
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.errors import FastdiffError
from fastdiff.files import locked, remove_halves
from fastdiff.models import Classifier, ModelConfig, UNet, build_model
from fastdiff.models.lora import add_adapters
from fastdiff.training.augment import Augment, describe, import_augment
from fastdiff.training.batches import Batches
from fastdiff.training.config import TrainConfig
from fastdiff.training.config_file import write_config
from fastdiff.training.consistency import Consistency
from fastdiff.training.distributed import Processes, join, local_device, usual_device
from fastdiff.training.log import Log, NoLog
from fastdiff.training.optimizer import AdamWEMA, LossScale
from fastdiff.training.parallel import Parallel
from fastdiff.training.prepare import prepare
from fastdiff.training.pretrained import transfer
from fastdiff.training.report import Report, shows_bars
from fastdiff.training.state import (
    FOLDER,
    TrainState,
    checkpoints,
    identity,
    load_checkpoint,
    save_checkpoint,
)
from fastdiff.training.tasks import HELD, Validation
from fastdiff.training.timesteps import make_times
from fastdiff.training.trackers import Tracker
from fastdiff.training.update import Update

_LOG = logging.getLogger(__name__)
_TIMED = 3  # steps from which the speed is first told


class TrainResult(NamedTuple):
    """Result of a run: number of steps made, and the saved model, or None if it was interrupted.

    A run that :attr:`TrainConfig.max_minutes` stopped has a model and fewer steps than ``config.steps``.
    """

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
    What the run is doing is printed, as the command prints it; ``TrainConfig(quiet=True)`` prints the result alone.

    Args:
        augment: function, in place of ``config.augment``, that turns an image [1,C,H,W] uint8 into another of the same
            shape, such as torchvision's transforms of version 2; see :class:`fastdiff.training.augment.Augmented`.
        trackers: objects of your own that follow the run, beside those of ``config.track``. They are closed at its end.

    Returns:
        The number of steps and ``OUT/model.safetensors``: the averaged weights, with their configuration. An
        interrupted run has written that file, too, with the weights so far, and returns None in its place.

    Raises:
        FastdiffError: bad input; NaN or Inf in the loss or its gradient, with the step's number.
    """
    if augment is None and config.augment is not None:
        augment = import_augment(config.augment)
    device = usable_device(local_device(config.device))
    started = time.perf_counter()
    ops = contextlib.nullcontext() if config.backend == "auto" else use_backend(config.backend)
    with ops, join(device, group=config.strategy == "fsdp") as processes:
        return Trainer(config, processes, augment=augment, trackers=trackers, started=started).run()


class Trainer:
    """One run: its data, its state, and what it writes when.

    Args:
        config: settings of the run.
        processes: the processes that share the run. Default: this one alone.
        augment, trackers: see :func:`train`.
        started: the moment, of time.perf_counter(), from which ``max_minutes`` count. Default: now.
    """

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes | None = None,
        *,
        augment: Augment | None = None,
        trackers: Sequence[Tracker] = (),
        started: float | None = None,
    ) -> None:
        self._started = time.perf_counter() if started is None else started
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        config = replace(config, device=usual_device(config.device))
        self._processes = processes or Processes()
        self._device = usable_device(local_device(config.device))
        self.prepared = prepared = prepare(config, progress=shows_bars(config) and self._processes.first)
        self.config = config = prepared.config
        self._log = Log(config.out, config.track, trackers) if self._processes.first else NoLog()
        self._report = Report(config, prepared, prints=self._processes.first)
        self._logged = 0, 0.0  # steps and seconds at the last line of the log
        self._kept = -1  # the step of the last checkpoint
        self._first, self._timed = 0, 0.0  # the step that this start begins with; when its first one was made

        model_config, diffusion, data = prepared.model, prepared.diffusion, prepared.data
        self._task = prepared.task
        rows = self._processes.rows(config.batch_size)
        self._batches = Batches(data, config, self._task.null_class, rows, augment)
        self._validation = None
        if prepared.val_data is not None:
            times = make_times(replace(config, timesteps="uniform"), make_process(diffusion))
            self._validation = Validation(config, self._task, prepared.val_data, times, self._processes)
        self._fid = self._make_fid(model_config)
        self._identity = identity(
            config, len(data), model_config, diffusion, None if augment is None else describe(augment)
        )

        model = self._make_model(model_config, diffusion, data.class_names, prepared.pretrained)
        parallel = Parallel(model, config.strategy, self._processes, self._device)
        self.state = self._make_state(model, diffusion)
        if config.target_ema and isinstance(self._task, Consistency):
            # Its weights are the average itself, which each step moves, and are frozen as they should be: no warning.
            self._task.target = self.state.averaged(len(config.ema))
            torch.nn.Module.train(self._task.target)
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
            if self.config.lora:
                add_adapters(model, self.config.lora, {*transferred.fitted, *transferred.new})
            if not checkpoints(self.config.out):
                learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
                self.prepared.notes.append(f"{transferred}; {learning} parameters are trained")
        model.recompute = self.config.recompute if self.config.recompute != "none" else model.recompute
        return model

    def _make_state(self, model: UNet | Classifier, diffusion: DiffusionConfig) -> TrainState:
        config = self.config
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = AdamWEMA(learning, config.lr, weight_decay=config.weight_decay, ema_rates=config.averages)
        optimizer.prepare()
        scale = LossScale() if config.precision == "float16" else None
        return TrainState(model, optimizer, make_times(config, make_process(diffusion)), scale)

    def _make_fid(self, model: ModelConfig) -> Any:
        if not self.config.fid_every:
            return None
        from fastdiff.training.fid import HeldOutFid  # and with it the feature networks

        return HeldOutFid(self.config, model, self.prepared.val_data, self._processes, self._device)

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
        if self._processes.first:
            write_config(config)
        parameters = sum(p.numel() for p in state.model.parameters())
        self._report.begin(parameters, device_name(self._device), state.step)
        closing = contextlib.closing
        with (
            closing(self._report),
            interrupts() as interrupted,
            closing(self._batches),
            closing(self._log),
        ):
            begun = time.perf_counter() - state.seconds
            while state.step < config.steps and not self._processes.any(
                interrupted.is_set() or self._minutes_left() <= 0
            ):
                state.pending.append(self.update())
                state.seconds = time.perf_counter() - begun
                self._report.advance()
                self._write_what_is_due()
            self._checkpoint()
        model = self._save()  # of a stopped run too
        stopped = None
        if state.step < config.steps:
            stopped = "interrupt" if self._processes.any(interrupted.is_set()) else "time"
        self._report.end(state.step, state.seconds, model, stopped)
        self._processes.wait()
        return TrainResult(state.step, None if stopped == "interrupt" else model)

    def _minutes_left(self) -> float:
        most = self.config.max_minutes
        return math.inf if most is None else most - (time.perf_counter() - self._started) / 60

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
        self._first = self.state.step

    def _write_what_is_due(self) -> None:
        config, step = self.config, self.state.step
        self._tell_speed()
        if step % config.log_every == 0:
            self._write_log()
        pictured = config.sample_every and (step % config.sample_every == 0 or step == config.steps)
        validated = self._validation is not None and step % config.val_every == 0
        judged = self._fid is not None and step % config.fid_every == 0
        if pictured or validated or judged:
            averaged = self.state.averaged()
            if self._validation is not None and validated:
                self._write_values({"step": step, **self._validation.measure(averaged, self._device)})
            if self._fid is not None and judged and (fid := self._fid.measure(averaged)) is not None:
                best, at = min([(fid, step), *self._log.values("fid")])
                self._write_values({"step": step, "fid": fid, "best_fid": best, "best_fid_step": at})
            if pictured and self._processes.first:
                self._write_picture(averaged)
        if step % config.checkpoint_every == 0:  # last, so that everything before is repeated after a kill
            self._checkpoint()

    def _tell_speed(self) -> None:
        """Tell the speed soon, if the log will not. The very first step takes longer and does not count."""
        made = self.state.step - self._first
        if made not in (1, 1 + _TIMED) or self.config.log_every <= 1 + _TIMED:
            return
        self._finite()  # waits for the device
        now = time.perf_counter()
        if made == 1:
            self._timed = now
            return
        rate = _TIMED / (now - self._timed)
        self._report.speed(rate * self.config.batch_size, self._seconds_left(rate))

    def _seconds_left(self, rate: float) -> float:
        """Until the run ends or stops, at ``rate`` steps a second."""
        return min((self.config.steps - self.state.step) / rate, 60 * max(self._minutes_left(), 0))

    def _write_values(self, line: dict[str, Any]) -> None:
        self._log.write(line)
        self._report.validated(line)

    def _write_picture(self, model: Any) -> None:
        held = self._batches.held(HELD).to(self._device)
        try:
            picture = self._task.picture(model, held.x0, held.y)
        except torch.OutOfMemoryError:  # the run has memory enough, and goes on
            _LOG.warning("no memory for samples at step %d; --sample-every 0 makes none", self.state.step)
            return
        if picture is not None:
            self._report.wrote("samples", self.state.step, self._log.picture(self.state.step, picture))

    def _write_log(self) -> None:
        """Log the means over the steps since the last line, without skipped steps."""
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
        rate = (state.step - step) / max(state.seconds - seconds, 1e-9)
        line["images_per_second"] = round(rate * config.batch_size, 2)
        line["seconds"] = round(state.seconds, 2)
        self._log.write(line)
        self._logged = state.step, state.seconds
        self._report.log(line, self._seconds_left(rate))

    def _checkpoint(self) -> None:
        if self.state.step == self._kept:
            return
        self._finite()
        out, first = self.config.out, self._processes.first
        self._kept = self.state.step
        path = save_checkpoint(out, self.state, self._identity, self.config.keep, write=first)
        self._report.wrote("checkpoint", self.state.step, path)

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
        if self.config.lora and self.config.init and self._processes.first:
            trained = self.state.trained()
            save_lora(self.config.out / "lora.safetensors", self.state.model, trained, self.config.init)
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
