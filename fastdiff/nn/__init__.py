"""The layers ADM-class networks are made of."""

from fastdiff.nn.attention import AttentionBlock as AttentionBlock
from fastdiff.nn.attention import split_heads as split_heads
from fastdiff.nn.layers import Conv2d as Conv2d
from fastdiff.nn.layers import Downsample as Downsample
from fastdiff.nn.layers import Embedding as Embedding
from fastdiff.nn.layers import GroupNormSiLU as GroupNormSiLU
from fastdiff.nn.layers import Upsample as Upsample
from fastdiff.nn.layers import timestep_embedding as timestep_embedding
from fastdiff.nn.recompute import Dropout as Dropout
from fastdiff.nn.recompute import recomputing as recomputing
from fastdiff.nn.resblock import ResBlock as ResBlock
from fastdiff.nn.resblock import zero_module as zero_module
