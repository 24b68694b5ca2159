"""``fastdiff bench v100-days``: the cost of training, published and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from fastdiff.choices import UTILISATION
from fastdiff.cli.options import Device
from fastdiff.errors import FastdiffError


@dataclass(frozen=True)
class Bench:
    """Print the cost of training in V100-days: counted, published and, with --measure, timed on this device.

    On a CPU --measure times the presets at a reduced width, which it prints; on a GPU at full width.
    """

    what: Positional[Literal["v100-days"]]
    """Benchmark to run."""
    measure: bool = False
    """Also time training steps of eager PyTorch, torch.compile and fastdiff, in alternation."""
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
        from fastdiff.bench.costs import macs_per_second
        from fastdiff.bench.machine import backends_in_words, device_name
        from fastdiff.bench.measure import Options, measure, smallest_width
        from fastdiff.models.config import UNetConfig
        from fastdiff.zoo import PRESETS

        device = usable_device(self.device)
        is_cpu = device.type == "cpu"
        dtype = self.precision or ("float32" if is_cpu else "bfloat16")
        print(f"device {device_name(device)}; {backends_in_words(device.type)}; torch {torch.__version__}")
        for name in self.presets:
            width = self.width
            model = PRESETS[name].model if name in PRESETS else None
            if width is None and is_cpu and isinstance(model, UNetConfig):
                least = smallest_width(model)
                width = least if least < model.model_channels else None
            options = Options(
                batch=self.batch or (4 if is_cpu else 8),
                rounds=self.rounds,
                dtype=getattr(torch, dtype),
                compile=self.compile,
                width=width,
                utilisation=self.utilisation,
            )
            print("", report.measured(measure(name, options, device)), sep="\n", flush=True)
        print("", report.few_step_sampling(macs_per_second(str(device))), sep="\n", flush=True)
