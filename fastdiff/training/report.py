"""What a run prints: what it found and will do, how it goes, and the commands that come next.

On a terminal there is a progress bar; elsewhere a line each ``log_every`` steps; with ``json`` one object a line.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdiff.data.readers import is_grey
from fastdiff.models import ClassifierConfig
from fastdiff.scalars import duration
from fastdiff.training.config import TrainConfig
from fastdiff.training.prepare import Prepared

_LISTED = 12  # classes that the summary names
_BOUND_STEPS = 25  # of the evaluation that is proposed


def shows_bars(config: TrainConfig) -> bool:
    """True if progress bars are wanted and standard error is a terminal that can show them."""
    return config.progress and not config.quiet and not config.json and sys.stderr.isatty()


class Report:
    """The output of a run.

    Args:
        prints: False on a process that leaves the printing to another one.
    """

    def __init__(self, config: TrainConfig, prepared: Prepared, *, prints: bool) -> None:
        self._config, self._prepared = config, prepared
        self._prints = prints
        self._talks = prints and not config.quiet and not config.json
        self._bars = prints and shows_bars(config)
        self._lines = self._talks and not (self._bars and sys.stdout.isatty())
        self._bar = tqdm(disable=True)

    def begin(self, parameters: int, device: str, step: int) -> None:
        """Print what was found, and what is going to be done."""
        about = _about(self._config, self._prepared, parameters, device, step)
        self._tell("start", about, *_in_words(self._config, about, self._prepared.notes))
        n, bars = self._config.batch_size, self._bars
        self._bar = tqdm(
            total=self._config.steps * n, initial=step * n, disable=not bars, unit="img", unit_scale=True
        )

    def advance(self) -> None:
        """A step has been made."""
        self._bar.update(self._config.batch_size)

    def speed(self, images_per_second: float, seconds_left: float) -> None:
        """The speed of the first steps."""
        words = f"speed      {images_per_second:.3g} images/s, {duration(seconds_left)} left"
        self._tell(
            "speed", {"images_per_second": images_per_second, "seconds_left": round(seconds_left)}, words
        )

    def log(self, line: dict[str, Any], seconds_left: float) -> None:
        """A line of the log, with the time until the run ends."""
        loss = line["loss"]
        shown = "-" if loss is None else f"{loss:.4f}"
        rate, left = f"{line['images_per_second']:.4g} images/s", f"{duration(seconds_left)} left"
        self._bar.set_postfix({"step": line["step"], "loss": shown}, refresh=False)
        words = [f"{self._at(line['step'])}: loss {shown}, {rate}, {left}"] if self._lines else []
        self._tell("log", {**line, "seconds_left": round(seconds_left)}, *words)

    def validated(self, line: dict[str, Any]) -> None:
        """A validation was made."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
        self._tell("validation", line, f"{self._at(line['step'])}: {values}")

    def wrote(self, kind: str, step: int, path: Path) -> None:
        """A file was written, of the kind "samples" or "checkpoint"."""
        words = [f"{self._at(step)}: {kind} {path}"] if self._lines or kind == "samples" else []
        self._tell(kind, {"step": step, "path": str(path)}, *words)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def end(self, step: int, seconds: float, model: Path, stopped: str | None) -> None:
        """Print the result, and the commands that sample from the model, evaluate it and train it further.

        Args:
            seconds: spent training, over all starts.
            stopped: "interrupt" or "time" for a run that is not finished.
        """
        config = self._config
        if not self._prints:
            return
        commands = next_commands(config, self._prepared, finished=stopped is None)
        result = {"step": step, "steps": config.steps, "stopped": stopped, "model": str(model)}
        if config.json:
            self._tell("end", {**result, "seconds": round(seconds, 2), "commands": commands})
            return
        if stopped is None:
            print(f"trained {step} steps in {duration(seconds)}\nwrote   {model}", flush=True)
        else:
            limit = (
                ""
                if stopped == "interrupt"
                else f", after the {config.max_minutes:g} minutes of --max-minutes"
            )
            message = (
                f"stopped after step {step} of {config.steps}{limit}; run the command again to go on;"
                f" the model so far is {model}"
            )
            print(message, file=sys.stderr if stopped == "interrupt" else sys.stdout, flush=True)
        if self._talks:
            for name, command in commands.items():
                print(f"{name:<11}{command}", flush=True)

    def _at(self, step: int) -> str:
        return f"step {step} of {self._config.steps}"

    def _tell(self, event: str, facts: dict[str, Any], *words: str) -> None:
        if self._prints and self._config.json:
            print(json.dumps({"event": event, **facts}), flush=True)
        elif self._talks and words:
            self._bar.clear()
            print(*words, sep="\n", flush=True)


