"""One optimizer step over all parameters in one pass: AdamW, moving averages, low-precision copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.adamw_ema import eager, reference
from fastdiff.ops.adamw_ema.reference import Arguments


@dataclass(frozen=True)
class AdamWHyper:
    """Hyperparameters of a step of AdamW.

    Raises:
        FastdiffError: a value outside its range.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decays: tuple[float, ...] = ()  # of the moving averages

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise FastdiffError(f"adamw_ema: {name} must be at least 0, got {getattr(self, name)}")
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise FastdiffError(f"adamw_ema: {name} must be from 0 to below 1, got {value}")
        for value in self.decays:
            if not 0 <= value <= 1:
                raise FastdiffError(f"adamw_ema: a moving average's decay must be from 0 to 1, got {value}")


@torch.no_grad()
def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    hyper: AdamWHyper,
    *,
    emas: Sequence[Sequence[Tensor]] = (),
    low: Sequence[Tensor] = (),
    grad_factor: Tensor | None = None,
) -> None:
    r"""One AdamW update of every parameter, its averages and its low-precision copy, in place.

    With f the gradient factor and k the step's number, counted from 1:

    .. math::
        g &\leftarrow f g \\
        p &\leftarrow (1 - \mathrm{lr}\, \lambda)\, p && \text{decoupled weight decay } \lambda \\
        m &\leftarrow m + (1 - \beta_1)(g - m) \\
        v &\leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \\
        p &\leftarrow p - \frac{\mathrm{lr}}{1 - \beta_1^k}\,
            m \Big/ \Big(\frac{\sqrt v}{\sqrt{1 - \beta_2^k}} + \epsilon\Big) \\
        e_r &\leftarrow e_r + (1 - d_r)(p - e_r) && \text{for each decay } d_r \\
        \ell &\leftarrow \mathrm{round}(p)

    in the order of ``torch.optim.AdamW``. Arithmetic is float32 (float64 for float64 parameters). The host does not
    wait for the device: k and f are read there.

    Args:
        params: P tensors of any shapes, float32 or float64, all of one dtype and on one device.
        grads: like params, of one dtype: the parameters' own, float32, bfloat16 or float16. Only read.
        exp_avg, exp_avg_sq: m and v, like params.
        steps: P scalars, float32: updates made so far, counted up here.
        hyper: see :class:`AdamWHyper`.
        emas: for each decay P tensors like params.
        low: copies of params in bfloat16 or float16, P or none.
        grad_factor: f, a float32 scalar tensor on the parameters' device: unscaling and clipping; None for 1.

    Under ``use_backend("eager")`` this is ``torch.optim.AdamW`` followed by ``lerp_``.

    Raises:
        FastdiffError: lists of unequal length; shapes, dtypes or devices that do not fit.

    Source: Loshchilov & Hutter 2019, algorithm 2; Kingma & Ba 2015 (bias correction).
    """
    flat = _flat(emas, len(params), len(hyper.decays))
    numbers = hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay, list(hyper.decays)
    lists = map(list, (params, grads, exp_avg, exp_avg_sq, steps, flat, low))
    given = Arguments._make((*lists, grad_factor, *numbers))
    if not params:
        _check_counts(given)
    elif is_eager():
        _check(given)
        eager.adamw_ema(given)
    else:
        adamw_ema_op(*given)
        # Autograd and packed weights rely on version counters, which kernels do not change.
        for written in (params, exp_avg, exp_avg_sq, steps, flat, low):
            if written:
                torch.autograd.graph.increment_version(written)


def _flat(emas: Sequence[Sequence[Tensor]], count: int, rates: int) -> list[Tensor]:
    """All averages, ordered by rate."""
    if len(emas) != rates:
        raise FastdiffError(f"adamw_ema: {rates} decays need as many averages, got {len(emas)}")
    flat = [t for average in emas for t in average]
    for r, average in enumerate(emas):
        if len(average) != count:
            raise FastdiffError(f"adamw_ema: {count} params need as many emas[{r}], got {len(average)}")
    return flat


def _check(given: Arguments) -> None:
    if not given.params:
        raise FastdiffError("adamw_ema: there are no params")
    _check_counts(given)
    _check_tensors(given)
    _check_scalars(given.params[0], given.steps, given.grad_factor)


def _check_counts(given: Arguments) -> None:
    count, rates = len(given.params), len(given.decays)
    for name in ("grads", "exp_avg", "exp_avg_sq", "steps", *(["low"] if given.low else [])):
        tensors = getattr(given, name)
        if len(tensors) != count:
            raise FastdiffError(f"adamw_ema: {count} params need as many {name}, got {len(tensors)}")
    if len(given.emas) != rates * count:
        raise FastdiffError(
            f"adamw_ema: {count} params and {rates} decays need {rates * count} averages, got {len(given.emas)}"
        )


def _check_tensors(given: Arguments) -> None:
    params = given.params
    dtype, device = params[0].dtype, params[0].device
    if dtype not in (torch.float32, torch.float64):
        raise FastdiffError(f"adamw_ema: params must be float32 or float64, got {dtype}")
    halves = (torch.bfloat16, torch.float16)
    like_params = ("params", "exp_avg", "exp_avg_sq", "emas")
    for name, dtypes in (
        *((name, (dtype,)) for name in like_params),
        ("grads", (dtype, *halves)),
        ("low", halves),
    ):
        tensors = getattr(given, name)
        first = tensors[0].dtype if tensors else None
        for i, t in enumerate(tensors):
            p = params[i % len(params)]
            if t.shape != p.shape or t.dtype != first or first not in dtypes or t.device != device:
                raise FastdiffError(
                    f"adamw_ema: {name} must all be {' or '.join(map(str, dtypes))}, on {device} and shaped like"
                    f" their parameter {list(p.shape)}; got {t.dtype} {list(t.shape)} on {t.device}"
                )


def _check_scalars(param: Tensor, steps: Sequence[Tensor], grad_factor: Tensor | None) -> None:
    scalars = [("steps", t) for t in steps]
    if grad_factor is not None:
        scalars.append(("grad_factor", grad_factor))
    for name, t in scalars:
        if t.dim() or t.dtype != torch.float32 or t.device != param.device:
            raise FastdiffError(
                f"adamw_ema: {name} must be float32 scalars on {param.device},"
                f" got {t.dtype} {list(t.shape)} on {t.device}"
            )


def _fake(*_: object) -> None:
    """No outputs: everything is updated in place."""


adamw_ema_op = FusedOp(
    "adamw_ema",
    Arguments,
    "()",
    reference=reference.adamw_ema,
    fake=_fake,
    check=_check,
)
