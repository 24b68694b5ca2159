"""Every op's cases, in order of arithmetic."""

from fastdiff.ops._case import Case
from fastdiff.ops.adamw_ema.cases import CASES as _adamw_ema
from fastdiff.ops.attention.cases import CASES as _attention
from fastdiff.ops.bernoulli_step.cases import CASES as _bernoulli_step
from fastdiff.ops.channel_moments.cases import CASES as _channel_moments
from fastdiff.ops.conv2d.cases import CASES as _conv2d
from fastdiff.ops.group_norm_silu.cases import CASES as _group_norm_silu
from fastdiff.ops.norm_coefficients.cases import CASES as _norm_coefficients
from fastdiff.ops.philox.cases import CASES as _philox
from fastdiff.ops.reverse_step.cases import CASES as _reverse_step

CASES: tuple[Case, ...] = (
    *_group_norm_silu,
    *_channel_moments,
    *_norm_coefficients,
    *_conv2d,
    *_attention,
    *_philox,
    *_reverse_step,
    *_bernoulli_step,
    *_adamw_ema,
)
