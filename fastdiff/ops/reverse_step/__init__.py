"""One step of any sampler in one pass over memory, its noise drawn on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.philox import check_seeds, check_word
from fastdiff.ops.reverse_step import eager, reference
from fastdiff.ops.reverse_step.reference import Arguments
from fastdiff.ops.reverse_step.table import COLUMNS as COLUMNS
from fastdiff.ops.reverse_step.table import TABLE_COLUMNS

VARIANCES = ("none", "learned", "learned_range")


def reverse_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    stream: int = 0,
    clip: bool = False,
    variance: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""From x_t and what the model made of it to the next state, for every sampler.

    With m, v the first and the last C channels of the model's output, and one row of the table:

    .. math::
        m &\leftarrow u + w\,(m - u) && \text{guidance, if uncond } u \text{ is given} \\
        x_0 &= o_x x + o_m m && \text{clamped to } [-1, 1] \text{ if clip} \\
        \sigma &= s \;\text{ or }\; n\, e^{v/2} \;\text{ or }\; n\, e^{(f \ell_1 + (1 - f) \ell_0) / 2},
            \quad f = (v + 1) / 2 && \text{variance none, learned, learned\_range} \\
        x' &= a x + b x_0 + c_1 h_1 + c_2 h_2 + \sigma z

    Arithmetic is float32 (float64 for float64 x); results are rounded to x's dtype at the end.

    Args:
        x: [N, C, *], float32, bfloat16, float16 or float64; contiguous or channels_last, kept as it comes.
        model_output: [N, C or 2C, *], any floating-point dtype and layout; 2C if variance is not "none".
        table: [S, 12] float32 or float64, columns out_x (o_x), out_m (o_m), x (a), x0 (b),
            h1 (c_1), h2 (c_2), std (s), log_min (l_0), log_max (l_1), noise_on (n), guidance (w), and padding:
            :data:`COLUMNS`.
        index: int64 scalar tensor on x's device, the row to use and the Philox counter of the noise's step.
        uncond: the model's output without condition, shaped like model_output.
        h1, h2: history, shaped like x, float32 or x's dtype; None for 0.
        noise: z, shaped like x, float32 or x's dtype.
        seeds: [N] int64: draw z as :func:`fastdiff.ops.normal` does. Neither noise nor seeds: z = 0.
        stream: Philox stream of the drawn noise.
        clip: clamp x_0; NaN stays NaN.
        variance: "none", "learned" (v is the log-variance) or "learned_range" (v in [-1, 1] mixes l_0, l_1).

    Differentiable in every tensor of real numbers but the drawn noise: the derivatives are those of the formulas above.

    Returns:
        (x', x_0, nonfinite): the first two like x; nonfinite [N] int32 is 1 for each sample with NaN or
        infinity anywhere in its model output or its uncond.

    Under ``use_backend("eager")`` the noise is ``torch.randn_like``, as users draw it today (seeds then only say that
    there is noise, and images differ from those of the other backends unless noise is given), and nothing looks
    for NaN: nonfinite is 0.

    Raises:
        FastdiffError: shapes, dtypes, devices or names that do not fit; on the CPU, an index that is no row.

    Source: Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, eq. 15 (learned range); Ho & Salimans 2022
    (guidance).
    """
    if is_eager():
        given = Arguments(x, model_output, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance)
        _check(given)
        return eager.with_randn(given)
    return step_op(x, model_output, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance)


def _check(given: Arguments) -> None:
    x, model_output, variance, seeds = given.x, given.model_output, given.variance, given.seeds
    _check_tensors(given)
    _check_row(x, given.table, given.index)
    if variance not in VARIANCES:
        raise FastdiffError(f"reverse_step: variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    if variance != "none" and model_output.shape[1] != 2 * x.shape[1]:
        raise FastdiffError(
            f"reverse_step: variance {variance!r} needs {2 * x.shape[1]} channels of model_output"
            f" (twice those of x), got {model_output.shape[1]}"
        )
    if seeds is not None:
        if given.noise is not None:
            raise FastdiffError("reverse_step: give noise or seeds, not both")
        check_seeds("reverse_step", seeds)
        if seeds.shape != x.shape[:1] or seeds.device != x.device:
            raise FastdiffError(
                f"reverse_step: seeds must have shape {[x.shape[0]]} on {x.device},"
                f" got {list(seeds.shape)} on {seeds.device}"
            )
    check_word("reverse_step", "stream", given.stream)


def _check_tensors(given: Arguments) -> None:
    x, model_output, uncond = given.x, given.model_output, given.uncond
    like_x = {"h1": given.h1, "h2": given.h2, "noise": given.noise}
    if x.dim() < 2 or not x.is_floating_point():
        raise FastdiffError(
            f"reverse_step: x must be a floating-point tensor [N, C, *], got {x.dtype} {list(x.shape)}"
        )
    n, c, *rest = x.shape
    shapes = ([n, c, *rest], [n, 2 * c, *rest])
    if list(model_output.shape) not in shapes or not model_output.is_floating_point():
        raise FastdiffError(
            f"reverse_step: model_output must be a floating-point tensor of shape {shapes[0]} or {shapes[1]},"
            f" got {model_output.dtype} {list(model_output.shape)}"
        )
    if uncond is not None and (uncond.shape != model_output.shape or not uncond.is_floating_point()):
        raise FastdiffError(
            f"reverse_step: uncond must be a floating-point tensor shaped like model_output"
            f" {list(model_output.shape)}, got {uncond.dtype} {list(uncond.shape)}"
        )
    for name, t in like_x.items():
        if t is not None and t.shape != x.shape:
            raise FastdiffError(
                f"reverse_step: {name} must have x's shape {list(x.shape)}, got {list(t.shape)}"
            )
        if t is not None and t.dtype not in (x.dtype, torch.float32):
            raise FastdiffError(f"reverse_step: {name} must be float32 or {x.dtype} like x, got {t.dtype}")
    for name, t in {"model_output": model_output, "uncond": uncond, **like_x}.items():
        if t is not None and t.device != x.device:
            raise FastdiffError(f"reverse_step: {name} is on {t.device}, x is on {x.device}")


def _check_row(x: Tensor, table: Tensor, index: Tensor) -> None:
    if (
        table.dim() != 2
        or table.shape[0] == 0
        or table.shape[1] != TABLE_COLUMNS
        or table.dtype not in (torch.float32, torch.float64)
    ):
        raise FastdiffError(
            f"reverse_step: table must be float32 or float64 [S, {TABLE_COLUMNS}],"
            f" got {table.dtype} {list(table.shape)}"
        )
    if index.dim() != 0 or index.dtype != torch.int64:
        raise FastdiffError(
            f"reverse_step: index must be an int64 scalar tensor, got {index.dtype} {list(index.shape)}"
        )
    for name, t in (("table", table), ("index", index)):
        if t.device != x.device:
            raise FastdiffError(f"reverse_step: {name} is on {t.device}, x is on {x.device}")


def _fake(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x = given.x
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[:1], dtype=torch.int32)


step_op = FusedOp(
    "reverse_step",
    Arguments,
    "(Tensor x_next, Tensor x0, Tensor nonfinite)",
    reference=reference.reverse_step,
    fake=_fake,
    check=_check,
)
step_op.differentiate_reference()
