"""One step of the binomial reverse process in one pass over memory, random numbers included."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.bernoulli_step import eager, reference
from fastdiff.ops.bernoulli_step.reference import Arguments
from fastdiff.ops.philox import check_seeds, check_word


def bernoulli_step(
    probability: Tensor, seeds: Tensor, step: Tensor, *, factor: Tensor | None = None, stream: int = 0
) -> Tensor:
    r"""From the model's probabilities of a one, c = f_b(x_t, t), to the bits x_{t-1}.

    .. math::
        p = \frac{c\,d}{c\,d + (1 - c)(1 - d)} \;\;(p = c \text{ without } d), \qquad
        x_{t-1} = 1 \text{ if } u(r) < p \text{ else } 0, \qquad u(r) = 2^{-32} r + 2^{-33}

    r is the element's Philox word, numbered as in :func:`fastdiff.ops.normal`: element e of a sample, in contiguous
    order, has word e mod 4 of block e // 4, under the sample's seed, the step and the stream.

    The bits are the same on every backend, for any number of threads and samples. p is computed in float32 (float64
    for float64 probabilities), each operation rounded by itself: (c d) / ((c d) + (1 - c) (1 - d)). The comparison
    is exact: in float64, which holds u and p without rounding, or with the number of words that give a one,
    ceil(2^32 p - 1/2), which is the same. Hence probabilities and not logits: no two devices agree on a sigmoid's
    last bit.

    Args:
        probability: c, [N, *], float32, bfloat16, float16 or float64, in [0, 1]; at most 0 gives 0, at least 1
            gives 1, and NaN gives NaN, so that a broken model does not pass for bits.
        seeds: [N] int64, one for each sample.
        step: int64 scalar tensor on the same device, 0 <= step < 2^32: the counter's word, in memory so that the call
            is the same at every step.
        factor: d = r(1) / (r(0) + r(1)), additional knowledge of each bit: [N, *] or [1, *], dtype of probability or
            float32, in [0, 1]. 1/2 has no effect; 0 and 1 set the bit, whatever the model's probability.
        stream: Philox stream, 0 <= stream < 2^32.

    Returns:
        x_{t-1}, 0 or 1 in the dtype, shape and layout of probability. Gradients are 0, as of ``torch.bernoulli``.

    Under ``use_backend("eager")`` the bits are drawn by ``torch.bernoulli``, as users do today; seeds, step and stream
    are not looked at.

    Raises:
        FastdiffError: shapes, dtypes or devices that do not fit; on the CPU, a step out of range.

    Source: Sohl-Dickstein et al. 2015, table App.1 (the kernel) and section 2.5 (the factor).
    """
    if is_eager():
        given = Arguments(probability, seeds, step, factor, stream)
        _check(given)
        return eager.with_bernoulli(given)
    return step_op(probability, seeds, step, factor, stream)


def _check(given: Arguments) -> None:
    probability, seeds, step, factor, stream = given
    if probability.dim() < 1 or not probability.is_floating_point():
        raise FastdiffError(
            "bernoulli_step: probability must be a floating-point tensor [N, *],"
            f" got {probability.dtype} {list(probability.shape)}"
        )
    check_seeds("bernoulli_step", seeds)
    n, *rest = probability.shape
    if len(seeds) != n:
        raise FastdiffError(f"bernoulli_step: seeds must have shape {[n]}, got {list(seeds.shape)}")
    if step.dim() != 0 or step.dtype != torch.int64:
        raise FastdiffError(
            f"bernoulli_step: step must be an int64 scalar tensor, got {step.dtype} {list(step.shape)}"
        )
    if factor is not None and list(factor.shape) not in ([n, *rest], [1, *rest]):
        raise FastdiffError(
            f"bernoulli_step: factor must have shape {[n, *rest]} or {[1, *rest]}, got {list(factor.shape)}"
        )
    if factor is not None and factor.dtype not in (probability.dtype, torch.float32):
        raise FastdiffError(
            f"bernoulli_step: factor must be float32 or {probability.dtype} like probability, got {factor.dtype}"
        )
    for name, t in (("seeds", seeds), ("step", step), ("factor", factor)):
        if t is not None and t.device != probability.device:
            raise FastdiffError(
                f"bernoulli_step: {name} is on {t.device}, probability is on {probability.device}"
            )
    check_word("bernoulli_step", "stream", stream)


def _fake(given: Arguments) -> Tensor:
    return torch.empty_like(given.probability)


step_op = FusedOp(
    "bernoulli_step",
    Arguments,
    "Tensor",
    reference=reference.bernoulli_step,
    fake=_fake,
    check=_check,
)
step_op.differentiate_reference()
