"""A run that is killed and started again is bit for bit the run that never stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from safetensors.torch import load_file

from fastdiff.training.state import checkpoints

STEPS = 60
MEASURED_TIMES = ("seconds", "images_per_second")


def command(toy: dict[str, Any], out: Path) -> list[str]:
    """Everything random is switched on; checkpoints fall between lines of the log."""
    words = ["-m", "fastdiff", "train", "--data", toy["data"], "--preset", toy["preset"]]
    words += ["--out", out, "--steps", STEPS, "--checkpoint-every", 4, "--log-every", 3, "--threads", 1]
    words += ["--timesteps", "loss-second-moment", "--flip", "--batch-size", 8, "--microbatch", 5]
    words += ["--ema", 0.9, 0.99, "--no-progress"]
    return [str(word) for word in words]


def test_killed_run_resumes_bit_for_bit(toy: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert programs.run(*command(toy, whole)).returncode == 0

    process = subprocess.Popen([sys.executable, *command(toy, killed)])
    while len(checkpoints(killed)) < 2:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    half = killed / "checkpoints" / ".step-00000009.safetensors.half"
    half.write_bytes(b"as a kill may leave it")
    assert programs.run(*command(toy, killed)).returncode == 0

    models = ("model.safetensors", "model-ema-0.99.safetensors")
    for name in (f"checkpoints/step-{STEPS:08d}.safetensors", *models):
        expected, resumed = load_file(whole / name), load_file(killed / name)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[key], resumed[key]) for key in expected), name
    assert not half.exists()
    assert log_without_times(killed) == log_without_times(whole)


def log_without_times(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED_TIMES} for line in lines]
