"""A training run's folder: the checkpoint that it continues from, its log, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastdiff.dpm2015.training import Training, Validate
from fastdiff.errors import FastdiffError
from fastdiff.files import (
    DamagedFile,
    locked,
    open_tensors,
    parse_json,
    remove_halves,
    write_tensors,
    writing,
)
from fastdiff.training.log import Log
from fastdiff.training.loop import interrupts

CHECKPOINT = "checkpoint.safetensors"
_KEY, _LAYOUT = "fastdiff.dpm2015", 1  # the checkpoint's metadata, and their version


class Stopped(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was written."""


@dataclass(frozen=True)
class Run:
    """One run in a folder of its own: OUT/checkpoint.safetensors, written atomically, and OUT/log.jsonl.

    A run that is stopped, or even killed, and started again has the same results, bit for bit, as an unbroken run on
    the same machine and library versions. A line of the log has a ``step`` (iterations made), ``kl`` (the running mean
    of the divergences' sum in training, bits an element), ``val_k`` and ``val_k_error`` (K on held-out data), and
    ``seconds``.

    Args:
        out: the folder.
        options: what decides the result, by name; a run in the folder with others is not continued.
        resume: "auto" continues the run in the folder, "never" is an error if there is one.
        checkpoint_every, val_every: number of iterations between checkpoints, and between estimates of K.

    Raises:
        FastdiffError: a number below 1.
    """

    out: Path
    options: dict[str, Any]
    resume: Literal["auto", "never"] = "auto"
    checkpoint_every: int = 500
    val_every: int = 500

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "val_every"):
            if getattr(self, name) < 1:
                raise FastdiffError(f"{name} must be at least 1, got {getattr(self, name)}")

    @contextlib.contextmanager
    def recorded(self, training: Training, validate: Validate | None) -> Iterator[Callable[[], None]]:
        """Restore ``training`` from the folder; yields what is to be called after each iteration.

        Raises:
            FastdiffError: another run, in use or with other options, or a damaged checkpoint.
            Stopped: Ctrl-C (or SIGTERM).
        """
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out), interrupts() as interrupted:
            remove_halves(self.out)
            seconds, log = self._begin(training), Log(self.out)
            log.resume(training.iteration)
            started, total = time.perf_counter() - seconds, training.recipe.iterations

            def record() -> None:
                i, last = training.iteration, training.iteration == total
                if validate and (i % self.val_every == 0 or last):
                    training.held = k, error = validate(training.network, training.diffusion)
                    spent = round(time.perf_counter() - started, 2)
                    line = {"step": i, "kl": training.running, "val_k": k, "val_k_error": error}
                    log.write({**line, "seconds": spent})
                stop = interrupted.is_set()
                if stop or last or i % self.checkpoint_every == 0:
                    self._save(training, time.perf_counter() - started)
                if stop:
                    raise Stopped(
                        f"stopped after iteration {i} of {total}; the same command continues from there"
                    )

            yield record

    def history(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [parse_json(line) for line in (self.out / "log.jsonl").read_text().splitlines()]

    def _begin(self, training: Training) -> float:
        """Continue from the checkpoint, or write the first. Returns the seconds spent before."""
        path = self.out / CHECKPOINT
        if not path.exists() and (self.out / "log.jsonl").exists():
            raise FastdiffError(f"{self.out} holds the log of another program's run; give another --out")
        if path.exists() and self.resume == "never":
            raise FastdiffError(f"{self.out} holds an earlier run; resume it or give another --out")
        if path.exists():
            return self._load(path, training)
        self._save(training, 0.0)  # the folder is this run's from now on
        return 0.0

    def _save(self, training: Training, seconds: float) -> None:
        about = {
            "layout": _LAYOUT, "iteration": training.iteration, "running": training.running, "held": training.held,
            "seconds": seconds, "options": self.options,
        }  # fmt: skip
        write_tensors(self.out / CHECKPOINT, training.tensors(), {_KEY: json.dumps(about)})

    def _load(self, path: Path, training: Training) -> float:
        try:
            with open_tensors(path) as file:
                about = parse_json(file.metadata[_KEY])
                self._check(about)
                training.restore({name: file.read(name) for name in file.names})
            training.iteration, training.running = about["iteration"], about["running"]
            training.held = tuple(about["held"]) if about["held"] else None
            return about["seconds"]
        except (DamagedFile, KeyError, TypeError, RuntimeError) as error:
            told = (
                error
                if isinstance(error, DamagedFile)
                else f"{path} is no whole checkpoint of this experiment"
            )
            raise FastdiffError(f"{told}; give another --out") from None

    def _check(self, about: dict[str, Any]) -> None:
        if about["layout"] != _LAYOUT:
            raise FastdiffError(f"{self.out} holds a run of another version of fastdiff; give another --out")
        before, now = about["options"], json.loads(json.dumps(self.options))  # in a file tuples are lists
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if other:
            was, wanted = (", ".join(f"{name} = {o.get(name)}" for name in other) for o in (before, now))
            raise FastdiffError(
                f"{self.out} holds a run with {was}, now {wanted} is asked for; give another --out"
            )
