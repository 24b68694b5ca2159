"""The options that define a diffusion process, as one frozen dataclass, which is stored in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from fastdiff.choices import Parametrisation
from fastdiff.errors import FastdiffError
from fastdiff.scalars import is_finite, number

Schedule = Literal["linear", "cosine", "scaled_linear", "sigmoid"]
Prediction = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]

_RANGE = ("sigma_min", "sigma_max", "rho")
# The fields that a kind of process has, beside ``parametrisation``.
_APPLIES: dict[str, tuple[str, ...]] = {
    "discrete": ("steps", "schedule", "prediction", "variance", "rescale_timesteps"),
    "edm": ("sigma_data", *_RANGE),
    "consistency": ("sigma_data", *_RANGE),
    "flow": ("rescale_timesteps", *_RANGE),
}


@dataclass(frozen=True)
class DiffusionConfig:
    r"""A process x = signal x_0 + noise z, z ~ N(0, I), and what the model F(x, time) predicts.

    With :math:`\sigma` = noise / signal and :math:`s` = ``sigma_data``:

    =========== ============================================ =================================================
    kind        levels                                       x_0 from the model's output F
    =========== ============================================ =================================================
    discrete    signal^2 = abar_t, noise^2 = 1 - abar_t,     from epsilon, x_0 or v, see ``prediction``
                t = 0 .. T - 1
    edm         signal = c_in = 1 / sqrt(sigma^2 + s^2),     c_skip x / c_in + c_out F,
                noise = sigma c_in, time 250 ln sigma        c_skip = s^2 / (sigma^2 + s^2),
                                                             c_out = sigma s / sqrt(sigma^2 + s^2)
    consistency as edm                                       as edm, with (sigma - sigma_min) for sigma in c_skip
                                                             and in the numerator of c_out: x_0 = x at sigma_min
    flow        signal = 1 - t, noise = t, time t            x - t F: F is the velocity z - x_0
    =========== ============================================ =================================================

    x is what the network is given, so that EDM's scaling of the input is part of the levels.

    Source: Ho et al. 2020; Karras et al. 2022, table 1; Song et al. 2023, appendix C; Liu et al. 2022 (rectified flow).

    Raises:
        FastdiffError: a value that is not one of the field's choices or outside its range, or a field that the kind of
            process does not have.
    """

    steps: int = 1000  # T
    schedule: Schedule = "linear"
    prediction: Prediction = "epsilon"
    variance: Variance = "fixed_small"  # of the reverse step: beta-tilde, beta, or from the model
    rescale_timesteps: bool = False  # the model sees t * 1000 / T; of "flow", 1000 t
    parametrisation: Parametrisation = "discrete"
    sigma_data: float = 0.5  # standard deviation of the data, s
    # Ends and exponent of the process's own grid of noise levels (Karras et al. 2022, equation 5).
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    # The model was trained for consistency: it gives x_0 from any level in one call.
    few_steps: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise FastdiffError(f"diffusion steps must be an integer of at least 1, got {self.steps!r}")
        hints = get_type_hints(type(self))
        for field in fields(self):
            choices = get_args(hints[field.name])
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise FastdiffError(f"unknown diffusion {field.name} {value!r}; known: {', '.join(choices)}")
        self._check_numbers()
        known = {"parametrisation", "few_steps", *_APPLIES[self.parametrisation]}
        for field in fields(self):
            if field.name not in known and getattr(self, field.name) != field.default:
                raise FastdiffError(
                    f"a diffusion of parametrisation {self.parametrisation!r} has no {field.name} "
                    f"(got {getattr(self, field.name)!r}); it has {', '.join(_APPLIES[self.parametrisation])}"
                )

    def _check_numbers(self) -> None:
        for name in ("sigma_data", *_RANGE):
            value = number(getattr(self, name))
            if not is_finite(value) or value <= 0:
                raise FastdiffError(f"diffusion {name} must be a positive number, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.sigma_min >= self.sigma_max:
            raise FastdiffError(
                f"diffusion sigma_min must be below sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}"
            )

    @property
    def learns_variance(self) -> bool:
        """True when the model's output has twice the channels of x, the second half for the variance."""
        return self.variance in ("learned", "learned_range")

    @property
    def is_consistent(self) -> bool:
        """True if the model gives x_0 from any level in one call, so that one to four steps are enough."""
        return self.few_steps or self.parametrisation == "consistency"

    def stored(self) -> dict[str, Any]:
        """The fields that the kind of process has, and those that are not as usual: what a checkpoint says of it."""
        usual = {"parametrisation": "discrete", "few_steps": False}
        kind = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return kind | {name: getattr(self, name) for name in _APPLIES[self.parametrisation]}


def is_consistent(model: Any, diffusion: Any = None) -> bool:
    """True if a model, by its own diffusion or the config or process given, gives x_0 from any level in one call."""
    about = getattr(model, "diffusion", None) if diffusion is None else diffusion
    config = getattr(about, "config", about)
    return isinstance(config, DiffusionConfig) and config.is_consistent
