"""Everything that defines a training run, as one frozen dataclass (its fields are the command's options)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fastdiff.diffusion.loss import Loss
from fastdiff.errors import FastdiffError
from fastdiff.models.config import Recompute
from fastdiff.scalars import plain

Fit = Literal["crop", "random-crop", "pad"]
Precision = Literal["float32", "bfloat16", "float16"]
Timesteps = Literal["uniform", "loss-second-moment"]
Strategy = Literal["ddp", "fsdp"]

MOST_AVERAGES = 4  # that one pass of the optimizer's kernels keeps

_POSITIVE = ("batch_size", "steps", "threads", "log_every", "checkpoint_every", "keep")
_POSITIVE += ("val_every", "val_batches")
_NOT_NEGATIVE = ("seed", "warmup", "decay", "sample_every", "weight_decay", "clip_norm")
_NOT_NEGATIVE += ("microbatch", "workers")


_WHOLE = (
    "batch_size",
    "steps",
    "threads",
    "log_every",
    "checkpoint_every",
    "keep",
    "val_every",
    "val_batches",
)
_WHOLE += ("seed", "warmup", "decay", "sample_every", "microbatch", "workers", "image_size", "channels")
_WHOLE += ("num_classes", "small_size")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: data, model, optimisation and what is written when.

    Raises FastdiffError for a value outside its range.
    """

    data: Path
    """A folder, .zip or webdataset shards of images (class = first folder), an IDX images file, or an .npz."""
    out: Path
    """Folder for checkpoints, log.jsonl, sample grids and, at the end, model.safetensors."""
    labels: Path | None = None
    """Labels of an IDX images file; found beside it by name if left out."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order; from the data if left out."""
    fit: Fit = "crop"
    """Of another size: "crop" cuts the centre out, "random-crop" 0.8 to 1 of it, anywhere, "pad" adds a black rim."""
    flip: bool = False
    """Mirror half of the images, chosen at random."""
    skip_broken: bool = False
    """Try each image of a folder or archive first; leave out, and list, what cannot be read; without, an error."""
    workers: int | None = None
    """Processes that decode images ahead of their step; left out, as many as make sense, 0 if images are in memory."""
    val_data: Path | None = None
    """Images that are not trained on, as DATA; the averaged model is measured on them."""
    val_labels: Path | None = None
    """As LABELS, of VAL_DATA."""

    preset: str = "fashion-mnist"
    """The model: a preset's name, or a .json file {"model": {...}, "diffusion": {...}}."""
    image_size: int | None = None
    """Overrides the preset's image size."""
    channels: int | None = None
    """Overrides the preset's image channels: 1 (grey) or 3 (RGB)."""
    num_classes: int | None = None
    """Overrides the preset's number of classes; 0 trains without labels."""
    small_size: int | None = None
    """Upsamplers: size of the images they enlarge; a quarter of the image size if left out."""
    noised: bool = True
    """Classifiers: train on noisy images, as guidance needs; --no-noised on clean ones, at time 0."""

    steps: int = 100_000
    """Steps in all; a resumed run counts from the first."""
    batch_size: int = 64
    """Images a step, of all processes together."""
    microbatch: int = 0
    """Images that a process takes at a time, for lack of memory: gradients add up to the batch's. 0: all."""
    lr: float = 1e-3
    """Learning rate of AdamW after the warm-up."""
    warmup: int = 200
    """Steps over which the learning rate rises from 0."""
    decay: int = 0
    """Last steps, over which the learning rate falls to 0 in a straight line."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema: tuple[float, ...] = (0.999,)
    """Decays of averaged weights, up to 4: saved as model.safetensors (the first), model-ema-DECAY.safetensors."""
    label_dropout: float = 0.1
    """Share of labels replaced by "no class", if the model has it, for classifier-free guidance."""
    loss: Loss = "mse"
    """Of denoisers and upsamplers; "mse" and "rescaled_mse" (ADM's) train a learned variance as well."""
    timesteps: Timesteps = "uniform"
    """How diffusion times are drawn; "loss-second-moment" is IDDPM's importance sampling."""
    precision: Precision = "float32"
    """Of the forward and backward pass, by autocast; weights stay float32. float16 scales the loss."""
    recompute: Recompute = "none"
    """What the backward makes again to save memory: "selective" norms, "full" all; gradients stay the same."""
    seed: int = 0
    """Of everything random: weights, order, mirroring, times, noise, dropped labels and units."""
    device: str = "cpu"
    """Where to run: cpu, cuda or cuda:N. Under torchrun, cuda is a GPU for each process."""
    strategy: Strategy = "ddp"
    """Under torchrun: "ddp" has the model on every process, "fsdp" (FSDP2) a share, for what does not fit."""
    threads: int | None = None
    """CPU threads; all cores if left out."""

    resume: Literal["auto", "never"] = "auto"
    """"auto" goes on from the last checkpoint in OUT, if there is one, as if never stopped."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """How many checkpoints stay."""
    sample_every: int = 0
    """Steps between sample grids, 0 for none."""
    val_every: int = 500
    """Steps between measurements on VAL_DATA."""
    val_batches: int = 10
    """Batches of each; always the same ones."""
    tensorboard: bool = False
    """Also write the log and the sample grids to OUT/tensorboard; needs the package tensorboard."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise FastdiffError(f"{name} must be a whole number, got {value!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FastdiffError(f"{name} must be at least 1, got {value}")
        if self.seed >= 1 << 32:
            raise FastdiffError(f"seed must be below 2^32, got {self.seed}")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise FastdiffError(f"{name} must be at least 0, got {value}")
        if not 0 < self.lr < float("inf"):
            raise FastdiffError(f"lr must be a positive number, got {self.lr}")
        for name, values in (("ema", self.ema), ("label_dropout", (self.label_dropout,))):
            for value in values:
                if not 0 <= value < 1:
                    raise FastdiffError(f"{name} must be from 0 to below 1, got {value}")
        if not 1 <= len(set(self.ema)) == len(self.ema) <= MOST_AVERAGES:
            raise FastdiffError(f"ema must be one to {MOST_AVERAGES} different decays, got {self.ema}")
        if self.channels not in (None, 1, 3):
            raise FastdiffError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")

    def learning_rate(self, step: int) -> float:
        """Of update ``step`` (counted from 0): a rise from 0, a plateau, a fall to 0; each a straight line.

        Until the fall begins it does not depend on ``steps``, so a run may be lengthened or shortened then.
        """
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0
        return self.lr * rise * fall
