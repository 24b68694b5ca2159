"""The whole state of a run, and its checkpoints, from which a run continues as if it had never stopped."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.checkpoint.save import TRAINING_KEY
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import DamagedFile, open_tensors, parse_json, write_tensors, writing
from fastdiff.models import Classifier, ModelConfig, UNet, build_model
from fastdiff.models.lora import merge
from fastdiff.training.config import TrainConfig
from fastdiff.training.optimizer import AdamWEMA, LossScale
from fastdiff.training.parallel import fill, full
from fastdiff.training.timesteps import TimeSampler

_LOG = logging.getLogger(__name__)
FOLDER = "checkpoints"
LAYOUT = 2  # version of a checkpoint; 1 had one average, and noise from another generator
# Options that may change when a run is resumed. The others decide the results, so a checkpoint must agree with them.
_FREE = (
    {
        "data",
        "labels",
        "class_names",
        "augment",
        "skip_broken",
        "workers",
        "out",
        "resume",
        "progress",
        "track",
    }
    | {"quiet", "json", "device", "backend", "threads", "strategy", "microbatch", "recompute"}
    | {"steps", "lr_schedule", "decay", "max_minutes"}
    | {"log_every", "checkpoint_every", "keep", "sample_every"}
    | {"val_data", "val_labels", "val_every", "val_batches"}
    | {"fid_every", "fid_samples", "fid_features", "inception_weights"}
    | {"init", "preset", "image_size", "channels", "num_classes"}  # compared as the model that they lead to
)


@dataclass
class TrainState:
    """Everything that changes during training. ``step`` is the number of steps made.

    Parameters, moments and averages may be sharded over processes; checkpoints always hold the whole tensors.
    """

    model: UNet | Classifier
    optimizer: AdamWEMA
    times: TimeSampler
    scale: LossScale | None = None  # of float16
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumptions
    pending: list[Tensor] = field(default_factory=list)  # the measures of the steps that are not yet logged

    def averaged(self, index: int = 0) -> UNet | Classifier:
        """The model with the averages of decay ``index`` for weights, in eval mode.

        Its weights are the averages themselves, or gathered copies of shards; then all processes must call this.
        """
        with torch.device("meta"):
            model = build_model(self.model.config)
        fixed = {n: p.detach() for n, p in self.model.named_parameters() if not p.requires_grad}
        weights = merge(fixed | self.trained(index))
        model.load_state_dict(dict(self.model.named_buffers()) | weights, assign=True)
        model.diffusion, model.class_names = self.model.diffusion, self.model.class_names
        return model.eval().requires_grad_(False)

    def trained(self, index: int = 0) -> dict[str, Tensor]:
        """The averages of decay ``index`` by the names of the parameters, of those that are trained."""
        learning = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        return {name: full(self.optimizer.state[p][f"ema_{index}"]) for name, p in learning}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state, not copied, under the names model.*, optimizer.*.exp_avg, ..., times.*."""
        for name, parameter in self.model.named_parameters():
            yield f"model.{name}", parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{name}.{key}", value
        for name, buffer in self.model.named_buffers():
            yield f"model.{name}", buffer
        for name, value in self.times.state_dict().items():
            yield f"times.{name}", value


