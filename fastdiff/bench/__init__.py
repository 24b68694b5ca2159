"""Compute accounting: multiply-accumulates, parameters, V100-days."""

from fastdiff.bench.count import Compute as Compute
from fastdiff.bench.count import count as count
