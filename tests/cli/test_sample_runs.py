"""``fastdiff sample`` for long runs: several processes, going on after a stop; a classifier's guidance; upsampling."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli.batch_files import BatchFiles
from fastdiff.errors import FastdiffError
from fastdiff.files import locked

QUICK = ("--steps", 3, "--no-progress", "--batch-size", 2)


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
    write, out = BatchFiles.write, tmp_path / "stopped"

    def stop_at_the_second(self: BatchFiles, index: int, images: np.ndarray) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(self, index, images)

    monkeypatch.setattr(BatchFiles, "write", stop_at_the_second)
    ended = command("sample", *files, "--out", out)
    assert ended.code == 130 and "interrupted after 2 of 6 images; the same command goes on" in ended.err
    assert len(_arrays(out)[0]) == 2
    monkeypatch.setattr(BatchFiles, "write", write)
    ended = command("sample", *files, "--out", out)
    assert ended.code == 0 and "6 images, 4 of them now" in ended.out
    assert np.array_equal(_arrays(out)[0], _arrays(tmp_path / "whole")[0])


def test_another_run_is_not_mixed_in(tmp_path) -> None:
    BatchFiles(tmp_path, {"seed": 1, "steps": "3"}, 2, 1).write(0, np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(FastdiffError, match="with another seed; give its options"):
        BatchFiles(tmp_path, {"seed": 2, "steps": "3"}, 2, 1)


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


@pytest.mark.parametrize("kept", [False, True])
def test_an_upsampler_enlarges(command, checkpoints, tmp_path, kept: bool) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--upsampler", checkpoints["low-res"], "--n", 3)
    keep = ["--keep-means", "--upsampler-sampler", "ancestral"] if kept else []
    assert command("sample", *files, *QUICK, "--upsampler-steps", 2, *keep, "--out", tmp_path).code == 0
    images, labels = _arrays(tmp_path)
    base, upsampler = (fastdiff.load(checkpoints[kind]) for kind in ("tiny", "low-res"))
    expected = fastdiff.cascade(
        base, upsampler, 3, classes=labels.tolist(), sampler="dpmpp", steps=3, progress=False,
        upsampler_options={"steps": 2, "sampler": "ancestral" if kept else "dpmpp"}, keep_means=kept,
    )  # fmt: skip
    difference = images.astype(int) - fastdiff.to_uint8(expected).numpy().astype(int)
    assert np.abs(difference).max() <= 1  # in batches of 2 there, of 3 here


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classifier", "@tiny", "--classes", 1), "is no classifier"),
        (("--upsampler", "@tiny"), "enlarges nothing"),
        (("--keep-means",), "give --upsampler with it"),
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


def test_other_weights_under_the_same_name(command, checkpoints, tmp_path, monkeypatch) -> None:
    """A model that was trained on between two runs: its images do not go with those of before."""
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    shutil.copy(checkpoints["tiny"], file)
    _stopped(command, file, out, monkeypatch)
    model = fastdiff.load(file)
    model.out[2].weight.data.view(-1)[0] += 1e-6
    fastdiff.save(model, file)
    ended = command("sample", "--checkpoint", file, "--n", 6, *QUICK, "--out", out)
    assert ended.code == 2 and "the beginning of a run with another content of checkpoint; give" in ended.err
    shutil.copy(checkpoints["tiny"], file)
    assert command("sample", "--checkpoint", file, "--n", 6, *QUICK, "--out", out).code == 0


def _stopped(command, file, out, monkeypatch) -> None:
    """A run of 6 images that is stopped after 2."""
    write = BatchFiles.write

    def stop_at_the_second(self: BatchFiles, index: int, images: np.ndarray) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(self, index, images)

    monkeypatch.setattr(BatchFiles, "write", stop_at_the_second)
    assert command("sample", "--checkpoint", file, "--n", 6, *QUICK, "--out", out).code == 130
    monkeypatch.setattr(BatchFiles, "write", write)


DAMAGE = {
    "cut": lambda part, about: part.write_bytes(part.read_bytes()[:-40]),
    "flipped": lambda part, about: part.write_bytes(part.read_bytes()[:200] + b"!" + part.read_bytes()[201:]),
    "another": lambda part, about: np.savez(part, images=np.zeros((2, 3), np.uint8)),
    "settings": lambda part, about: about.write_text("[" * 100_000),
    "a list": lambda part, about: about.write_text("[]"),
    "no settings": lambda part, about: about.unlink(),
    "bytes": lambda part, about: about.write_bytes(b"\xff\xfe{"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_parts_are_told_in_a_sentence(command, checkpoints, tmp_path, monkeypatch, kind: str) -> None:
    out = tmp_path / "out"
    _stopped(command, checkpoints["tiny"], out, monkeypatch)
    part, about = out / "samples.parts" / "00000000.npz", out / "samples.parts" / "settings.json"
    DAMAGE[kind](part, about)
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 6, *QUICK, "--out", out)
    mend_one = about.exists() and about.read_bytes()[:1] == b"{"
    advice = "run the command again to make it anew" if mend_one else "to begin anew"
    assert ended.code == 2 and ended.err.count("\n") == 1 and advice in ended.err


def test_a_part_that_vanishes(command, checkpoints, tmp_path, monkeypatch) -> None:
    """It was waited for, for ever."""
    write = BatchFiles.write

    def lose_the_first(self: BatchFiles, index: int, images: np.ndarray) -> None:
        write(self, index, images)
        if index == 2:
            (self.folder / "00000000.npz").unlink()

    monkeypatch.setattr(BatchFiles, "write", lose_the_first)
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 6, *QUICK, "--out", tmp_path)
    assert ended.code == 2 and "00000000.npz was written and is gone; run the command again" in ended.err
    monkeypatch.setattr(BatchFiles, "write", write)
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 6, *QUICK, "--out", tmp_path)
    assert ended.code == 0 and "6 images, 2 of them now" in ended.out


def test_a_folder_that_vanishes(command, checkpoints, tmp_path, monkeypatch) -> None:
    write, out = BatchFiles.write, tmp_path / "out"

    def lose_the_folder(self: BatchFiles, index: int, images: np.ndarray) -> None:
        shutil.rmtree(out)
        write(self, index, images)

    monkeypatch.setattr(BatchFiles, "write", lose_the_folder)
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 6, *QUICK, "--out", out)
    assert ended.code == 2 and "cannot write" in ended.err and "No such file or directory" in ended.err


def test_a_folder_has_one_run(command, checkpoints, tmp_path) -> None:
    with locked(tmp_path):
        ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 2, *QUICK, "--out", tmp_path)
    assert ended.code == 2 and f"{tmp_path} is in use by another run" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_training_checkpoint_is_sampled(command, tmp_path) -> None:
    """Its first average; --weights takes the others."""
    out = tmp_path / "run"
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
    config = {"image_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 32, "channel_mult": [1]}
    config |= {"num_res_blocks": 1, "attention_resolutions": [], "num_classes": 2}
    (tmp_path / "x.json").write_text(
        json.dumps({"model": config, "diffusion": {"steps": 20, "schedule": "cosine"}})
    )
    options = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--ema",
        "0.5",
        "0.9",
        "--lr",
        "0.1",
        "--warmup",
        "0",
        "--no-progress",
    ]
    ended = command(
        "train", "--data", tmp_path / "x.npz", "--preset", tmp_path / "x.json", "--out", out, *options
    )
    assert ended.code == 0
    last = out / "checkpoints" / "step-00000002.safetensors"
    found = {}
    for name, file, weights in (
        ("model", out / "model.safetensors", ()),
        ("default", last, ()),
        ("0.9", last, ("--weights", "0.9")),
        ("ema-0.9", out / "model-ema-0.9.safetensors", ()),
        ("raw", last, ("--weights", "raw")),
    ):
        folder = tmp_path / name
        assert command("sample", "--checkpoint", file, *weights, "--n", 2, *QUICK, "--out", folder).code == 0
        found[name] = _arrays(folder)[0]
    assert np.array_equal(found["model"], found["default"]) and np.array_equal(found["0.9"], found["ema-0.9"])
    assert not np.array_equal(found["model"], found["raw"])
