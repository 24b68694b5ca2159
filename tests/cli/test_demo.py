"""What the page of ``fastdiff demo`` computes and shows; a browser opens it in test_demo_in_browser.py."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli import demo_html as html
from fastdiff.cli import demo_page
from fastdiff.cli import demo_run as run
from fastdiff.cli.demo_fields import told
from fastdiff.cli.demo_run import EACH, NO_CLASS, Frame, Shown, load_models
from fastdiff.errors import FastdiffError


@pytest.fixture(scope="module")
def shown(checkpoints) -> Shown:
    return next(iter(load_models([str(checkpoints["tiny"])], "cpu").values()))


@pytest.fixture(scope="module")
def model(checkpoints):
    return fastdiff.load(checkpoints["tiny"])


def pixels(images: torch.Tensor) -> np.ndarray:
    return fastdiff.to_uint8(images).numpy()


def test_bundled_denoisers_are_there_by_themselves() -> None:
    models = load_models([], "cpu")
    assert list(models) == ["fashion-mnist", "fashion-mnist-few", "emoji"]  # the first one is shown first
    assert models["fashion-mnist"].about == "32 × 32 grey, 10 classes, 1.7 million parameters"
    assert models["emoji"].about == "64 × 64 RGB, 9 classes, 5.1 million parameters"
    assert models["fashion-mnist"].usual() == ("dpmpp", 20)
    assert models["fashion-mnist-few"].usual() == ("consistency", 2)
    assert all(shown.model.diffusion is not None for shown in models.values())


@pytest.mark.parametrize(
    "kind, classes, guidable",
    [
        ("tiny", [NO_CLASS, "circle", "Square", "long triangle"], True),
        ("unnamed", ["0", "1", "2"], False),
        ("unconditional", [], False),
    ],
)
def test_choices_are_the_models(checkpoints, kind, classes, guidable) -> None:
    (shown,) = load_models([str(checkpoints[kind])], "cpu").values()
    assert shown.classes == classes and shown.guidable == guidable and shown.most == 64
    assert shown.labels(EACH, 5) == ([0, 1, 2, 0, 1] if classes else None)
    if classes:
        assert shown.labels(classes[-1], 2) == [2, 2]
    *_, last = run.sample(shown, EACH, 2, "ddim", 2, 1, 0)
    assert last.captions == (shown.class_names[:2] if classes else ["", ""])


def test_large_models_make_few_at_a_time(shown) -> None:
    def of_size(size: int) -> Shown:
        return Shown("", SimpleNamespace(config=SimpleNamespace(image_size=size)))

    assert [of_size(size).most for size in (32, 64, 128, 256, 512)] == [64, 64, 16, 4, 2]


@pytest.mark.parametrize("guidance, chosen", [(1, EACH), (3.0, "Square"), (1, NO_CLASS)])
def test_sampling_is_fastdiff_sample_with_previews(shown, model, guidance, chosen) -> None:
    frames = list(run.sample(shown, chosen, 5, "ddim", 6, guidance, 11))
    assert [frame.step for frame in frames[:-1]] == [1, 2, 3, 4, 5] and frames[0].steps == 6
    assert [frame.done for frame in frames] == [False] * 5 + [True]
    assert all(frame.pixels.shape == (5, 8, 8, 1) and frame.pixels.dtype == np.uint8 for frame in frames)
    classes = {EACH: [0, 1, 2, 0, 1], "Square": 1, NO_CLASS: None}[chosen]
    scale = None if guidance == 1 else guidance
    images = fastdiff.sample(
        model, 5, sampler="ddim", steps=6, classes=classes, seed=11, guidance_scale=scale, progress=False
    )
    assert np.array_equal(frames[-1].pixels, pixels(images))
    assert frames[-1].seconds >= frames[0].seconds > 0


def test_long_runs_are_shown_in_part(shown) -> None:
    frames = list(run.sample(shown, EACH, 1, "ddim", 90, 1, 0))
    assert [frame.step for frame in frames[:-1]] == list(range(4, 90, 4))


def test_stopping_ends_the_run(shown, model) -> None:
    calls = []
    watched = Shown("", model)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        frames = run.sample(watched, EACH, 1, "ddim", 100, 1, 0)
        assert not next(frames).done
        frames.stop()
        assert list(frames) == [] and frames.stopped
    finally:
        handle.remove()
    assert len(calls) < 100


def test_filling_in_keeps_what_is_known(shown, model) -> None:
    known = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[3:5, 2:7] = True
    *previews, last = run.inpaint(shown, known, mask, "circle", 2, "ancestral", 4, 3)
    assert len(previews) == 19  # 4 steps of 5 repeats, and the last one is the result
    for frame in [*previews, last]:
        assert np.array_equal(frame.pixels[:, ~mask], np.stack([known] * 2)[:, ~mask])
    image = torch.from_numpy(known).movedim(-1, 0) / 127.5 - 1
    filled = fastdiff.inpaint(
        model, image, torch.from_numpy(mask), 2, steps=4, classes=0, seed=3, progress=False
    )
    assert np.array_equal(last.pixels[:, mask], pixels(filled)[:, mask])


def test_interpolation_between_seeds_and_pictures(shown, model) -> None:
    *_, last = run.interpolate(shown, 3, 7, 4, "Square", 5)
    row = fastdiff.interpolate(model, 3, 7, 4, classes=1, steps=5, progress=False)
    assert np.array_equal(last.pixels, pixels(row))
    assert last.captions == ["0.00", "0.33", "0.67", "1.00"]
    ends = [shown.fitted(Image.new("RGB", (20, 16), colour)) for colour in ("white", "gray")]
    *_, last = run.interpolate(shown, ends[0], ends[1], 3, NO_CLASS, 5)
    images = [torch.tensor(end).movedim(-1, 0) / 127.5 - 1 for end in ends]
    row = fastdiff.interpolate(model, images[0], images[1], 3, steps=5, progress=False)
    assert np.array_equal(last.pixels, pixels(row))


def test_what_is_painted_over_is_hidden() -> None:
    """Where the brush covers at least a quarter of an enlarged pixel."""
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[8:16, 16:24] = 255  # one pixel
    layer[24:32, 16:18] = 255  # a quarter of one
    layer[40:48, 16:17] = 255  # an eighth of one
    mask = demo_page.hidden([Image.fromarray(layer), Image.new("RGBA", (64, 64))], 8)
    assert np.argwhere(mask).tolist() == [[1, 2], [3, 2]]


def test_commands_below_the_images_make_the_same(command, checkpoints, shown, tmp_path) -> None:
    frames, line = demo_page._sampled(shown, "long triangle", 3, "ddim", 4, 2.0, 5)
    *_, last = frames
    program, *words = demo_page.shlex.split(line)
    assert program == "fastdiff" and command(*words, "--out", tmp_path, "--no-progress").code == 0
    with np.load(tmp_path / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], last.pixels)
    frames, line = demo_page._between(shown, demo_page.SEEDS, 1, 2, None, None, "Square", 3, 4)
    *_, last = frames
    assert command(*demo_page.shlex.split(line)[1:], "--out", tmp_path, "--no-progress").code == 0
    with np.load(tmp_path / "interpolation.npz") as archive:
        assert np.array_equal(archive["arr_0"], last.pixels)


@pytest.mark.parametrize(
    "work, said",
    [
        (lambda s: run.inpaint(s, None, None, None, 1, "ancestral", 2, 0), "take a sample or upload one"),
        (
            lambda s: run.inpaint(
                s, np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), bool), None, 1, "ddim", 2, 0
            ),
            "paint with the brush",
        ),
        (lambda s: run.sample(s, EACH, 1, "ddim", 2, 1, None), "give a seed"),
        (lambda s: run.sample(s, NO_CLASS, 1, "ddim", 2, 3.0, 0), "guidance needs classes"),
        (lambda s: run.sample(s, EACH, 1, "ddim", 2, 1, -1), "seed"),
        (lambda s: run.interpolate(s, 0, 1, 1, None, 4), "n must be at least 2"),
        (
            lambda s: demo_page._between(s, demo_page.PICTURES, 0, 1, None, None, None, 2, 4)[0],
            "give two pictures",
        ),
    ],
)
def test_mistakes_are_said(shown, work: Callable, said: str) -> None:
    with pytest.raises(FastdiffError, match=said):
        list(work(shown))


def test_a_model_gone_wrong_says_so(checkpoints) -> None:
    (shown,) = load_models([str(checkpoints["nan"])], "cpu").values()
    with pytest.raises(FastdiffError, match="NaN or Inf at step 1"):
        list(run.sample(shown, EACH, 1, "ddim", 2, 1, 0))


def test_images_are_shown_once_at_their_own_size() -> None:
    values = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    shown = html.tiles(Frame(values, ["<b>", ""], 1, 1, 2.0, True))
    urls = [part.partition('"')[0] for part in shown.split('src="')[1:]]
    read = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert np.array_equal(np.stack([np.asarray(image) for image in read]), values)
    assert "<b>" not in shown and "&lt;b&gt;" in shown
    assert "2 images in 2.00 s: 1.0 images/s" in html.progress(Frame(values, ["", ""], 1, 1, 2.0, True))


def test_without_gradio_it_says_what_to_install(command, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    ended = command("demo", "--no-browser")
    assert ended.code == 2
    assert ended.err == "fastdiff: the demo needs Gradio: pip install 'fastdiff[demo]'\n"


def test_other_models_are_refused(command, checkpoints, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    ended = command("demo", "--no-browser", "--checkpoint", checkpoints["low-res"])
    assert ended.code == 2 and "enlarges small images" in ended.err


def test_errors_become_messages_of_the_page() -> None:
    class Error(Exception):
        def __init__(self, message: str, title: str, print_exception: bool) -> None:
            super().__init__(message)
            assert title and not print_exception

    def fails() -> None:
        raise FastdiffError("no <such> thing")

    with pytest.raises(Error, match="no &lt;such&gt; thing"):
        told(SimpleNamespace(Error=Error), fails)()
