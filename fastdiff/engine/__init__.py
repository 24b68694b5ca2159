"""Inference on the CPU with packed weights and folded norms: ``optimize`` and what it puts in the place of layers."""

from fastdiff.engine.optimize import Report as Report
from fastdiff.engine.optimize import optimize as optimize
from fastdiff.engine.optimize import restore as restore
