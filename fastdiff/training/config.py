"""The settings of a training run, as one frozen dataclass whose fields are the options of ``fastdiff train``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_type_hints

from fastdiff.choices import (
    Denoised,
    Distance,
    Fit,
    Loss,
    LossWeights,
    Pairs,
    Precision,
    Recompute,
    TaskName,
)
from fastdiff.errors import FastdiffError
from fastdiff.training.values import typed

if TYPE_CHECKING:
    from fastdiff.diffusion.weighting import LossWeighting

Timesteps = Literal["uniform", "loss-second-moment"]
Strategy = Literal["ddp", "fsdp"]
LrSchedule = Literal["constant", "linear", "cosine"]

DEFAULT_PRESET = "fashion-mnist"
MOST_AVERAGES = 4  # the number of averages that the optimizer's kernels update in one pass

_AT_LEAST = {
    1: ("batch_size", "steps", "decay", "threads", "log_every", "checkpoint_every", "keep")
    + ("val_every", "val_batches", "fid_samples"),
    0: ("seed", "warmup", "sample_every", "weight_decay", "clip_norm", "microbatch", "workers", "fid_every")
    + ("lora",),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run: data, model, optimisation, and what is written when.

    Raises:
        FastdiffError: a value outside its range.
    """

    data: Path
    """Training images: a folder, .zip, webdataset shards, IDX file, .npz or parquet, or hf:NAME for Hugging Face's."""
    out: Path
    """Folder for checkpoints, log.jsonl, sample grids and, at the end, model.safetensors."""
    labels: Path | None = None
    """Labels file of an IDX images file, or column of a Hugging Face data set. Default: found by name or type."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order. Default: those of the data."""
    fit: Fit = "crop"
    """How to fit images of another size: crop the centre, crop 0.8 to 1 of the shorter side at random, or pad black."""
    flip: bool = False
    """Mirror half of the images, chosen at random, from left to right."""
    flip_vertical: bool = False
    """Mirror half of the images, chosen at random, from top to bottom."""
    augment: str | None = None
    """Augmentation by a Python function or object, such as transforms:train for the name train in transforms.py."""
    skip_broken: bool = False
    """Check every image first, and skip and list broken ones instead of raising an error."""
    workers: int | None = None
    """Processes that decode images in advance. Default: by the number of processors; 0 if the images are in memory."""
    val_data: Path | None = None
    """Validation images, in the same formats as DATA: the loss of the averaged model on them is logged."""
    val_labels: Path | None = None
    """Labels file of VAL_DATA, as LABELS is of DATA."""

    init: str | None = None
    """Checkpoint to fine-tune: a file, or the name of a bundled model. Its architecture is used; what fits is kept."""
    task: TaskName = "diffusion"
    """What to train: "diffusion", with the loss of the network's kind, or "consistency", to sample in 1 to 4 steps."""
    teacher: str | None = None
    """Checkpoint of the denoiser to distil; training starts from its weights. Default: train on the data alone."""
    pairs: Pairs = "halving"
    """Pairs of noise levels: "halving" their gap (ECT), "doubling" a grid (iCT), one "grid", or "continuous" (sCM)."""
    pair_levels: int = 40
    """Number of noise levels, if PAIRS is "grid"."""
    distance: Distance = "pseudo-huber"
    """Distance of the images of two noise levels, in consistency training; "lpips" needs torchmetrics[image]."""
    target_ema: float = 0.0
    """Decay of the averaged weights that compute the target, at the lower noise level. 0: the weights themselves."""
    lora: int = 0
    """Rank of low-rank adapters, which are trained in place of the weights of INIT. 0: all weights are trained."""
    preset: str = DEFAULT_PRESET
    """Configuration of the model: the name of a preset, or a .json file {"model": {...}, "diffusion": {...}}."""
    image_size: int | None = None
    """Image size in pixels. Default: the data's, up to the preset's or 64, whichever is larger."""
    channels: int | None = None
    """Image channels: 1 (grey) or 3 (RGB). Default: as in the data."""
    num_classes: int | None = None
    """Number of classes; 0 trains without labels. Default: as in the data."""
    small_size: int | None = None
    """Size in pixels of the images that an upsampler enlarges. Default: a quarter of the image size."""
    low_res_noise: float = 0.0
    """Largest standard deviation of noise added to an upsampler's small images, because generated ones have flaws."""
    noised: bool = True
    """Train a classifier on noisy images, as guidance needs; with --no-noised on clean images, at time 0."""

    steps: int = 100_000
    """Total number of training steps, including those before a resumption."""
    max_minutes: float | None = None
    """Time limit in minutes: the run then stops with a checkpoint and a model, and the same command continues it."""
    batch_size: int = 64
    """Number of images in a step, of all processes together."""
    microbatch: int = 0
    """Number of images that a process computes at a time to save memory; gradients are summed. 0: all at once."""
    lr: float = 1e-3
    """Learning rate of AdamW after the warm-up."""
    warmup: int = 200
    """Number of first steps over which the learning rate rises linearly from 0."""
    lr_schedule: LrSchedule = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 at the last step, in a line or half a cosine."""
    decay: int | None = None
    """Number of last steps over which a linear or cosine learning rate falls. Default: all after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 1.0
    """Norm to which the whole gradient is clipped. 0: no clipping."""
    ema: tuple[float, ...] = (0.999,)
    """Decays of up to 4 averages of the weights, saved as model.safetensors (first) and model-ema-DECAY.safetensors."""
    label_dropout: float = 0.1
    """Share of labels replaced by "no class", for classifier-free guidance, if the model has such a class."""
    loss: Loss = "mse"
    """Loss of denoisers and upsamplers; "mse" and "rescaled_mse" (ADM's) also train a learned variance."""
    loss_weighting: LossWeights = "none"
    """Weight of the squared error at each time: "min-snr" (Hang et al. 2023) or "p2" (Choi et al. 2022)."""
    min_snr_gamma: float = 5.0
    """Signal-to-noise ratio at which min-snr stops increasing the weight of the error of the image."""
    p2_gamma: float = 1.0
    """Exponent of p2's weight 1 / (k + SNR)^gamma."""
    p2_k: float = 1.0
    """Constant k of p2's weight 1 / (k + SNR)^gamma."""
    timesteps: Timesteps = "uniform"
    """Distribution of the diffusion times; "loss-second-moment" is IDDPM's importance sampling."""
    parametrisation: Denoised | None = None
    """Train as an EDM model (Karras et al. 2022) or a rectified flow. Default: the preset's diffusion."""
    noise_mean: float | None = None
    """Mean of ln sigma of edm (default -1.2), or of the logit of a flow's time (default: times are uniform)."""
    noise_std: float | None = None
    """Standard deviation of the same: default 1.2 for edm, and 1 for a flow if NOISE_MEAN is given."""
    precision: Precision = "float32"
    """Precision of the forward and backward pass, by autocast; weights stay float32. float16 uses loss scaling."""
    recompute: Recompute = "none"
    """What the backward pass recomputes to save memory: "selective", norms and activation functions; "full", all."""
    seed: int = 0
    """Random seed of initial weights, data order, mirroring, diffusion times, noise and dropout."""
    device: str = "auto"
    """Device: auto (the GPU, if there is one), cpu, cuda or cuda:N. Under torchrun, cuda is one for each process."""
    backend: Literal["auto", "eager", "reference", "cpu", "triton", "cuda"] = "auto"
    """Backend of the ops; "auto" picks the fastest one available."""
    strategy: Strategy = "ddp"
    """Under torchrun: "ddp" keeps the whole model in each process, "fsdp" (FSDP2) a part, for large models."""
    threads: int | None = None
    """Number of CPU threads. Default: one for each core."""

    resume: Literal["auto", "never"] = "auto"
    """"auto" resumes from the last checkpoint in OUT, if there is one, with the same results as an unbroken run."""
    log_every: int = 10
    """Number of steps between lines of log.jsonl, and of the output where it is no terminal."""
    checkpoint_every: int = 500
    """Number of steps between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    sample_every: int = 500
    """Number of steps between sample grids; one more is made at the end of the run. 0: no sample grids."""
    val_every: int = 500
    """Number of steps between validations on VAL_DATA."""
    val_batches: int = 10
    """Number of batches in a validation, the same ones every time."""
    fid_every: int = 0
    """Number of steps between FIDs of samples of the averaged model against VAL_DATA. 0: no FID."""
    fid_samples: int = 1000
    """Number of samples for an FID: if possible, more than the feature network has features (Inception: 2048)."""
    fid_features: str | None = None
    """Feature network of the FID, as --features of fastdiff evaluate: "inception" or a classifier's checkpoint."""
    inception_weights: Path | None = None
    """Local file with Inception's weights, pt_inception-2015-12-05-6726825d.pth; nothing is downloaded."""
    track: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ()
    """Trackers that also get the log and the sample grids: OUT/log.csv, OUT/tensorboard, Weights & Biases."""
    progress: bool = True
    """Show a progress bar, if the output is a terminal."""
    quiet: bool = False
    """Print only errors and the result."""
    json: bool = False
    """Print one JSON object a line, and nothing else, on the standard output."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(TrainConfig).items():
            object.__setattr__(self, name, typed(name, getattr(self, name), kind))
        for least, names in _AT_LEAST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not value >= least:
                    raise FastdiffError(f"{name} must be at least {least}, got {value}")
        if self.seed >= 1 << 32:
            raise FastdiffError(f"seed must be below 2^32, got {self.seed}")
        if self.decay is not None and self.lr_schedule == "constant":
            raise FastdiffError(
                "decay is the length of the fall of a linear or cosine learning rate; give --lr-schedule linear with it"
            )
        if self.noise_std is not None and not 0 < self.noise_std < float("inf"):
            raise FastdiffError(f"noise_std must be a positive number, got {self.noise_std}")
        if self.noise_mean is not None and not math.isfinite(self.noise_mean):
            raise FastdiffError(f"noise_mean must be a finite number, got {self.noise_mean}")
        if not 0 <= self.low_res_noise < float("inf"):
            raise FastdiffError(f"low_res_noise must be a number of at least 0, got {self.low_res_noise}")
        if self.max_minutes is not None and not 0 < self.max_minutes < float("inf"):
            raise FastdiffError(f"max_minutes must be a positive number, got {self.max_minutes}")
        if not 0 < self.lr < float("inf"):
            raise FastdiffError(f"lr must be a positive number, got {self.lr}")
        for name, values in (
            ("ema", self.ema),
            ("label_dropout", (self.label_dropout,)),
            ("target_ema", (self.target_ema,)),
        ):
            for value in values:
                if not 0 <= value < 1:
                    raise FastdiffError(f"{name} must be from 0 to below 1, got {value}")
        if not 1 <= len(set(self.ema)) == len(self.ema) <= MOST_AVERAGES:
            raise FastdiffError(f"ema must be one to {MOST_AVERAGES} different decays, got {self.ema}")
        if len(self.averages) > MOST_AVERAGES:
            raise FastdiffError(
                f"the target's is one of {MOST_AVERAGES} averages; give fewer decays with --ema"
            )
        if self.channels not in (None, 1, 3):
            raise FastdiffError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.task != "consistency":
            for name in ("teacher", "pairs", "pair_levels", "distance", "target_ema"):
                if getattr(self, name) != getattr(TrainConfig, name):
                    option = name.replace("_", "-")
                    raise FastdiffError(
                        f"{name} is of consistency training; give --task consistency with --{option}"
                    )
        if self.lora and (self.init is None or self.strategy == "fsdp"):
            raise FastdiffError(
                "adapters are trained on a checkpoint and not sharded; give --init with --lora, and --strategy ddp"
            )
        if self.target_ema and (self.lora or self.strategy == "fsdp"):
            raise FastdiffError(
                "the target's average is of whole weights; leave out --target-ema, --lora or fsdp"
            )
        _ = self.weighting  # raises an error for numbers outside their ranges

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of all averages of the weights: those that are saved, and then the target's, if there is one."""
        return (*self.ema, *([self.target_ema] if self.target_ema else []))

    @property
    def weighting(self) -> LossWeighting:
        """The weights of the squared error."""
        # And with it PyTorch, which --help does without.
        from fastdiff.diffusion.weighting import LossWeighting

        return LossWeighting(self.loss_weighting, self.min_snr_gamma, self.p2_gamma, self.p2_k)

    def learning_rate(self, step: int) -> float:
        """Learning rate of update ``step`` (counted from 0), the product of ``lr``, warm-up and schedule.

        The warm-up is min(1, (step + 1) / warmup). With u = min(1, (steps - step) / decay), the share of the fall that
        is still to come, "linear" is u and "cosine" (1 - cos(pi u)) / 2 (Loshchilov & Hutter 2017, without restarts).
        Before the fall begins it does not depend on ``steps``, so a run may then still be lengthened or shortened.
        """
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.lr_schedule == "constant":
            return self.lr * rise
        left = min(1.0, (self.steps - step) / (self.decay or max(1, self.steps - self.warmup)))
        return self.lr * rise * (left if self.lr_schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
