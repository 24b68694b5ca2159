"""The options that define a diffusion process, as one frozen dataclass, which is stored in checkpoints."""

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from fastdiff.errors import FastdiffError

Schedule = Literal["linear", "cosine", "scaled_linear", "sigmoid"]
Prediction = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


@dataclass(frozen=True)
class DiffusionConfig:
    """A process q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), and what the model predicts.

    Raises:
        FastdiffError: a value that is not one of the field's choices, or steps below 1.
    """

    steps: int = 1000  # T
    schedule: Schedule = "linear"
    prediction: Prediction = "epsilon"
    variance: Variance = "fixed_small"  # of the reverse step: beta-tilde, beta, or from the model
    rescale_timesteps: bool = False  # the model sees t * 1000 / T

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise FastdiffError(f"diffusion steps must be an integer of at least 1, got {self.steps!r}")
        hints = get_type_hints(type(self))
        for field in fields(self):
            choices = get_args(hints[field.name])
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise FastdiffError(f"unknown diffusion {field.name} {value!r}; known: {', '.join(choices)}")

    @property
    def learns_variance(self) -> bool:
        """True when the model's output has twice the channels of x, the second half for the variance."""
        return self.variance in ("learned", "learned_range")
