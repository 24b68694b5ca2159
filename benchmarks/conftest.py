"""Settings of every benchmark: the device and versions go into the JSON beside the timings."""

from __future__ import annotations

from typing import Any

import torch

import fastdiff
from fastdiff.cli.info import backends_in_words, device_name


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine_info["fastdiff"] = {
        "device": device_name(device),
        "backend": backends_in_words(device),
        "torch": torch.__version__,
        "fastdiff": fastdiff.__version__,
    }
