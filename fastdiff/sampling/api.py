"""Sampling as a user calls it: ``sample``, ``sample_batches``, ``encode`` and the reusable ``Sampler``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from fastdiff.choices import INVERSION, SamplerOrAlias, Spacing, usual_sampling
from fastdiff.diffusion.config import DiffusionConfig, Prediction
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.process import Model, Process
from fastdiff.errors import FastdiffError
from fastdiff.inference import for_inference
from fastdiff.sampling.capture import Captures
from fastdiff.sampling.conditioning import adapt_plan
from fastdiff.sampling.conditions import Condition
from fastdiff.sampling.convention import ScaledInput, Time, check_time, with_time_convention
from fastdiff.sampling.loop import run
from fastdiff.sampling.options import BatchOptions, ConditionedOptions, SamplerOptions
from fastdiff.sampling.plan import Plan
from fastdiff.sampling.precision import CASTS, Cast, Precision, check_precision
from fastdiff.sampling.progress import Follow, following
from fastdiff.sampling.request import REQUEST_ARGUMENTS, Classes, Request, RequestArguments, make_request
from fastdiff.sampling.samplers import encoding_plan, sampler_name, sampling_plan
from fastdiff.sampling.samplers.options import OPTIONS
from fastdiff.sampling.view import in_eval_mode, view_in_eval_mode
from fastdiff.scalars import is_finite, number, whole, wholes

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Fields that are numbers: NumPy's and PyTorch's own kinds of numbers are converted to Python's.
_GRID = ("sigma_min", "sigma_max", "rho")
_NUMBERS = {
    "shape": wholes,
    "steps": whole,
    "batch_size": whole,
    **dict.fromkeys(("guidance_scale", *_GRID, *OPTIONS), number),
}
_OF_PLAN = ("sampler", "steps", "spacing", "guidance_scale", "sigmas", *_GRID, *OPTIONS)


@dataclass(frozen=True, eq=False)
class Sampler:
    """A model with its sampling options, checked and planned once, for repeated use.

        with Sampler(model, sampler="dpmpp", steps=20) as sampler:
            images = sampler(16, classes=3, seed=7)      # [16,C,H,W] float32 in [-1, 1]

    On a GPU it keeps the buffers and CUDA graphs of the batch shapes that it has seen, and with ``precision`` a copy
    of the model; :meth:`close`, or the end of the ``with`` block, frees them.

    Raises:
        FastdiffError: any option that is unknown or does not fit the model.
    """

    model: Model  # model(x, t, **cond) -> [N,C,*], or [N,2C,*] with learned variance; any callable
    shape: Sequence[int] | None = None  # (C, H, W) of one sample; None = from model.config
    # A name in fastdiff.sampling.samplers.SAMPLERS, or k-diffusion's for it; None = "dpmpp", for a model that was
    # trained for consistency "consistency".
    sampler: SamplerOrAlias | None = None
    # A count, or for uniform spacing "ddim50", or "90,60,60,20,20" per section; None = 20, "consistency" and "lcm": 2.
    steps: int | str | None = None
    spacing: Spacing | None = None  # grid of levels: fastdiff.sampling.grids; None = the sampler's own
    sigma_min: float | None = None  # ends of a grid by sigma; None = those of the process, 80 at most
    sigma_max: float | None = None
    rho: float | None = None  # exponent of the grid; None = 7, and 1 for "polyexponential"
    # All levels, descending to 0: in place of steps and spacing
    sigmas: Sequence[float] | Tensor | None = None
    eta: float | None = None  # noise of the steps: 0 = none, 1 = as ancestral; None = the sampler's own
    # Noise that "euler", "heun" and "dpm_2" add before their steps, over the run; None = 0.
    s_churn: float | None = None
    s_tmin: float | None = None  # churn at sigmas from s_tmin
    s_tmax: float | None = None  # to s_tmax only
    s_noise: float | None = None  # factor of all noise in the steps; None = 1
    # Order of "lms", "unipc", "deis", "ipndm", "pndm" and "dpm_adaptive"; None = the sampler's own.
    order: int | None = None
    rtol: float | None = None  # errors that a step of "dpm_adaptive" may have, relative and absolute
    atol: float | None = None
    restarts: Sequence[tuple[float, float, int, int]] | None = None  # (sigma_min, sigma_max, times, steps)
    guidance_scale: float | None = None  # w of uncond + w (cond - uncond); None = no guidance
    clip: bool = True  # clamp each estimate of x_0 to [-1, 1]
    batch_size: int | None = None  # samples at a time; None = all
    diffusion: DiffusionConfig | Process | None = None  # None = model.diffusion
    # What the model predicts: "epsilon", "x0", "v"; None = as in diffusion.
    predicts: Prediction | None = None
    # The form of the model's time: "index" i, "continuous" i / (T - 1), or "sigma", as in EDM and k-diffusion.
    time: Time = "index"
    device: torch.device | str | None = None  # None = the model's; the CPU for a plain callable
    memory_format: torch.memory_format = torch.channels_last  # of the model's input, if 4-D
    optimize: bool = True  # on the CPU, run a fastdiff U-Net as fastdiff.optimize makes it, while sampling
    precision: Precision | None = None  # "adm-fp16" (ADM's own policy), "bfloat16"; None = as the model is
    capture: bool = True  # on a GPU, record each step as a CUDA graph and replay it, where that is possible
    _captures: Captures = field(default_factory=Captures, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, kind in _NUMBERS.items():
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.guidance_scale is not None and not is_finite(self.guidance_scale):
            raise FastdiffError(f"guidance_scale must be a finite number, got {self.guidance_scale!r}")
        if self.guidance_scale is not None and getattr(self.model, "null_class", None) is None:
            raise FastdiffError(
                "guidance needs a model that was trained with a null class, and this one has none; "
                "leave out guidance_scale"
            )
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise FastdiffError(f"batch_size must be at least 1, got {self.batch_size!r}")
        check_time(self.time)
        if self.predicts is not None and self.predicts not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise FastdiffError(f"predicts must be one of {known}, got {self.predicts!r}")
        if self.precision is not None:
            check_precision(self.model, self.precision)
        for name, value in zip(("sampler", "steps"), self._method, strict=True):
            object.__setattr__(self, name, value)
        _ = self.sample_shape, self._plan  # raises errors now rather than at the first call

    def __call__(
        self,
        n: int,
        *,
        classes: Classes | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        noise: Tensor | None = None,
        cond: Mapping[str, Tensor] | None = None,
        condition: Condition | None = None,
        progress: Follow = True,
    ) -> Tensor:
        """n samples, [n,C,*] float32, in [-1, 1] if ``clip``.

        Sample i depends on its own seed only: it is the same, to rounding, in any batch size.

        Args:
            classes: one class for all, or n. A model with a null class samples unconditionally without.
            seed: random seed of the run, 0 to 2^32 - 1 (default 0); sample i has the Philox key (seed << 32) | i.
            seeds: n int64 Philox keys, in place of ``seed``.
            noise: x_T [n,C,*], in place of noise drawn from the seeds; float64 makes the whole run float64.
            cond: further arguments of the model, one row per sample.
            condition: what else is known of the samples: a ``Guide``, ``Denoise``, ``Inpaint`` or ``Observe``.
            progress: show a bar over the steps of all batches; or a function, called after each with a ``Progress``.

        Raises:
            FastdiffError: arguments that do not fit, or NaN or Inf from the model.
        """
        asked = RequestArguments(classes, seed, seeds, noise, cond, condition)
        return torch.cat(list(self._batches(n, asked, progress)))

    def batches(
        self, n: int, *, progress: Follow = True, **request: Unpack[ConditionedOptions]
    ) -> Iterator[Tensor]:
        """The samples of :meth:`__call__`, batch by batch as they are finished."""
        return self._batches(n, RequestArguments(**request), progress)

    def _batches(self, n: int, asked: RequestArguments, progress: Follow) -> Iterator[Tensor]:
        request = self._request(n, asked)
        plan = self._plan if request.condition is None else adapt_plan(self._plan, request.condition)
        return self._run(plan, request, progress)

    def _request(self, n: int, asked: RequestArguments) -> Request:
        return make_request(self.model, n, self.sample_shape, asked, guided=self.guidance_scale is not None)

    def encode(
        self,
        images: Tensor,
        *,
        classes: Classes | None = None,
        cond: Mapping[str, Tensor] | None = None,
        progress: Follow = True,
    ) -> Tensor:
        """The x_T that this sampler decodes to ``images`` [n,C,*] in [-1, 1]: DDIM inversion, up to step error.

        Raises:
            FastdiffError: the sampler is not deterministic DDIM; arguments that do not fit.
        """
        if (
            sampler_name(self._method[0]) != "ddim"
            or self.eta
            or self.spacing not in (None, "uniform")
            or self.sigmas is not None
        ):
            raise FastdiffError("encoding reverses sampler 'ddim' with eta 0 and uniform spacing only")
        request = self._request(len(images), RequestArguments(classes, noise=images, cond=cond))
        return torch.cat(list(self._run(self._encoding_plan, request, progress)))

    @property
    def captured(self) -> int:
        """Number of loops that are kept as CUDA graphs."""
        return len(self._captures)

    def close(self) -> None:
        """Free the graphs and buffers kept between calls. The sampler stays usable and makes them again when needed."""
        self._captures.release()
        self.__dict__.pop("_cast", None)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, plan: Plan, request: Request, progress: Follow) -> Iterator[Tensor]:
        size = self.batch_size or len(request)
        starts = range(0, len(request), size)
        null_class = None if self.guidance_scale is None else getattr(self.model, "null_class", None)
        model = self._prepared()
        # A replayed step has no x_0 to show.
        captures = self._captures if self.capture and not callable(progress) else None
        with following(progress, plan.calls * len(starts)) as on_step:
            for start in starts:
                batch = request.batch(start, start + size).to(self._device)
                x = batch.initial_state(self.sample_shape)
                x = x if plan.start == 1 else x * plan.start
                if x.ndim == 4:
                    x = x.contiguous(memory_format=self.memory_format)
                with in_eval_mode(model):
                    x = run(
                        plan,
                        model,
                        x,
                        cond=batch.cond,
                        null_class=null_class,
                        seeds=batch.seeds,
                        condition=batch.condition,
                        clip=self.clip,
                        first_sample=start,
                        on_step=on_step,
                        captures=captures,
                    )
                if self.clip and plan.overshoots:
                    x = x.clamp(-1, 1)
                yield (x if plan.end == 1 else x * plan.end).contiguous()

    def _prepared(self) -> Model:
        """The module to run: an optimized view of the model, or a copy of it in ``precision``, where these apply.

        The model itself stays unchanged, because other threads may be using it.
        """
        model = fast = view_in_eval_mode(self.model)
        # optimize computes in one dtype throughout, which is not ADM's policy.
        if self.optimize and self.precision != "adm-fp16":
            fast = for_inference(model, CASTS.get(self.precision))
        if self.precision is not None and fast is model:
            fast = self._cast.module()
        return ScaledInput(fast) if self.time == "sigma" else fast

    @cached_property
    def _cast(self) -> Cast:
        assert isinstance(self.model, nn.Module) and self.precision is not None
        return Cast(self.model, self.precision, self.memory_format)

    @property
    def calls(self) -> int:
        """The number of model calls of a run: S for S steps, 2 S - 1 for "heun"."""
        return self._plan.calls

    @property
    def is_reverse_chain(self) -> bool:
        """True if each step draws from p(x_{t-1} | x_t): the sampler "ancestral", and "ddim" with eta 1."""
        return self._plan.is_reverse_chain

    @property
    def _method(self) -> tuple[str, int | str]:
        """The sampler and its steps, of which those that were not given are the model's usual ones."""
        return usual_sampling(self.sampler, self.steps, self._process.config.is_consistent)

    @cached_property
    def _process(self) -> Process:
        diffusion = self.diffusion or getattr(self.model, "diffusion", None)
        if diffusion is None and self.predicts is not None:
            diffusion = DiffusionConfig()
        if isinstance(diffusion, DiffusionConfig):
            diffusion = make_process(diffusion)
        if not isinstance(diffusion, Process):
            raise FastdiffError(
                "the model does not say which diffusion it was trained with; give diffusion=DiffusionConfig(...),"
                " or say at least what it predicts: predicts='epsilon'"
            )
        return diffusion if self.predicts is None else diffusion.with_prediction(self.predicts)

    @cached_property
    def _plan(self) -> Plan:
        options: dict[str, Any] = {name: getattr(self, name) for name in _OF_PLAN}
        plan = sampling_plan(self._process, **options)
        return with_time_convention(plan, self.time, self._process)

    @cached_property
    def _encoding_plan(self) -> Plan:
        plan = encoding_plan(self._process, steps=self._method[1], guidance_scale=self.guidance_scale)
        return with_time_convention(plan, self.time, self._process)

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one sample."""
        config: Any = getattr(self.model, "config", None)
        if self.shape is not None:
            shape = self.shape
        elif hasattr(config, "image_size") and hasattr(config, "in_channels"):
            shape = (config.in_channels, config.image_size, config.image_size)
        else:
            raise FastdiffError("the model does not say how large its samples are; give shape=(C, H, W)")
        if (
            not isinstance(shape, tuple)
            or not shape
            or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape)
        ):
            raise FastdiffError(f"shape must be positive whole numbers like (3, 64, 64), got {self.shape}")
        return shape

    @cached_property
    def _device(self) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        parameter = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        return torch.device("cpu") if parameter is None else parameter.device


def sample(
    model: Model,
    n: int,
    *,
    classes: Classes | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    condition: Condition | None = None,
    progress: Follow = True,
    **options: Unpack[SamplerOptions],
) -> Tensor:
    """n samples of a model, [n,C,H,W] float32 in [-1, 1].

        images = fastdiff.sample(model, 16, classes=3, sampler="dpmpp", steps=20, guidance_scale=2.0)

    The named arguments are those of :meth:`Sampler.__call__`; ``options`` are the fields of
    :class:`Sampler`, which also lists those of the levels and of single samplers. Any callable f(x, t) is a model:

        fastdiff.sample(f, 16, shape=(3, 64, 64), predicts="x0", time="sigma", sampler="heun", spacing="karras")

    Raises FastdiffError for whatever does not fit.
    """
    asked = RequestArguments(classes, seed, seeds, noise, cond, condition)
    with Sampler(model, **options) as sampler:
        return torch.cat(list(sampler._batches(n, asked, progress)))


def sample_batches(
    model: Model, n: int, *, progress: Follow = True, **arguments: Unpack[BatchOptions]
) -> Iterator[Tensor]:
    """As :func:`sample`, but yields each batch as it is finished, so that an interrupted run keeps finished ones.

    Wrong arguments raise FastdiffError at once, before the first batch is computed.
    """
    given: Any = arguments
    request = {name: given.pop(name) for name in REQUEST_ARGUMENTS & given.keys()}
    sampler = Sampler(model, **given)
    return _then_close(sampler, sampler.batches(n, progress=progress, **request))


def encode(
    model: Model,
    images: Tensor,
    *,
    classes: Classes | None = None,
    cond: Mapping[str, Tensor] | None = None,
    progress: Follow = True,
    **options: Unpack[SamplerOptions],
) -> Tensor:
    """The noise x_T [n,C,H,W] that ``sample(model, n, noise=x_T, sampler="ddim", steps=50)`` turns into ``images``.

    See :meth:`Sampler.encode`; ``options`` are the fields of :class:`Sampler`, "ddim" with 50 steps if not given.
    """
    options.setdefault("sampler", "ddim")
    options.setdefault("steps", INVERSION.steps)
    with Sampler(model, **options) as sampler:
        return sampler.encode(images, classes=classes, cond=cond, progress=progress)


def to_uint8(x: Tensor) -> Tensor:
    """Images [N,C,H,W] in [-1, 1] to 8 bits, [N,H,W,C] uint8 on the same device.

    (x + 1) 127.5, clamped and truncated, not rounded: what ADM's scripts write, to the bit.
    """
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def from_uint8(images: Tensor) -> Tensor:
    """Images of 8 bits [...,H,W,C] as models take them, [...,C,H,W] float32 in [-1, 1]: x / 127.5 - 1."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def _then_close(sampler: Sampler, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    with sampler:
        yield from batches