def next_commands(config: TrainConfig, prepared: Prepared, *, finished: bool) -> dict[str, str]:
    """Shell commands by what they do, for the model of a run."""
    out, model, commands = str(config.out), str(config.out / "model.safetensors"), dict[str, list[str]]()
    denoiser = not isinstance(prepared.model, ClassifierConfig) and prepared.model.low_res is None
    if denoiser:
        sampled = ["--n", "16", "--out", os.path.join(out, "sampled")]
        commands["sample"] = ["fastdiff", "sample", "--checkpoint", model, *sampled]
    has_bound = prepared.diffusion.parametrisation == "discrete"
    if denoiser and has_bound and prepared.found.channels <= prepared.model.in_channels:
        how = ["--timestep-respacing", str(min(_BOUND_STEPS, prepared.diffusion.steps))]
        how += ["--n", str(min(64, len(prepared.data))), "--out", os.path.join(out, "evaluation")]
        labels = [] if config.labels is None else ["--labels", str(config.labels)]
        fit = "pad" if config.fit == "pad" else "crop"
        data = ["--reference", str(config.data), *labels, "--fit", fit]
        commands["evaluate"] = ["fastdiff", "evaluate", model, "--bits-per-dim", *data, *how]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    start = ["fastdiff"]
    if processes > 1:
        start = ["torchrun", f"--nproc-per-node={processes}", "-m", "fastdiff"]
    more = ["--steps", str(2 * config.steps)] if finished else []
    more += ["--resume", "auto"] if config.resume == "never" else []
    commands["resume"] = [*start, "train", "--config", os.path.join(out, "config.json"), *more]
    return {name: shlex.join(command) for name, command in commands.items()}


def _few(number: float) -> str:
    """A number to two digits, or all of them before the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _about(
    config: TrainConfig, prepared: Prepared, parameters: int, device: str, step: int
) -> dict[str, Any]:
    """What was found and will be done, as it is printed with ``json``."""
    model, found = prepared.model, prepared.found
    shape = [model.image_size, model.image_size, model.in_channels]
    sizes = [{"size": list(size), "images": count} for size, count in found.sizes.most_common()]
    return {
        "data": str(config.data),
        "images": found.images,
        "checked": found.looked_at,
        "sizes": sizes[:_LISTED],
        "modes": dict(found.modes.most_common()),
        "classes": prepared.classes,
        "preset": None if config.init else config.preset,
        "init": config.init,
        "notes": prepared.notes,
        "input": shape,
        "parameters": parameters,
        "device": device,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "step": step,
        "steps": config.steps,
        "out": str(config.out),
    }


def _in_words(config: TrainConfig, about: dict[str, Any], notes: list[str]) -> list[str]:
    images, height, channels = about["images"], about["input"][0], about["input"][2]
    several = f" and {len(about['sizes']) - 1} other sizes" if len(about["sizes"]) > 1 else ""
    width, tall = about["sizes"][0]["size"]
    checked = "" if about["checked"] == images else f"; {about['checked']} of them checked"
    colours = "grey" if all(map(is_grey, about["modes"])) else "colour"
    classes = [f"{name} {count}" for name, count in about["classes"].items()]
    if len(classes) > _LISTED:
        counts = about["classes"].values()
        classes[_LISTED:] = [f"... (the smallest has {min(counts)} images, the largest {max(counts)})"]
    listed = f"{len(about['classes'])}: {', '.join(classes)}" if classes else "none; trained without labels"
    epochs = _few(config.steps * config.batch_size / images)
    schedule = [f"a checkpoint every {config.checkpoint_every} steps"]
    schedule += [f"samples every {config.sample_every}"] if config.sample_every else []
    resumed = f"; goes on from step {about['step']}" if about["step"] else ""
    return [
        f"data       {config.data}: {images} {colours} images of {width}x{tall}{several}{checked}",
        f"classes    {listed}",
        f"model      {config.init or config.preset}, {height}x{height} {'grey' if channels == 1 else 'RGB'}, "
        f"{about['parameters'] / 1e6:.2f} M parameters",
        *(f"note       {note}" for note in notes),
        f"device     {about['device']}, {config.precision}",
        f"training   {config.steps} steps of {config.batch_size} images, {epochs} times through the data{resumed}",
        f"output     {config.out}: {', '.join(schedule)}",
    ]
