"""Inference on the CPU with packed weights and folded norms: ``optimize`` and the fused layers that it uses."""

from fastdiff.inference.optimize import Optimized as Optimized
from fastdiff.inference.optimize import for_inference as for_inference
from fastdiff.inference.optimize import is_for as is_for
from fastdiff.inference.optimize import optimize as optimize
