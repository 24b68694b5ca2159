"""``fastdiff bench v100-days``: the cost of training, published and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tyro.conf import Positional

from fastdiff.choices import UTILISATION
from fastdiff.cli.options import Device
from fastdiff.errors import FastdiffError


@dataclass(frozen=True)
class Bench:
    """Print the cost of training and sampling in V100s: counted, published and, with --measure, timed on this device.

    On a CPU --measure times the presets at a reduced width, which it prints; on a GPU at full width.
    """

    what: Positional[Literal["v100-days"]]
    """Benchmark to run."""
    measure: bool = False
    """Time training steps of eager PyTorch, torch.compile and fastdiff, in alternation, and fastdiff's sampling."""
    presets: tuple[str, ...] = ("adm-64",)
    """Models to time, by preset name."""
    batch: int | None = None
    """Number of images in a training step. Default: 4 on a CPU, 8 on a GPU."""
    rounds: int = 5
    """Number of timings of each implementation, of which the median is reported."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Precision of the forward and backward pass. Default: float32 on a CPU, bfloat16 on a GPU."""
    compile: bool = True
    """Include torch.compile, which may take minutes to compile."""
    width: int | None = None
    """model_channels to use in place of the preset's. Default: the least possible on a CPU, the preset's on a GPU."""
    utilisation: float = UTILISATION
    """Share of a V100's peak of 120 TFLOP/s that the conversion into V100-days assumes."""
    device: Device = "auto"

    def run(self) -> int:
        from fastdiff.bench import report

        if not self.measure:
            print(report.published())
            return 0
        if self.rounds < 1 or (self.batch is not None and self.batch < 1):
            raise FastdiffError("rounds and batch must be at least 1")
        self._measure()
        return 0

    def _measure(self) -> None:
        import torch

        from fastdiff.backend import usable_device
        from fastdiff.bench import report
        from fastdiff.bench.few_steps import SAMPLING
        from fastdiff.bench.machine import backends_in_words, device_name
        from fastdiff.bench.measure import Options, measure, sampling_speeds

        device = usable_device(self.device)
        is_cpu = device.type == "cpu"
        dtype = self.precision or ("float32" if is_cpu else "bfloat16")
        print(f"device {device_name(device)}; {backends_in_words(device.type)}; torch {torch.__version__}")
        options = Options(
            batch=self.batch or (4 if is_cpu else 8),
            rounds=self.rounds,
            dtype=getattr(torch, dtype),
            compile=self.compile,
            utilisation=self.utilisation,
        )
        for name in self.presets:
            fitting = replace(options, width=self._width(name, is_cpu))
            print("", report.measured(measure(name, fitting, device)), sep="\n", flush=True)
        width = self._width(SAMPLING[0].preset, is_cpu)
        speeds = sampling_speeds((way.preset for way in SAMPLING), replace(options, width=width), device)
        print("", report.few_step_sampling(speeds, width), sep="\n", flush=True)

    def _width(self, preset: str, is_cpu: bool) -> int | None:
        """model_channels in place of the preset's, if any."""
        from fastdiff.bench.measure import smallest_width
        from fastdiff.models.config import UNetConfig
        from fastdiff.zoo import PRESETS

        model = PRESETS[preset].model if preset in PRESETS else None
        if self.width is not None or not is_cpu or not isinstance(model, UNetConfig):
            return self.width
        least = smallest_width(model)
        return least if least < model.model_channels else None
