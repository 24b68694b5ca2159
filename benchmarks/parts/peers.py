"""The engines of benchmarks/models.py: eager PyTorch, fastdiff, torch.compile, OpenVINO, and diffusers' own U-Net."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.bench.sides import DTYPES, Network, call_on, fill_zeros
from fastdiff.errors import FastdiffError

PRECISIONS = ("float32", "bfloat16")
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


@dataclass(frozen=True)
class Engine:
    """A network that one engine is ready to run."""

    name: str
    dtype: str
    run: Callable[[], Tensor]
    network: Network  # whose float64 copy is the truth
    build_seconds: float | None = None  # compilation, where it takes long


def eager_engines(network: Network) -> list[Engine]:
    """PyTorch as it is, in both layouts."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    return [
        Engine(name, dtype, call_on("eager", network.cast(DTYPES[dtype], layout)), network)
        for dtype in PRECISIONS
        for name, layout in (("eager", contiguous), ("eager, channels_last", last))
    ]


def fastdiff_engines(network: Network, name: str = "fastdiff") -> list[Engine]:
    """``fastdiff.optimize`` in both dtypes; raises FastdiffError where it is not for this model."""
    engines = []
    for dtype in PRECISIONS:
        twin = network.twin()
        fastdiff.optimize(twin.model, DTYPES[dtype])
        engines.append(Engine(name, dtype, twin.__call__, network))
    return engines


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def compiled_engines(network: Network) -> list[Engine]:
    """torch.compile in its default mode, weights frozen into the code; compiled here, without an old cache."""
    import torch._inductor.config as inductor

    engines = []
    for dtype in PRECISIONS:
        source = network.twin() if dtype == "float32" else network.cast(DTYPES[dtype])
        torch._dynamo.reset()
        compiled = Network(torch.compile(source.model), source.inputs, network.predict)
        run = call_on("eager", compiled)
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
        engines.append(Engine("torch.compile", dtype, run, network, seconds))
    return engines


def openvino_engines(network: Network) -> list[Engine]:
    """OpenVINO on as many threads as torch, the shapes fixed, for latency."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network.model

        def forward(self, *inputs: Tensor) -> Tensor:
            return network.predict(self.model, *inputs)

    with use_backend("eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: the checks of shapes are not in the graph
        shapes = [list(p.shape) for p in network.inputs]
        converted = ov.convert_model(Module(), example_input=network.inputs, input=shapes)
    engines = []
    for dtype, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        start = time.perf_counter()
        compiled = ov.Core().compile_model(converted, "CPU", options)
        seconds = time.perf_counter() - start
        engines.append(Engine("OpenVINO", dtype, _openvino_run(compiled, network), network, seconds))
    return engines


def _openvino_run(compiled: Any, network: Network) -> Callable[[], Tensor]:
    request = compiled.create_infer_request()
    arrays = [p.numpy() for p in network.inputs]
    return lambda: torch.from_numpy(
        request.infer(arrays, share_inputs=True, share_outputs=True)[compiled.output(0)]
    )


def diffusers_engines(batch: int) -> tuple[list[Engine], str | None]:
    """diffusers' U-Net in the shape of ddpm-cifar10, plain and optimized; and why the latter is missing, if it is."""
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]
    from diffusers.utils import logging  # pyright: ignore[reportMissingImports]

    logging.set_verbosity_error()  # it warns of a cast to float64
    torch.manual_seed(0)
    model = UNet2DModel(**DDPM_CIFAR10).eval()
    fill_zeros(model)
    inputs = torch.randn(batch, 3, 32, 32), torch.full((batch,), 500)
    network = Network(model, inputs, lambda model, *inputs: model(*inputs).sample)
    engines = [Engine("diffusers", "float32", network.__call__, network)]
    try:
        return [*engines, *fastdiff_engines(network, "diffusers, fastdiff.optimize")], None
    except FastdiffError as error:
        return engines, str(error)
