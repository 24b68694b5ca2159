"""Compute accounting: multiply-accumulates, parameters, V100-days."""

from fastdiff.compute.count import Compute as Compute
from fastdiff.compute.count import count as count
