"""One optimizer step over all parameters in one pass: AdamW, moving averages, low-precision copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.adamw_ema import eager, reference


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
    lists = params, grads, exp_avg, exp_avg_sq, steps, flat, low
    numbers = hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay, list(hyper.decays)
    if not params:
        _check_counts(*lists)
    elif is_eager():
        _check(*lists, grad_factor, *numbers)
        p, g, m, v, k, e, copies = (list(tensors) for tensors in lists)
        eager.adamw_ema(p, g, m, v, k, e, copies, grad_factor, *numbers)
    else:
        adamw_ema_op(*lists, grad_factor, *numbers)
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


def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    emas: Sequence[Tensor],
    low: Sequence[Tensor],
    grad_factor: Tensor | None,
    *numbers: Any,
) -> None:
    if not params:
        raise FastdiffError("adamw_ema: there are no params")
    _check_counts(params, grads, exp_avg, exp_avg_sq, steps, emas, low, len(numbers[-1]))
    _check_tensors(params, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "emas": emas}, grads, low)
    _check_scalars(params[0], steps, grad_factor)


def _check_counts(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    emas: Sequence[Tensor],
    low: Sequence[Tensor],
    rates: int = 0,
) -> None:
    count = len(params)
    named = {"grads": grads, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "steps": steps}
    for name, tensors in (named | ({"low": low} if low else {})).items():
        if len(tensors) != count:
            raise FastdiffError(f"adamw_ema: {count} params need as many {name}, got {len(tensors)}")
    if len(emas) != rates * count:
        raise FastdiffError(
            f"adamw_ema: {count} params and {rates} decays need {rates * count} averages, got {len(emas)}"
        )


def _check_tensors(
    params: Sequence[Tensor],
    alike: dict[str, Sequence[Tensor]],
    grads: Sequence[Tensor],
    low: Sequence[Tensor],
) -> None:
    dtype, device = params[0].dtype, params[0].device
    if dtype not in (torch.float32, torch.float64):
        raise FastdiffError(f"adamw_ema: params must be float32 or float64, got {dtype}")
    halves = (torch.bfloat16, torch.float16)
    for name, tensors, dtypes in (
        ("params", params, (dtype,)),
        *((name, tensors, (dtype,)) for name, tensors in alike.items()),
        ("grads", grads, (dtype, *halves)),
        ("low", low, halves),
    ):
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
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, Tensor(d!)[] steps,"
    " Tensor(e!)[] emas, Tensor(f!)[] low, Tensor? grad_factor, float lr, float beta1, float beta2, float eps,"
    " float weight_decay, float[] decays) -> ()",
    reference=reference.adamw_ema,
    fake=_fake,
    check=_check,
    package=__name__,
    backends=(Backend.CPU, Backend.CUDA, Backend.TRITON),
)
