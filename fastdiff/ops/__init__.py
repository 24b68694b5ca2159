"""The fused ops: public functions. Each lives in a folder with its reference, kernels and cases."""

from fastdiff.ops.adamw_ema import AdamWHyper as AdamWHyper
from fastdiff.ops.adamw_ema import adamw_ema as adamw_ema
from fastdiff.ops.attention import attention as attention
from fastdiff.ops.bernoulli_step import bernoulli_step as bernoulli_step
from fastdiff.ops.channel_moments import channel_moments as channel_moments
from fastdiff.ops.conv2d import conv2d as conv2d
from fastdiff.ops.conv2d import pack_conv2d as pack_conv2d
from fastdiff.ops.conv2d import unpack_conv2d as unpack_conv2d
from fastdiff.ops.decision import first_passage as first_passage
from fastdiff.ops.first_passage_density import first_passage_density as first_passage_density
from fastdiff.ops.group_norm_silu import group_norm_silu as group_norm_silu
from fastdiff.ops.norm_coefficients import norm_coefficients as norm_coefficients
from fastdiff.ops.philox import normal as normal
from fastdiff.ops.philox import random_bits as random_bits
from fastdiff.ops.reverse_step import reverse_step as reverse_step
