"""Inference on the CPU with packed weights and folded norms: ``optimize`` and what it puts in the place of layers."""

from fastdiff.engine.optimize import Optimized as Optimized
from fastdiff.engine.optimize import for_inference as for_inference
from fastdiff.engine.optimize import is_for as is_for
from fastdiff.engine.optimize import optimize as optimize
