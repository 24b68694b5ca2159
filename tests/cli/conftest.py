"""Checkpoints of a network that samples in milliseconds, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
from tiny_checkpoint import NAMES, TINY, write_checkpoint

from fastdiff.cli import main
from fastdiff.models import ModelConfig


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by what is special about them."""
    pytest.importorskip("tyro", reason="tyro is not installed")
    folder = tmp_path_factory.mktemp("checkpoints")
    configs: dict[str, ModelConfig] = {
        "tiny": TINY,
        "unnamed": replace(TINY, null_label=False),
        "unconditional": replace(TINY, num_classes=None, null_label=False),
        "low-res": replace(TINY, low_res="bilinear"),
        "classifier": replace(tiny.GRAY_CLASSIFIER, num_res_blocks=2, num_outputs=1000),
        "nan": TINY,
    }
    files = {
        kind: write_checkpoint(
            folder / f"{kind}.safetensors", config, NAMES if kind == "tiny" else (), nan=kind == "nan"
        )
        for kind, config in configs.items()
    }
    files["truncated"] = folder / "truncated.safetensors"
    files["truncated"].write_bytes(files["tiny"].read_bytes()[:1000])
    files["text"] = folder / "notes.txt"
    files["text"].write_text("no weights")
    files["other-network"] = folder / "other.pt"
    torch.save({"fc.weight": torch.zeros(2, 2)}, files["other-network"])
    files["malicious"] = folder / "malicious.pt"
    torch.save({"state_dict": _Attack(folder / "attacked")}, files["malicious"])
    return files


class _Attack:
    """An object whose unpickling would create a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.proof), "w")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``command("sample", "--n", "3")``: what the command line returned and printed."""
    pytest.importorskip("tyro", reason="tyro is not installed")

    def run(*argv: object) -> Ended:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Ended(code, *capsys.readouterr())

    return run
