"""Data sets of Hugging Face's library, on the library where it is installed, and always on a stand-in for it."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli import main
from fastdiff.data.images import load_data
from fastdiff.data.readers import read
from fastdiff.errors import FastdiffError

INSTALLED = importlib.util.find_spec("datasets") is not None
COLUMNS = {"n": "int", "picture": "image", "kind": "class", "word": "text"}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def rows(count: int = 6) -> dict[str, list[Any]]:
    pictures = [{"bytes": png(i), "path": None} for i in range(count)]
    words = ["cat" if i % 3 else "ant" for i in range(count)]
    return {
        "n": list(range(count)),
        "picture": pictures,
        "kind": [i % 2 for i in range(count)],
        "word": words,
    }


class Feature:
    def __init__(self, names: list[str] | None = None, decode: bool = True) -> None:
        self.names, self.decode = names, decode


class StandInImage(Feature):
    pass


class StandInClassLabel(Feature):
    pass


class Table:
    """What fastdiff uses of datasets.Dataset."""

    def __init__(self, content: dict[str, list[Any]], features: dict[str, Feature]) -> None:
        self.content, self.features = content, features

    def __len__(self) -> int:
        return len(next(iter(self.content.values())))

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return {name: values[key] for name, values in self.content.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table(*({n: part[n] for n in names} for part in (self.content, self.features)))  # pyright: ignore

    def cast_column(self, name: str, feature: Feature) -> Table:
        assert isinstance(feature, StandInImage) and not feature.decode
        return Table(self.content, {**self.features, name: feature})


def stand_in() -> types.ModuleType:
    """A module ``datasets`` whose files on disk are JSON lists of the columns that they hold."""
    module: Any = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.disable_progress_bars = (
        StandInImage,
        StandInClassLabel,
        lambda: None,
    )

    def table(columns: list[str]) -> Table:
        made = {
            "image": StandInImage(),
            "class": StandInClassLabel(names=["circle", "square"]),
            "int": Feature(),
            "text": Feature(),
        }
        kinds = {name: made[{**COLUMNS, "kind2": "class"}[name]] for name in columns}
        content = {**rows(), "kind2": rows()["kind"]}
        return Table({name: content[name] for name in columns}, kinds)

    def load_dataset(name: str, data_files: list[str] | None = None) -> Any:
        if name == "missing":
            raise ConnectionError("no such data set")
        columns = json.loads(Path(data_files[0]).read_text()) if data_files else list(COLUMNS)
        return (
            {"train": table(columns)} if data_files else {"train": table(columns), "test": table(["picture"])}
        )

    module.load_dataset = load_dataset
    module.load_from_disk = lambda path: table(json.loads((Path(path) / "state.json").read_text()))
    return module


def write(path: Path, columns: list[str], real: bool) -> Path:
    """A folder of ``save_to_disk``, or a parquet file if the path ends so."""
    if not real:
        file = path
        if path.suffix != ".parquet":
            path.mkdir()
            file = path / "state.json"
        file.write_text(json.dumps(columns))
        return path
    import datasets  # pyright: ignore[reportMissingImports]

    made = {
        "n": datasets.Value("int32"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["circle", "square"]),
        "word": datasets.Value("string"),
    }
    made["kind2"] = made["kind"]
    content = {**rows(), "kind2": rows()["kind"]}
    features = datasets.Features({name: made[name] for name in columns})
    data = datasets.Dataset.from_dict({name: content[name] for name in columns}, features=features)
    data.to_parquet(str(path)) if path.suffix == ".parquet" else data.save_to_disk(str(path))
    return path


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param("library", marks=pytest.mark.skipif(not INSTALLED, reason="no datasets")),
    ]
)
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "datasets", stand_in())
    return request.param == "library"


@pytest.mark.parametrize("name", ["saved", "train-0.parquet"])
def test_columns_are_found_by_their_types(tmp_path: Path, real: bool, name: str) -> None:
    path = write(tmp_path / name, list(COLUMNS), real)
    data = load_data(path, image_size=8, channels=1, num_classes=2)
    assert data.class_names == ("circle", "square")
    assert data.labels is not None and data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.fetch(torch.arange(6))[:, 0, 0, 0].tolist() == list(range(6))
    if real:  # as for worker processes
        assert np.asarray(pickle.loads(pickle.dumps(read(path))).image(3))[0, 0] == 3


def test_labels_by_column(tmp_path: Path, real: bool) -> None:
    path = write(tmp_path / "saved", list(COLUMNS), real)
    words = read(path, Path("word"))
    assert words.class_names == ("ant", "cat") and words.labels is not None
    assert words.labels.tolist() == [0, 1, 1, 0, 1, 1]
    with pytest.raises(FastdiffError, match="no column 'size' for --labels; it has n, picture, kind, word"):
        read(path, Path("size"))
    two = write(tmp_path / "two", ["picture", "kind", "kind2"], real)
    with pytest.raises(FastdiffError, match="several columns of labels, kind, kind2; give --labels"):
        read(two)
    assert read(write(tmp_path / "bare", ["picture", "n"], real)).labels is None
    with pytest.raises(FastdiffError, match="no column of images, only n"):
        read(write(tmp_path / "none", ["n"], real))


def test_a_name_and_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", stand_in())
    assert read(Path("hf:somebody/shapes")).class_names == ("circle", "square")
    assert read(Path("hf:somebody/shapes:test")).labels is None
    with pytest.raises(FastdiffError, match="no split 'valid'; it has train, test"):
        read(Path("hf:somebody/shapes:valid"))
    with pytest.raises(FastdiffError, match="cannot open hf:missing: ConnectionError: no such data set"):
        read(Path("hf:missing"))


def test_of_a_folder_the_files_for_training(tmp_path: Path, real: bool) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-0.parquet", ["picture", "kind"], real)
    write(tmp_path / "data" / "test-0.parquet", ["picture", "n"], real)
    found = read(tmp_path / "data")
    assert len(found) == 6 and found.class_names == ("circle", "square")


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        FastdiffError, match="hf:cifar10 is read by the package datasets, .*: pip install datasets"
    ):
        read(Path("hf:cifar10"))


def test_the_command_line_trains_on_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    monkeypatch.setitem(sys.modules, "datasets", stand_in())
    net = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    (tmp_path / "net.json").write_text(json.dumps({"model": net, "diffusion": {"schedule": "cosine"}}))
    options = [
        "--data",
        "hf:somebody/shapes",
        "--preset",
        str(tmp_path / "net.json"),
        "--steps",
        "1",
        "-b",
        "2",
    ]
    assert main(["train", *options, "--workers", "0", "--out", str(tmp_path / "run")]) == 0
    model: Any = fastdiff.load(tmp_path / "run" / "model.safetensors")
    assert model.class_names == ("circle", "square")
    assert (model.config.image_size, model.config.in_channels, model.config.num_classes) == (8, 1, 2)
