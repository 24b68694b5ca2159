"""What EDM and consistency models cost, to train and to sample, in V100s: counted from multiply-accumulates.

A forward pass with a gradient to come is three passes' work in all (training takes 6 operations a MAC), one without a
gradient one. LPIPS's network is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.bench.costs import costs
from fastdiff.bench.v100 import V100_FLOPS, equivalent_v100_days
from fastdiff.choices import UTILISATION

SOURCE = "openai/consistency_models, scripts/launch.sh"
IMAGES = 1e6  # that the cost of training is also given for
_FORWARD = 1 / 3  # of a training pass
_CLASSIFIER = 3  # passes of a classifier that guides: forward and its input's gradient


@dataclass(frozen=True)
class Run:
    """A published training run.

    Attributes:
        passes: work of a training image over that of denoising training: the student's forward and backward pass, one
            forward pass of the target and, in distillation, two of the teacher (a Heun step).
        iterations: None where the source does not say.
    """

    preset: str
    method: str
    passes: float
    batch: int
    iterations: int | None = None

    def v100_days(self, images: float, utilisation: float = UTILISATION) -> float:
        """For this many training images, on V100s that reach ``utilisation``."""
        return equivalent_v100_days(images, costs()[self.preset].macs * self.passes, utilisation)

    @property
    def images(self) -> float | None:
        """Images seen in the whole run."""
        return None if self.iterations is None else float(self.iterations) * self.batch


_EDM, _CD, _CT = 1.0, 1 + 3 * _FORWARD, 1 + _FORWARD

RUNS = (
    Run("edm-imagenet-64", "EDM", _EDM, 4096),
    Run("cd-imagenet-64-l2", "consistency distillation", _CD, 2048, 600_000),
    Run("ct-imagenet-64", "consistency training", _CT, 2048, 800_000),
    Run("edm-bedroom-256", "EDM", _EDM, 256),
    Run("cd-bedroom-256-l2", "consistency distillation", _CD, 256, 600_000),
    Run("ct-bedroom-256", "consistency training", _CT, 256, 1_000_000),
)


@dataclass(frozen=True)
class Sampling:
    """A way to make images: so many calls of a network and, where one guides, of a classifier."""

    title: str
    preset: str
    calls: int
    classifier: str | None = None

    @property
    def macs(self) -> float:
        """Multiply-accumulates of an image."""
        guide = 0 if self.classifier is None else _CLASSIFIER * costs()[self.classifier].macs
        return self.calls * (costs()[self.preset].macs + guide)

    def v100_seconds(self, images: float = 1000, utilisation: float = UTILISATION) -> float:
        """2 MACs operations an image, on a V100 that reaches ``utilisation``."""
        return images * 2 * self.macs / (V100_FLOPS * utilisation)


SAMPLING = (
    Sampling("ADM-G, 250 steps", "adm-64", 250, "adm-64-classifier"),
    Sampling("ADM-G, 25 steps", "adm-64", 25, "adm-64-classifier"),
    Sampling("EDM, Heun, 40 steps", "edm-imagenet-64", 79),
    Sampling("consistency, 2 steps", "cd-imagenet-64-lpips", 2),
    Sampling("consistency, 1 step", "cd-imagenet-64-lpips", 1),
)
