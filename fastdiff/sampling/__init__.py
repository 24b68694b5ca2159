"""Sampling: a plan of coefficients, one loop, one short file per sampler."""

from fastdiff.sampling.api import Sampler as Sampler
from fastdiff.sampling.api import encode as encode
from fastdiff.sampling.api import sample as sample
from fastdiff.sampling.api import sample_batches as sample_batches
from fastdiff.sampling.api import to_uint8 as to_uint8
from fastdiff.sampling.conditions import Condition as Condition
from fastdiff.sampling.conditions import Denoise as Denoise
from fastdiff.sampling.conditions import Guide as Guide
from fastdiff.sampling.conditions import Inpaint as Inpaint
from fastdiff.sampling.conditions import Observe as Observe
from fastdiff.sampling.restoration import colourise as colourise
from fastdiff.sampling.restoration import denoise as denoise
from fastdiff.sampling.restoration import inpaint as inpaint
from fastdiff.sampling.restoration import super_resolve as super_resolve
