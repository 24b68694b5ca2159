"""Sampling: a plan of coefficients, one loop, one short file per sampler."""

from fastdiff.sampling.api import Sampler as Sampler
from fastdiff.sampling.api import encode as encode
from fastdiff.sampling.api import sample as sample
from fastdiff.sampling.api import sample_batches as sample_batches
from fastdiff.sampling.api import to_uint8 as to_uint8
from fastdiff.sampling.condition import Condition as Condition
from fastdiff.sampling.condition import Denoise as Denoise
from fastdiff.sampling.condition import Guide as Guide
from fastdiff.sampling.condition import Inpaint as Inpaint
from fastdiff.sampling.conditional import denoise as denoise
from fastdiff.sampling.conditional import inpaint as inpaint
