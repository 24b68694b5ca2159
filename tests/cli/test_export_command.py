"""``fastdiff export``: files and folders, what is said of them, and mistakes. What is in them: tests/interop."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny
import torch
from tiny_checkpoint import write_checkpoint

import fastdiff


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    trace = logging.getLogger("torch.__trace")  # see tests/interop/test_export.py
    trace.disabled = True
    yield
    trace.disabled = False


def test_every_format(command, checkpoints, tmp_path) -> None:
    model = fastdiff.load(checkpoints["tiny"])
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([1.5, 80.0]), torch.tensor([0, 3])
    for name in ("new/model.safetensors", "model.pt2"):
        ended = command("export", tmp_path / name, "--checkpoint", checkpoints["tiny"])
        assert ended.code == 0, ended.err
        assert f"wrote      {tmp_path / name}\n" in ended.out
        assert ("note       It is the network alone" in ended.out) == name.endswith(".pt2")
    again = fastdiff.load(tmp_path / "new" / "model.safetensors")
    assert again.class_names == model.class_names and torch.equal(again(x, t, y), model(x, t, y))
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(x, t, y=y), model(x, t, y), rtol=1e-4, atol=1e-5)


def test_diffusers(command, tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    file = write_checkpoint(tmp_path / "model.safetensors", replace(tiny.UNET, conv_resample=True))
    ended = command("export", tmp_path / "folder", "--checkpoint", file)
    assert ended.code == 0 and "note " not in ended.out, ended.err
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet").eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 80.0])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t).sample, fastdiff.load(file)(x, t), rtol=1e-3, atol=1e-4)


def test_mistakes(command, checkpoints, tmp_path) -> None:
    cases = [
        (
            "model.gguf",
            "tiny",
            "give a file that ends in .safetensors, .onnx, .pt2, or a folder without a dot",
        ),
        ("folder", "classifier", "diffusers has no counterpart of a classifier"),
    ]
    if importlib.util.find_spec("onnx") is None:
        cases.append(("model.onnx", "tiny", "pip install 'fastdiff[export]'"))
    if importlib.util.find_spec("diffusers"):
        cases.append(("folder", "low-res", "UNet2DModel cannot represent super-resolution (low_res)"))
    for target, kind, message in cases:
        ended = command("export", tmp_path / target, "--checkpoint", checkpoints[kind])
        assert ended.code == 2 and ended.err.count("\n") == 1 and message in ended.err
    assert not list(tmp_path.iterdir())