def identity(
    config: TrainConfig,
    images: int,
    model: ModelConfig,
    diffusion: DiffusionConfig,
    augment: str | None = None,
) -> dict[str, Any]:
    """The settings in which a checkpoint and the run that resumes from it must agree."""
    fixed = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if f.name not in _FREE}
    about = {"model": asdict(model), "diffusion": diffusion.stored(), "augment": augment}
    whole = {**fixed, "images": images, **about}
    return json.loads(json.dumps(whole))  # as it comes back from a file: tuples are lists


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints under ``out``, oldest first."""
    return sorted((out / FOLDER).glob("step-*.safetensors"))


def save_checkpoint(
    out: Path, state: TrainState, identity: dict[str, Any], keep: int, *, write: bool = True
) -> Path:
    """Write ``out/checkpoints/step-<step>.safetensors`` atomically; only the last ``keep`` checkpoints stay.

    Args:
        write: False on processes that only contribute their shards.
    """
    tensors = {}
    for name, tensor in state.tensors():
        whole = full(tensor)
        if write:
            tensors[name] = whole.cpu().contiguous()
    folder = out / FOLDER
    path = folder / f"step-{state.step:08d}.safetensors"
    if not write:
        return path
    with writing(folder):
        folder.mkdir(exist_ok=True)  # but not OUT: if it is missing, it was removed during the run
    about = {
        "layout": LAYOUT,
        "step": state.step,
        "seconds": state.seconds,
        "pending": [values.tolist() for values in state.pending],
        "scale": asdict(state.scale) if state.scale else None,
        "class_names": list(state.model.class_names),
        "identity": identity,
    }
    write_tensors(path, tensors, {TRAINING_KEY: json.dumps(about)})
    with writing(folder):
        for old in checkpoints(out)[:-keep]:
            old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Restore ``state`` from a file of :func:`save_checkpoint`.

    Raises:
        FastdiffError: a damaged file (the message names the previous checkpoint), or a run with other options.
    """
    with _reading(path), open_tensors(path) as file:
        about = parse_json(file.metadata[TRAINING_KEY])
        _check(path, about, identity)
        _fill(state, file.read)
        state.step, state.seconds = about["step"], about["seconds"]
        state.scale = LossScale(**about["scale"]) if about["scale"] else None
        device = next(state.model.parameters()).device
        state.pending = [torch.tensor(values, device=device) for values in about["pending"]]


def followed(path: Path) -> dict[str, Any]:
    """The options of :class:`TrainConfig` that a checkpoint's run took from its data when it began.

    Raises:
        FastdiffError: a damaged file, as for :func:`load_checkpoint`.
    """
    with _reading(path), open_tensors(path) as file:
        about = parse_json(file.metadata[TRAINING_KEY])
        model, identity = about["identity"]["model"], about["identity"]
        return {
            "image_size": model["image_size"],
            "channels": model["in_channels"],
            "num_classes": model["num_outputs"] if "num_outputs" in model else model["num_classes"] or 0,
            "class_names": tuple(about["class_names"]),
            "small_size": identity["small_size"],
        }


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Context for code that reads a checkpoint: what is missing or damaged becomes advice."""
    try:
        yield
    except (DamagedFile, KeyError, TypeError, AttributeError, RuntimeError) as error:
        before = [other for other in checkpoints(path.parent.parent) if other < path]
        otherwise = (
            f"go on from the one before, {before[-1].name}" if before else "begin anew: it is the only one"
        )
        damaged = isinstance(error, DamagedFile)
        told = (
            error if damaged else f"{path} is no whole training checkpoint ({type(error).__name__} {error})"
        )
        raise FastdiffError(f"{told}; delete it to {otherwise}") from None


def _fill(state: TrainState, read: Callable[[str], Tensor]) -> None:
    for name, tensor in state.tensors():
        fill(tensor, read(name))


def _check(path: Path, about: dict[str, Any], identity: dict[str, Any]) -> None:
    if about.get("layout") != LAYOUT:
        raise FastdiffError(f"{path} was written by another version of fastdiff; give another --out")
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    for name, value in identity.items():
        before = about["identity"].get(name, defaults.get(name))  # it may be older than the option
        if before == value or (name == "small_size" and before is None):  # then chosen from the image size
            continue
        if name == "images":
            _LOG.warning("the data have %d images now, %d before: their order is another one", value, before)
            continue
        if isinstance(value, dict) and isinstance(before, dict):  # of the model: the one that differs
            name = next(key for key in value if before.get(key) != value[key])
            before, value = before.get(name), value[name]
        raise FastdiffError(
            f"{path} was trained with {name} = {before!r}, now {value!r} is asked for; give another --out, "
            f"or all options of that run by --config {path.parent.parent / 'config.json'}"
        )
