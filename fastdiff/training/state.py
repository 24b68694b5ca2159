"""The whole state of a run, and its checkpoints: what is loaded goes on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import write_tensors
from fastdiff.models import Classifier, ModelConfig, UNet
from fastdiff.training.config import TrainConfig
from fastdiff.training.ema import EMA
from fastdiff.training.optimizer import AdamWEMA
from fastdiff.training.timesteps import LossSecondMomentTimes, UniformTimes

FOLDER = "checkpoints"
# What may change when a run goes on. The rest decides the numbers, and a checkpoint must agree with it.
_FREE = (
    {
        "data",
        "labels",
        "val_data",
        "val_labels",
        "val_every",
        "val_batches",
        "class_names",
        "out",
        "device",
        "threads",
        "resume",
        "progress",
    }
    | {"steps", "decay", "log_every", "checkpoint_every", "keep", "sample_every"}
    | {"preset", "image_size", "channels", "num_classes"}  # compared as the model that they lead to
)


@dataclass
class TrainState:
    """Everything that changes while training. ``step`` counts the updates that were made."""

    model: UNet | Classifier
    ema: EMA[UNet | Classifier]
    optimizer: AdamWEMA
    times: UniformTimes | LossSecondMomentTimes
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumptions
    pending: list[Tensor] = field(
        default_factory=list
    )  # [measures ..., gradient norm] of each step not yet logged

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, under the prefixes model, ema, optimizer, times."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        tensors |= {f"times.{k}": v for k, v in self.times.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                if not key.startswith("ema_"):  # these are the averaged model's parameters
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of :meth:`tensors`, each into the layout and onto the device of its parameter."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.model.load_state_dict(part("ema."))
        self.times.load_state_dict(part("times."))
        for name, parameter in self.model.named_parameters():
            for key, value in part(f"optimizer.{name}.").items():
                like = parameter if value.shape == parameter.shape else value  # moments; the step's number
                kept = torch.empty_like(like, device=parameter.device, requires_grad=False)
                self.optimizer.state[parameter][key] = kept.copy_(value)


def identity(
    config: TrainConfig, images: int, model: ModelConfig, diffusion: DiffusionConfig
) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that goes on from it."""
    fixed = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if f.name not in _FREE}
    whole = {**fixed, "images": images, "model": asdict(model), "diffusion": asdict(diffusion)}
    return json.loads(json.dumps(whole))  # as it comes back from a file: tuples are lists


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints under ``out``, oldest first."""
    return sorted((out / FOLDER).glob("step-*.safetensors"))


def save_checkpoint(out: Path, state: TrainState, identity: dict[str, Any], keep: int) -> Path:
    """Write ``out/checkpoints/step-<step>.safetensors`` whole or not at all; only the last ``keep`` stay."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:08d}.safetensors"
    pending = [values.tolist() for values in state.pending]
    about = {"step": state.step, "seconds": state.seconds, "pending": pending, "identity": identity}
    tensors = {k: v.contiguous() for k, v in state.tensors().items()}
    write_tensors(path, tensors, {"fastdiff.training": json.dumps(about)})
    for old in checkpoints(out)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Set ``state`` to what :func:`save_checkpoint` wrote.

    Raises:
        FastdiffError: a broken file, or one of a run with other options.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["fastdiff.training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FastdiffError(
            f"{path} is not a whole training checkpoint ({error}); delete it to go on"
        ) from None
    for name, value in identity.items():
        if about["identity"].get(name) != value:
            raise FastdiffError(
                f"{path} was trained with {name} = {about['identity'].get(name)!r}, "
                f"now {value!r} is asked for; give another --out"
            )
    state.load_tensors(tensors)
    state.step, state.seconds = about["step"], about["seconds"]
    device = next(state.model.parameters()).device
    state.pending = [torch.tensor(values, device=device) for values in about["pending"]]
