"""A group norm as center, scale and shift of every channel, from the channels' moments."""

from __future__ import annotations

from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.norm_coefficients import reference
from fastdiff.ops.norm_coefficients.reference import Arguments


def norm_coefficients(
    moments: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    more: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""What ``conv2d`` has to do to x in order to normalise it: (x - center) scale + shift.

    With :math:`\mu_{ng} = \mathrm{mean}_c\, \mu_{nc}` and
    :math:`\sigma^2_{ng} = \mathrm{mean}_c\, (\sigma^2_{nc} + (\mu_{nc} - \mu_{ng})^2)` over the channels of a group,

    .. math::
        \mathrm{center} = \mu_{ng}, \quad
        \mathrm{scale} = \frac{\gamma_c (1 + s_{nc})}{\sqrt{\sigma^2_{ng} + \epsilon}}, \quad
        \mathrm{shift} = \beta_c (1 + s_{nc}) + t_{nc}

    Args:
        moments: [N, C, 2], mean and variance, as ``channel_moments`` and ``conv2d`` give them.
        num_groups: G, a divisor of the number of channels.
        weight, bias: gamma, beta [C], or None for 1 and 0.
        more: moments of further channels, of a tensor that is to stand beside the first without being joined to it.
        scale, shift: AdaGN's s, t [N, C] (trailing dimensions of size 1 allowed), or None for 0.
        eps: added to the variance.

    Returns:
        [N, 3, C] in the dtype of moments: center, scale, shift.

    Raises:
        FastdiffError: shapes that do not fit together.

    Source: GroupNorm, Wu & He 2018, eq. 1-3; AdaGN, Dhariwal & Nichol 2021, section 3.
    """
    given = Arguments(moments, num_groups, weight, bias, more, _rows(scale), _rows(shift), eps)
    if is_eager():
        _check(given)
        return reference.norm_coefficients(given)
    return op(*given)


def _rows(p: Tensor | None) -> Tensor | None:
    """[N, C, 1, ..., 1] -> [N, C]."""
    return p if p is None or p.dim() <= 2 else p.flatten(1)


def _check(given: Arguments) -> None:
    moments, more, num_groups = given.moments, given.more, given.num_groups
    n = len(moments) if moments.dim() else 0
    for name, m in (("moments", moments), ("more", more)):
        if m is not None and (m.dim() != 3 or m.shape[2] != 2 or len(m) != n or not m.is_floating_point()):
            raise FastdiffError(
                f"norm_coefficients: {name} must be floating point of shape [{n if name == 'more' else 'N'}, C, 2],"
                f" got {m.dtype} {list(m.shape)}"
            )
    channels = moments.shape[1] + (0 if more is None else more.shape[1])
    if num_groups < 1 or channels % num_groups:
        raise FastdiffError(f"norm_coefficients: num_groups={num_groups} does not divide {channels} channels")
    for name, parameter in given.parameters().items():
        shape = [n, channels] if name in ("scale", "shift") else [channels]
        if parameter is not None and list(parameter.shape) != shape:
            raise FastdiffError(
                f"norm_coefficients: {name} must have shape {shape}, got {list(parameter.shape)}"
            )
    for name, t in {"more": more, **given.parameters()}.items():
        if t is not None and t.device != moments.device:
            raise FastdiffError(f"norm_coefficients: {name} is on {t.device}, moments on {moments.device}")


def _fake(given: Arguments) -> Tensor:
    moments, more = given.moments, given.more
    channels = moments.shape[1] + (0 if more is None else more.shape[1])
    return moments.new_empty(moments.shape[0], 3, channels)


op = FusedOp(
    "norm_coefficients",
    Arguments,
    "Tensor affine",
    reference=reference.norm_coefficients,
    fake=_fake,
    check=_check,
)


# A few numbers a channel: the reference's derivative will do.
op.differentiate_reference()
