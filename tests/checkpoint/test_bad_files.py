"""Whatever is wrong with a file, load says so in one line and runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.checkpoint.save import METADATA_KEY
from fastdiff.errors import FastdiffError


def _refused(call, *fragments: str) -> None:
    with pytest.raises(FastdiffError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def _write(path: Path, model, changes: dict | None = None, drop: str | None = None) -> Path:
    """The model's weights with some replaced and one left out; no metadata."""
    weights = {**model.state_dict(), **(changes or {})}
    weights.pop(drop, None)
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


# Files


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "", "."])
def test_missing(tmp_path: Path, name: str) -> None:
    _refused(lambda: fastdiff.load(tmp_path / name), "no checkpoint at", ".safetensors or .pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 9, b"\x80", b"PK\x03\x04", b"\0" * 64])
def test_something_else_with_the_right_suffix(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    _refused(lambda: fastdiff.load(file), str(file), "broken or no")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated(tmp_path: Path, model, suffix: str, part: float) -> None:
    file = _write(tmp_path / f"model{suffix}", model)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    _refused(lambda: fastdiff.load(file), str(file), "broken or no")


@pytest.mark.parametrize("name", ["model.npz", "model", "model.pkl"])
def test_another_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1234")
    _refused(lambda: fastdiff.load(tmp_path / name), "must end in .safetensors or .pt")


# Pickles


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_code_is_not_run(tmp_path: Path, model, legacy: bool) -> None:
    file, target = tmp_path / "model.pt", tmp_path / "touched"
    content = {**model.state_dict(), "time_embed.0.weight": _Malicious(target)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    _refused(lambda: fastdiff.load(file), str(file))
    assert not target.exists()
    torch.load(file, weights_only=False)  # what was refused would indeed have run
    assert target.exists()


def test_plain_pickle_is_not_run(tmp_path: Path) -> None:
    file, target = tmp_path / "model.pt", tmp_path / "touched"
    file.write_bytes(pickle.dumps({"time_embed.0.weight": _Malicious(target)}, protocol=2))
    _refused(lambda: fastdiff.load(file), str(file))
    assert not target.exists()


def test_state_of_an_optimizer(tmp_path: Path, model) -> None:
    file = tmp_path / "opt000100.pt"
    torch.save(torch.optim.AdamW(model.parameters()).state_dict(), file)
    _refused(lambda: fastdiff.load(file), "state of an optimizer")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ({"step": 3, "name": "x"}, "holds int under 'step'"),
        ({3: torch.zeros(1)}, "Tensor under 3"),
        ({"state_dict": {"a": "text"}}, "holds str under 'state_dict.a'"),
        ({"state_dict": {}}, "holds no weights"),
        ([torch.zeros(2)], "holds list"),
        (torch.zeros(2), "holds Tensor"),
        ({}, "holds no weights"),
        ({"weight": torch.zeros(2)}, "not an ADM-class model"),
    ],
    ids=[
        "numbers",
        "numbered",
        "nested_text",
        "nested_nothing",
        "list",
        "tensor",
        "nothing",
        "another_model",
    ],
)
def test_other_content(tmp_path: Path, content, fragment: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    _refused(lambda: fastdiff.load(tmp_path / "model.pt"), fragment)


# Weights that do not fit


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("changes", "drop", "fragment"),
    [
        ({}, "middle_block.0.in_layers.2.bias", "it lacks middle_block.0.in_layers.2.bias [64]"),
        ({"out.2.bias": torch.zeros(5)}, None, "out.2.bias is [5], expected [1]"),
        ({"encoder.weight": torch.zeros(5)}, None, "encoder.weight is not part of such a model"),
    ],
    ids=["missing", "shape", "extra"],
)
def test_first_mismatch_is_named(tmp_path: Path, model, suffix, changes, drop, fragment) -> None:
    file = _write(tmp_path / f"model{suffix}", model, changes, drop)
    _refused(lambda: fastdiff.load(file, image_size=8, num_heads=1), str(file), fragment)


def test_weights_of_another_preset(tmp_path: Path, model) -> None:
    file = _write(tmp_path / "model.pt", model)
    _refused(lambda: fastdiff.load(file, preset="ddpm-cifar10"), "time_embed.0.weight is [128, 32], expected")


@pytest.mark.parametrize(
    "weights",
    [
        {"time_embed.0.weight": torch.zeros(4), "input_blocks.0.0.weight": torch.zeros(4)},
        {"time_embed.0.weight": torch.zeros(128, 32), "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)},
        {
            "time_embed.0.weight": torch.zeros(128, 32),
            "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3),
            "input_blocks.x.0.op.weight": torch.zeros(1),
            "input_blocks.7.0.op.weight": torch.zeros(1),
            "output_blocks.0.0.in_layers.0.weight": torch.zeros(1),
        },
    ],
    ids=["vectors", "two", "holes"],
)
@pytest.mark.parametrize("options", [{}, {"image_size": 8, "num_heads": 1, "num_res_blocks": 1}], ids=len)
def test_remains_of_a_model(tmp_path: Path, weights, options) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    _refused(lambda: fastdiff.load(tmp_path / "model.safetensors", **options), "model.safetensors")


@pytest.mark.parametrize(
    "stored",
    [
        "no json",
        "[]",
        "null",
        pytest.param("[" * 100_000, id="deep"),
        '{"kind": "unet"}',
        '{"kind": "unet", "model": {"image_size": "big"}, "diffusion": null}',
        '{"kind": "unet", "model": {"colour": 1}, "diffusion": null}',
        '{"kind": "unet", "model": {"image_size": 8}, "diffusion": {"steps": 0}}',
        '{"kind": "unet", "model": {"image_size": 8}, "diffusion": 7}',
        '{"kind": "unet", "model": {"image_size": 8}, "diffusion": null, "class_names": 5}',
    ],
)
@pytest.mark.parametrize("preset", [None, "ddpm-cifar10"])
def test_garbage_in_the_metadata(tmp_path: Path, model, stored: str, preset) -> None:
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file, metadata={METADATA_KEY: stored})
    _refused(lambda: fastdiff.load(file, preset=preset), str(file))


# Arguments


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (
            {"preset": "adm-1024"},
            "unknown preset 'adm-1024'; known: fashion-mnist, fashion-mnist-few, fashion-mnist-classifier, emoji",
        ),
        ({"colour": 1}, "unknown option 'colour'; UNetConfig has image_size"),
        ({"device": "gameboy"}, "device gameboy cannot be used"),
        ({"device": "cuda:99"}, "device cuda:99 cannot be used"),
        ({"dtype": torch.int8}, "dtype must be"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"num_heads": 7}, "num_heads 7 does not divide 64 channels"),
        ({"diffusion": "cosine"}, "diffusion must be a DiffusionConfig"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments(tmp_path: Path, model, options, fragment: str) -> None:
    fastdiff.save(model, tmp_path / "model.safetensors")
    _refused(lambda: fastdiff.load(tmp_path / "model.safetensors", **options), fragment)


def test_preset_without_bundled_weights() -> None:
    _refused(lambda: fastdiff.load("adm-256"), "fastdiff fetch adm-256", "256x256_diffusion.pt")
    _refused(lambda: fastdiff.load("ddpm-cifar10"), "no weights of ddpm-cifar10 are published")
