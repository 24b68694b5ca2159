"""The fused ops: public functions. Each lives in a folder with its reference, kernels and cases."""

from fastdiff.ops.attention import attention as attention
from fastdiff.ops.group_norm_silu import group_norm_silu as group_norm_silu
