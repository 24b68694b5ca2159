"""``fastdiff data check``: what is found in data of every kind, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import CLASSES, KINDS, picture, write_folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(command, tmp_path: Path, kind: str) -> None:
    name, write = KINDS[kind]
    data = write(tmp_path / name)
    ended = command("data", "check", data, "--json")
    found = json.loads(ended.out)
    names = CLASSES if kind in ("folder", "zip") else ("0", "1")
    assert ended.code == 0 and not ended.err
    assert found["images"] == 8 and found["classes"] == dict.fromkeys(names, 4)
    assert found["sizes"] == [{"size": [22, 18], "images": 8}]
    assert found["modes"] == {"L" if kind == "idx" else "RGB": 8}
    assert found["duplicates"] == [] and found["broken"] == [] and found["ok"]
    channels = 1 if kind == "idx" else 3
    assert found["trained"] == {"image_size": 16, "channels": channels, "num_classes": 2}


def test_broken_and_double_images_are_named(command, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos")
    picture(0).save(data / "square" / "again.bmp")  # another file of the same picture, in another class
    broken = data / "circle" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    (data / "circle" / "9.png").symlink_to("nowhere")
    (data / "notes.txt").write_text("x")
    ended = command("data", "check", data)
    assert ended.code == 2
    assert ended.err.startswith(f"fastdiff: 2 images of {data} cannot be read: training would stop")
    assert (
        f"cannot read the image {broken}: " in ended.out and "9.png is a link that leads nowhere" in ended.out
    )
    assert f"{data / 'circle' / '0.png'} = {data / 'square' / 'again.bmp'}" in ended.out
    assert (
        "1 pictures are there more than once, 1 of them in several classes" in ended.out
        and "1 .txt" in ended.out
    )
    found = json.loads(command("data", "check", data, "--json").out)
    assert len(found["broken"]) == 2 and found["duplicates_in_several_classes"] == 1 and not found["ok"]


def test_labels_that_cannot_be_trained_on(command, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, 1, 500]))
    ended = command("data", "check", tmp_path / "x.npz")
    assert ended.code == 2 and "labels up to 500 on 3 images; give --num-classes 501" in ended.err
    ended = command("data", "check", tmp_path / "nowhere")
    assert ended.code == 2 and "no data at" in ended.err
