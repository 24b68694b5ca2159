"""fastdiff: train and sample ADM-class diffusion models with hand-written fused kernels."""

__version__ = "0.1.0"
