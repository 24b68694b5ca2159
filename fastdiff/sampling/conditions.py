"""Conditions: knowledge r about the samples, multiplied into each step of the sampling loop.

A reverse chain p(x_{t-1} | x_t) samples p(x_0) r(x_0) if each of its steps is multiplied by r and normalised
(Sohl-Dickstein et al. 2015, section 2.5). For which r this is exact, and how good an approximation it is otherwise, is
in docs/conditional_sampling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import normal
from fastdiff.scalars import is_finite, number, whole

# Philox streams: 0 is the steps' noise, 1 is x_T.
KNOWN_STREAM = 2  # noise on known pixels
BACK_STREAM = 3  # noise from the end of a repeated step back to its beginning
ANNEALING = Literal["constant", "annealed"]


@dataclass(frozen=True, eq=False)
class Condition:
    """The base class: a condition that changes nothing. Tensors that belong to samples have one row for each."""

    def fitted(self, n: int, shape: Sequence[int]) -> Condition:
        """The condition for n samples of this shape: checked, with its tensors expanded to n rows."""
        return self

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with f applied to each tensor of one row per sample: to take a batch, to change the device."""
        return self

    @property
    def changes_moments(self) -> bool:
        """True if :meth:`moments` changes the mean and variance of a step."""
        return False

    @property
    def needs_reverse_chain(self) -> bool:
        """True if the condition works through :meth:`moments` only, so that the sampler must be a reverse chain."""
        return False

    @property
    def step_count(self) -> int:
        """Number of times each step is made; in between, the state is noised back to the beginning of the step."""
        return 1

    def moments(self, mean: Tensor, variance: Tensor, t: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the Gaussian that is proportional to N(x; mean, variance) r(x).

        Args:
            mean: [N,C,*], mean of the state that the step leads to.
            variance: its variance, a scalar or of the mean's shape.
            t: [N], the time of that state as the model is given it.
            progress: (T - t) / T, counted in the steps of the run: 1 for the step that ends at the image.
        """
        return mean, variance

    def score(self, x: Tensor, t: Tensor) -> Tensor | None:
        """The gradient of log r at x_t, for samplers that follow the score instead of drawing from p(x_{t-1} | x_t)."""
        return None

    def state(self, x: Tensor, level: Sequence[float], seeds: Tensor, counter: int) -> Tensor:
        """x, at the level (signal, noise), with its known part replaced; ``counter`` is the noise's Philox counter."""
        return x


@dataclass(frozen=True, eq=False)
class Guide(Condition):
    r"""Guidance by any smooth r, through the gradient of its logarithm; log r = log p(y | x_t): classifier guidance.

    .. math::
        \mu \leftarrow \mu + w\,\Sigma\,\nabla \log r_{t-1}(\mu) \quad\text{(ancestral, ddim with eta 1)}, \qquad
        \hat x_0 \leftarrow \hat x_0 + w\,\frac{1 - \bar\alpha_t}{\sqrt{\bar\alpha_t}}\,\nabla \log r_t(x_t)
        \quad\text{(all others)}

    The second form is for samplers without a variance: r's score is added to the model's (and clamped with x_0).

    Args:
        log_r: log_r(x, t, **rows) -> [N], differentiable in x [N,C,*]; t [N] is the time as the model is given it.
        scale: w; 1 samples p r, above 1 sharpens r.
        rows: further arguments of log_r, one row per sample, such as the labels y of a classifier.

    Raises:
        FastdiffError: a scale that is not finite; at a step, a result that is not [N], does not depend on x, or has
            a gradient with NaN or infinity (looked at on the CPU only).

    Source: Sohl-Dickstein et al. 2015, section 2.5 and appendix C; Dhariwal & Nichol 2021, algorithms 1 and 2.
    """

    log_r: Callable[..., Tensor]
    scale: float = 1.0
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number(self.scale))
        if not is_finite(self.scale):
            raise FastdiffError(f"the scale of a guide must be a finite number, got {self.scale!r}")

    def fitted(self, n: int, shape: Sequence[int]) -> Condition:
        for name, value in self.rows.items():
            if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != n:
                raise FastdiffError(f"{name!r} of the guide must be a tensor of {n} rows, one per sample")
        return self

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, rows={name: f(value) for name, value in self.rows.items()})

    @property
    def changes_moments(self) -> bool:
        return True

    def moments(self, mean: Tensor, variance: Tensor, t: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        return mean + variance * self.score(mean, t), variance

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        # The loop runs in inference mode, whose tensors autograd refuses: it gets copies made outside.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            value = self.log_r(leaf, t.clone(), **{name: row.clone() for name, row in self.rows.items()})
            if value.shape != x.shape[:1]:
                raise FastdiffError(
                    f"log_r must return one number per sample, {[len(x)]}, got {list(value.shape)}"
                )
            if not value.requires_grad:
                raise FastdiffError(
                    "log_r must depend on x through operations that PyTorch can differentiate"
                )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if x.device.type == "cpu" and not gradient.isfinite().all():
            raise FastdiffError(f"the gradient of log_r has NaN or Inf at timestep {float(t[0]):g}")
        return self.scale * gradient


@dataclass(frozen=True, eq=False)
class Denoise(Condition):
    r"""An image seen through Gaussian noise, y = x_0 + sigma_n n: r(x) = N(x; y, sigma_n^2), multiplied exactly.

    .. math::
        \Sigma' = (\Sigma^{-1} + \lambda_t \sigma_n^{-2})^{-1}, \qquad
        \mu' = \Sigma' (\Sigma^{-1} \mu + \lambda_t \sigma_n^{-2} y)

    Args:
        observed: y, [C,*], [1,C,*] or [n,C,*], in the units of the images.
        noise_std: sigma_n > 0, in the same units.
        schedule: "constant": r_t = r_0, lambda = 1; "annealed": r_t = r_0^((T - t) / T), lambda = (T - t) / T.

    Raises:
        FastdiffError: a noise_std that is not positive, another schedule, an observation of another shape or with NaN.

    Source: Sohl-Dickstein et al. 2015, section 2.5 and figure 3.
    """

    observed: Tensor
    noise_std: float
    schedule: ANNEALING = "constant"

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_std", number(self.noise_std))
        if not is_finite(self.noise_std) or self.noise_std <= 0:
            raise FastdiffError(f"noise_std must be a positive number, got {self.noise_std!r}")
        if self.schedule not in get_args(ANNEALING):
            raise FastdiffError(f"schedule must be 'constant' or 'annealed', got {self.schedule!r}")

    def fitted(self, n: int, shape: Sequence[int]) -> Condition:
        observed = _image_rows("observed", self.observed, n, shape)
        if not observed.isfinite().all():
            raise FastdiffError("observed must be finite, but has NaN or infinity")
        return replace(self, observed=observed)

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, observed=f(self.observed))

    @property
    def changes_moments(self) -> bool:
        return True

    @property
    def needs_reverse_chain(self) -> bool:
        return True

    def moments(self, mean: Tensor, variance: Tensor, t: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        weight = 1.0 if self.schedule == "constant" else progress
        gain = variance * (weight / self.noise_std**2)  # Sigma / (sigma_n^2 / lambda), so that Sigma may be 0
        return (mean + gain * self.observed.to(mean.dtype)) / (1 + gain), variance / (1 + gain)


class _Replacing(Condition):
    """A condition that replaces a part of the state, and may make each step several times."""

    repeats: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "repeats", whole(self.repeats))
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise FastdiffError(f"repeats must be a whole number of at least 1, got {self.repeats!r}")

    @property
    def step_count(self) -> int:
        return self.repeats

    @property
    def needs_reverse_chain(self) -> bool:
        return self.repeats > 1


