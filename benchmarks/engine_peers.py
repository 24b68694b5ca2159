"""Other ways to run the networks of benchmarks/engine.py: torch.compile, OpenVINO, and diffusers' own U-Net."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from engine_sides import DTYPES, Network, Side, eagerly, fastdiff_sides, fill_zeros
from torch import Tensor, nn

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError

PACKAGES = ("openvino", "diffusers")

# https://huggingface.co/google/ddpm-cifar10-32, config.json
DDPM_CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def compiled_sides(network: Network) -> list[Side]:
    """torch.compile in its default mode, weights frozen into the code; compiled here, without an old cache."""
    import torch._inductor.config as inductor

    sides = []
    for dtype in DTYPES:
        source = network.twin() if dtype == "float32" else network.cast(DTYPES[dtype])
        torch._dynamo.reset()
        compiled = Network(torch.compile(source.model), source.inputs, network.call)
        run = eagerly(compiled)
        with tempfile.TemporaryDirectory() as cache, inductor.patch(freezing=True):
            before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            try:
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
            finally:
                os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
                if before is not None:
                    os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
        sides.append(Side("torch.compile", dtype, run, network, seconds))
    return sides


def openvino_sides(network: Network) -> list[Side]:
    """OpenVINO on as many threads as torch, the shapes fixed, for latency."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network.model

        def forward(self, *inputs: Tensor) -> Tensor:
            return network.call(self.model, *inputs)

    with use_backend("eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: the checks of shapes are not in the graph
        shapes = [list(p.shape) for p in network.inputs]
        converted = ov.convert_model(Module(), example_input=network.inputs, input=shapes)
    sides = []
    for dtype, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        start = time.perf_counter()
        compiled = ov.Core().compile_model(converted, "CPU", options)
        seconds = time.perf_counter() - start
        sides.append(Side("OpenVINO", dtype, _openvino_run(compiled, network), network, seconds))
    return sides


def _openvino_run(compiled: Any, network: Network) -> Callable[[], Tensor]:
    request = compiled.create_infer_request()
    arrays = [p.numpy() for p in network.inputs]
    return lambda: torch.from_numpy(
        request.infer(arrays, share_inputs=True, share_outputs=True)[compiled.output(0)]
    )


def diffusers_sides(batch: int) -> tuple[list[Side], str | None]:
    """diffusers' U-Net in the shape of ddpm-cifar10, plain and optimized; and why the latter is missing, if it is."""
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]
    from diffusers.utils import logging  # pyright: ignore[reportMissingImports]

    logging.set_verbosity_error()  # it warns of a cast to float64
    torch.manual_seed(0)
    model = UNet2DModel(**DDPM_CIFAR10).eval()
    fill_zeros(model)
    inputs = torch.randn(batch, 3, 32, 32), torch.full((batch,), 500)
    network = Network(model, inputs, lambda model, *inputs: model(*inputs).sample)
    sides = [Side("diffusers", "float32", network.__call__, network)]
    try:
        return [*sides, *fastdiff_sides(network, "diffusers, fastdiff.optimize")], None
    except FastdiffError as error:
        return sides, str(error)
