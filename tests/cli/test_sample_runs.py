"""``fastdiff sample`` for long runs: several processes, going on after a stop; a classifier's guidance; upsampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli.parts import Parts
from fastdiff.errors import FastdiffError

QUICK = ("--steps", 3, "--no-compare", "--no-progress", "--batch-size", 2)


def _arrays(folder) -> tuple[np.ndarray, ...]:
    with np.load(folder / "samples.npz") as archive:
        return tuple(archive[name] for name in archive.files)


def test_processes_share_the_work(command, checkpoints, tmp_path, monkeypatch) -> None:
    """Rank 1 of 2, then rank 0: the very images of one process."""
    files = ("--checkpoint", checkpoints["tiny"], "--n", 7, *QUICK)
    assert command("sample", *files, "--out", tmp_path / "one").code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert command("sample", *files, "--out", tmp_path / "two").code == 0
        assert (tmp_path / "two" / "samples.npz").exists() == (rank == "0")
    for one, two in zip(_arrays(tmp_path / "one"), _arrays(tmp_path / "two"), strict=True):
        assert np.array_equal(one, two)
    assert not (tmp_path / "two" / "samples.parts").exists()


def test_a_stopped_run_goes_on(command, checkpoints, tmp_path, monkeypatch) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--n", 6, *QUICK)
    assert command("sample", *files, "--out", tmp_path / "whole").code == 0
    write, out = Parts.write, tmp_path / "stopped"

    def stop_at_the_second(self: Parts, index: int, images: np.ndarray) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(self, index, images)

    monkeypatch.setattr(Parts, "write", stop_at_the_second)
    ended = command("sample", *files, "--out", out)
    assert ended.code == 130 and "interrupted after 2 of 6 images; the same command goes on" in ended.err
    assert len(_arrays(out)[0]) == 2
    monkeypatch.setattr(Parts, "write", write)
    ended = command("sample", *files, "--out", out)
    assert ended.code == 0 and "6 images, 4 of them now" in ended.out
    assert np.array_equal(_arrays(out)[0], _arrays(tmp_path / "whole")[0])


def test_another_run_is_not_mixed_in(tmp_path) -> None:
    Parts(tmp_path, {"seed": 1, "steps": "3"}, 2).write(0, np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(FastdiffError, match="with another seed; give its options"):
        Parts(tmp_path, {"seed": 2, "steps": "3"}, 2)


def test_pngs(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--n", 3, "--png")
    assert command("sample", *files, *QUICK).code == 0
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(
        np.array(Image.open(tmp_path / "images" / names[2])), _arrays(tmp_path)[0][2, ..., 0]
    )


@pytest.mark.parametrize("kind", ["tiny", "unconditional"])
@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp"])
def test_a_classifier_guides(command, checkpoints, tmp_path, kind: str, sampler: str) -> None:
    """Towards the class: it is likelier in the guided images, by the classifier itself."""
    files = ("--checkpoint", checkpoints[kind], "--classes", 1, "--sampler", sampler, "--n", 4)
    scale_option = "--scale" if kind == "tiny" else "--classifier-scale"  # the one is short for the other
    guided = ("--classifier", checkpoints["classifier"], scale_option)
    means = []
    for scale in (0.0, 40.0):
        out = tmp_path / str(scale)
        ended = command("sample", *files, *QUICK[2:], "--steps", 12, *guided, scale, "--out", out)
        assert ended.code == 0, ended.err
        images = torch.from_numpy(_arrays(out)[0]).movedim(-1, 1).float() / 127.5 - 1
        classifier = fastdiff.load(checkpoints["classifier"])
        with torch.no_grad():
            log_p = torch.log_softmax(classifier(images, torch.zeros(4, dtype=torch.int64)), -1)[:, 1]
        means.append(float(log_p.mean()))
        assert _arrays(out)[1].tolist() == [1, 1, 1, 1]
    assert means[1] > means[0]


def test_without_classes_a_classifier_guides_to_all_of_its_own(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["unconditional"], "--classifier", checkpoints["classifier"])
    assert command("sample", *files, "--n", 3, *QUICK, "--out", tmp_path).code == 0
    assert _arrays(tmp_path)[1].tolist() == [0, 1, 2]


def test_an_upsampler_enlarges(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--upsampler", checkpoints["low-res"], "--n", 3)
    assert command("sample", *files, *QUICK, "--upsampler-steps", 2, "--out", tmp_path).code == 0
    images, labels = _arrays(tmp_path)
    base, upsampler = (fastdiff.load(checkpoints[kind]) for kind in ("tiny", "low-res"))
    expected = fastdiff.cascade(
        base, upsampler, 3, classes=labels.tolist(), sampler="dpmpp", steps=3, progress=False,
        upsampler_options={"steps": 2},
    )  # fmt: skip
    difference = images.astype(int) - fastdiff.to_uint8(expected).numpy().astype(int)
    assert np.abs(difference).max() <= 1  # in batches of 2 there, of 3 here


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classifier", "@tiny", "--classes", 1), "is no classifier"),
        (("--upsampler", "@tiny"), "enlarges nothing"),
        (
            ("--checkpoint", "@unconditional", "--classifier", "@classifier", "--classes", 5000),
            "unknown class '5000'",
        ),
        (
            ("--checkpoint", "@unconditional", "--classifier", "@classifier", "--classes", "cat"),
            "unknown class 'cat'",
        ),
    ],
)
def test_mistakes(command, checkpoints, tmp_path, options, said: str) -> None:
    options = [checkpoints[o[1:]] if isinstance(o, str) and o.startswith("@") else o for o in options]
    files = () if "--checkpoint" in options else ("--checkpoint", checkpoints["tiny"])
    ended = command("sample", *files, *options, *QUICK, "--out", tmp_path / "out")
    assert ended.code == 2 and said in ended.err and not (tmp_path / "out" / "samples.npz").exists()


def test_upsample_needs_an_upsampler(checkpoints) -> None:
    with pytest.raises(FastdiffError, match="super-resolution"):
        fastdiff.upsample(fastdiff.load(checkpoints["tiny"]), torch.zeros(1, 1, 4, 4))