@dataclass(frozen=True, eq=False)
class Inpaint(_Replacing):
    r"""Inpainting: known pixels, which replace the state's at each step with the noise of the forward process.

    .. math::
        x_t \leftarrow m\,x_t + (1 - m) (\sqrt{\bar\alpha_t}\,y + \sqrt{1 - \bar\alpha_t}\,z)

    z is drawn from Philox stream ``KNOWN_STREAM`` of each sample's seed: at each step for a sampler with noise, once
    for a deterministic one, whose known pixels then follow a path of that sampler. In the result the known pixels
    equal y to the bit.

    Args:
        image: y, [C,*], [1,C,*] or [n,C,*] floating point; its values where m is 1 are ignored, even NaN.
        mask: m, 1 where the pixel is unknown and to be filled, 0 where it is known; bool or numbers, [*] or [C,*], or
            one for each sample, [n,1,*] or [n,C,*].
        repeats: number of times each step is made. In between the state is noised back, x_t = sqrt(abar_t / abar_s) x_s
            + sqrt(1 - abar_t / abar_s) z, so that unknown pixels adapt to the known ones before the next level. Above 1
            for "ancestral", or "ddim" with eta 1.

    Raises:
        FastdiffError: shapes that do not fit, NaN or infinity in known pixels, a mask with other values than 0 and 1 or
            with nothing to fill, repeats below 1.

    Source: Sohl-Dickstein et al. 2015, section 2.5; noised known pixels: Song et al. 2021, appendix I.2; repeats:
    Lugmayr et al. 2022, algorithm 1, with jumps of one step.
    """

    image: Tensor
    mask: Tensor
    repeats: int = 1

    def fitted(self, n: int, shape: Sequence[int]) -> Inpaint:
        image, mask = _image_rows("image", self.image, n, shape), _mask_rows(self.mask, n, shape)
        if not torch.where(mask, 0.0, image).isfinite().all():
            raise FastdiffError("image must be finite where it is known, but has NaN or infinity there")
        return replace(self, image=image, mask=mask)

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, image=f(self.image), mask=f(self.mask))

    def state(self, x: Tensor, level: Sequence[float], seeds: Tensor, counter: int) -> Tensor:
        known = self.image.to(x.dtype)
        signal, noise = level
        if noise > 0:
            drawn = normal(seeds, x.shape[1:], step=counter, stream=KNOWN_STREAM, dtype=x.dtype)
            known = signal * known + noise * drawn
        return torch.empty_like(x).copy_(torch.where(self.mask, x, known))  # in the layout of x


