"""Files with several sets of weights, with prefixes, with damage, and with more promised than held."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TINY, build

import fastdiff
from fastdiff.checkpoint.save import METADATA_KEY
from fastdiff.errors import FastdiffError

OPTIONS: dict[str, Any] = {"image_size": 8, "num_heads": 1}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def raw() -> Weights:
    return dict(build(TINY, seed=1).state_dict())


@pytest.fixture(scope="module")
def ema() -> Weights:
    return dict(build(TINY, seed=2).state_dict())


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def load(content: Any, path: Path, **options: Any) -> Weights:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return fastdiff.load(path, **OPTIONS, **options).state_dict()


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


PAIRS = {
    "two dicts": lambda raw, ema: {
        "model": raw,
        "ema": ema,
        "step": 5,
        "optimizer": {"state": {}, "lr": 1.0},
    },
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema, "arch": "x"},
    "ddp": lambda raw, ema: {
        "model": prefixed("module.", raw),
        "ema": prefixed("module.", ema),
        "args": None,
    },
    "compiled": lambda raw, ema: {
        "model_state_dict": prefixed("_orig_mod.", raw),
        "ema_state_dict": prefixed("_orig_mod.module.", ema),
    },
    "lightning": lambda raw, ema: {
        "state_dict": OrderedDict(prefixed("model.", raw) | prefixed("ema.", ema))
    },
    "ema-pytorch": lambda raw, ema: {
        "model": raw,
        "ema": {**prefixed("ema_model.", ema), "initted": torch.tensor(True), "step": torch.tensor(9)},
    },
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_average_is_loaded_and_said(tmp_path: Path, raw, ema, kind: str, caplog) -> None:
    content, path = PAIRS[kind](raw, ema), tmp_path / "x.pt"
    assert same(load(content, path), ema)
    assert f"{path} holds the weights" in caplog.text and "ema" in caplog.text.rpartition(": ")[2]
    caplog.clear()
    assert same(load(content, path, weights="ema"), ema) and same(load(content, path, weights="raw"), raw)
    assert not caplog.records


def test_by_name(tmp_path: Path, raw, ema) -> None:
    content = {"model": raw, "ema_0.999": ema, "ema_0.9999": raw}
    path = tmp_path / "x.pt"
    assert same(load(content, path, weights="ema_0.999"), ema)
    assert same(load(content, path, weights="ema_0.9999"), raw)
    with pytest.raises(
        FastdiffError, match="several sets of weights; give weights, one of ema_0.999, ema_0.9999"
    ):
        load(content, path)
    with pytest.raises(FastdiffError, match="has no weights 'mean'; it holds"):
        load(content, path, weights="mean")
    with pytest.raises(FastdiffError, match="has no weights 'raw'; it holds ema"):
        load({"ema": ema}, path, weights="raw")
    with pytest.raises(FastdiffError, match="give weights, one of generator, student"):
        load({"generator": raw, "student": ema}, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "ema.", "model.", "module.", "_orig_mod.", "model._orig_mod.module.", "unet.", "schema."]
)
def test_one_set_with_a_prefix(tmp_path: Path, ema, prefix: str, suffix: str, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert same(load(prefixed(prefix, ema), tmp_path / f"x{suffix}"), ema)
    assert not caplog.records


def test_what_is_none_of_the_set_is_told(tmp_path: Path, raw) -> None:
    """A tensor under the set's own prefix is part of it."""
    with pytest.raises(FastdiffError, match="extra.weight is not part of such a model"):
        load({"model": {**raw, "extra.weight": torch.zeros(1)}, "step": 1}, tmp_path / "x.pt")
    with pytest.raises(FastdiffError, match="holds int under 'model.step'"):
        load({"model": {**raw, "step": 1}}, tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_flipped_bit(tmp_path: Path, raw, legacy: bool) -> None:
    """PyTorch itself holds its files against no checksum. The legacy format has none."""
    path = tmp_path / "x.pt"
    torch.save(raw, path, _use_new_zipfile_serialization=not legacy)
    content = bytearray(path.read_bytes())
    position = content.index(raw["time_embed.0.weight"].numpy().tobytes()[:16])
    content[position + 9] ^= 1
    path.write_bytes(content)
    if legacy:
        assert not same(fastdiff.load(path, **OPTIONS).state_dict(), raw)
    else:
        with pytest.raises(FastdiffError, match="is broken or no PyTorch checkpoint: Bad CRC-32"):
            fastdiff.load(path, **OPTIONS)


def test_files_that_were_saved_without_checksums(tmp_path: Path, raw) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        assert same(load(raw, tmp_path / "x.pt"), raw)
    finally:
        torch.serialization.set_crc32_options(before)


def test_more_than_is_held(tmp_path: Path, raw) -> None:
    """A tensor of one stored number, repeated 2^50 times, and others that are no weights."""
    name = "time_embed.0.weight"
    for wrong, message in (
        (torch.zeros(1).expand(1 << 25, 1 << 25), "more than the file holds"),
        (torch.zeros(128, 32, dtype=torch.int8), "a tensor of torch.int8"),
        (torch.zeros(128, 32).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(128, 32, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(128, 32, device="meta"), "meta"),
    ):
        with pytest.raises(FastdiffError, match=message):
            load({**raw, name: wrong}, tmp_path / "x.pt")


HUGE = {
    "blocks": {"num_res_blocks": 10**6},
    "blocks of a level": {"num_res_blocks": [1, 10**9]},
    "levels": {"channel_mult": [1] * 10**6, "image_size": 8},
    "resolutions": {"attention_resolutions": [4] * 10**6},
    "width": {"model_channels": 32 * 10**17},
    "classes": {"num_classes": 10**18},
    "size": {"image_size": 8 * 10**4000},
}


@pytest.mark.parametrize("kind", HUGE)
def test_configurations_that_promise_more(tmp_path: Path, raw, kind: str) -> None:
    """A file of a megabyte is refused before what it describes is built."""
    about = {"kind": "unet", "model": {**asdict(TINY), **HUGE[kind]}, "diffusion": None}
    path = tmp_path / "x.safetensors"
    save_file(raw, path, metadata={METADATA_KEY: json.dumps(about)})
    started = time.process_time()
    with pytest.raises(FastdiffError, match="x.safetensors") as caught:
        fastdiff.load(path)
    assert time.process_time() - started < 5 and len(str(caught.value)) < 600


@pytest.mark.parametrize("number", ["1000000000", "9" * 5000])
@pytest.mark.parametrize("part", ["input_blocks", "output_blocks"])
def test_numbers_of_blocks_that_promise_more(tmp_path: Path, raw, part: str, number: str) -> None:
    started = time.process_time()
    with pytest.raises(FastdiffError, match="is not a whole ADM-class model"):
        load({**raw, f"{part}.{number}.0.in_layers.0.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert time.process_time() - started < 5