@dataclass(frozen=True, eq=False)
class Observe(_Replacing):
    r"""A linear measurement of the image, such as its block averages or its grey values: the part P x_0 is known.

    .. math::
        x_t \leftarrow x_t - P x_t + \sqrt{\bar\alpha_t}\,P y + \sqrt{1 - \bar\alpha_t}\,P z

    P is an orthogonal projection; that on pixels of a mask is :class:`Inpaint`. z is drawn as there. The result has the
    known part of y to rounding.

    Args:
        image: y, [C,*], [1,C,*] or [n,C,*] floating point: any image with the known part.
        project: P of images [n,C,*], linear, with P P x = P x, and 0 for what is orthogonal to what it gives.
        repeats: as of :class:`Inpaint`.

    Raises:
        FastdiffError: an image of another shape or with NaN or infinity, a function that is no projection, repeats
            below 1.

    Source: Song et al. 2023, algorithm 4, whose orthogonal transform and mask are P.
    """

    image: Tensor
    project: Callable[[Tensor], Tensor]
    repeats: int = 1

    def fitted(self, n: int, shape: Sequence[int]) -> Observe:
        image = _image_rows("image", self.image, n, shape)
        if not image.isfinite().all():
            raise FastdiffError("image must be finite, but has NaN or infinity")
        known = self.project(image)
        if known.shape != image.shape or not torch.allclose(self.project(known), known, atol=1e-4):
            raise FastdiffError(
                "project must be a projection: of images to images, and twice what it is once"
            )
        return replace(self, image=known)

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, image=f(self.image))

    def state(self, x: Tensor, level: Sequence[float], seeds: Tensor, counter: int) -> Tensor:
        signal, noise = level
        other = -x
        if noise > 0:
            other += noise * normal(seeds, x.shape[1:], step=counter, stream=KNOWN_STREAM, dtype=x.dtype)
        known = self.image.to(x.dtype)
        return torch.empty_like(x).copy_(x + self.project(other) + (signal if noise > 0 else 1.0) * known)


def _image_rows(name: str, image: Tensor, n: int, shape: Sequence[int]) -> Tensor:
    """The image expanded to [n, *shape]."""
    one = list(shape)
    if not image.is_floating_point():
        raise FastdiffError(f"{name} must be floating point like the model's images, got {image.dtype}")
    if list(image.shape) not in (one, [1, *one], [n, *one]):
        raise FastdiffError(
            f"{name} must have shape {one}, or {[n, *one]} with one for each sample, got {list(image.shape)}"
        )
    return image.expand(n, *one)


def _mask_rows(mask: Tensor, n: int, shape: Sequence[int]) -> Tensor:
    """The mask as [n, *shape] bool, True where pixels are to be filled."""
    space = list(shape[1:]) or list(shape)
    size = " x ".join(map(str, space))
    leading = mask.ndim - len(space)
    if leading < 0 or list(mask.shape[leading:]) != space:
        raise FastdiffError(f"mask must have the size of the model's images, {size}, got {list(mask.shape)}")
    try:
        rows = mask.expand(n, *shape)
    except RuntimeError:
        raise FastdiffError(
            f"mask must have shape {space}, {list(shape)} or {[n, *shape]}, got {list(mask.shape)}"
        ) from None
    wrong = mask[(mask != 0) & (mask != 1)]
    if wrong.numel():
        raise FastdiffError(
            f"mask must hold 0 (known) and 1 (to be filled) only, got {wrong.flatten()[0].item():g} among them"
        )
    if not mask.any():
        raise FastdiffError("the mask leaves nothing to fill: 1 (white) marks unknown pixels, 0 known ones")
    return rows.bool()


def known_means(small: Tensor, size: Sequence[int], repeats: int = 1) -> Observe:
    """What is known of large images whose means over blocks of pixels are the small ones.

    Args:
        small: [C,h,w] or [n,C,h,w] floating point in [-1, 1].
        size: (H, W) of the large images, whole multiples of h and w.
        repeats: as of :class:`Inpaint`.

    Raises:
        FastdiffError: a size that does not divide the large one.
    """
    given = tuple(small.shape[-2:])
    if small.ndim < 3 or len(size) != 2 or 0 in given or any(s % g for s, g in zip(size, given, strict=True)):
        raise FastdiffError(
            f"small images must have a size that divides the model's {list(size)}, got {list(given)}"
        )
    blocks = size[0] // given[0], size[1] // given[1]

    def enlarged(x: Tensor) -> Tensor:
        return x.repeat_interleave(blocks[0], -2).repeat_interleave(blocks[1], -1)

    def means(x: Tensor) -> Tensor:
        return enlarged(F.avg_pool2d(x, blocks))

    return Observe(enlarged(small), means, repeats)
