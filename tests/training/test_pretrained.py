"""--init: what is kept of a checkpoint, what is fitted to other classes, channels and sizes, and what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fastdiff
from fastdiff.cli import main
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.models import Classifier, UNet, UNetConfig, build_model
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer
from fastdiff.training.pretrained import LABELS, at_size, transfer

DIFFUSION = DiffusionConfig(steps=20, schedule="cosine", prediction="v")
CONFIG = replace(tiny.GRAY, num_classes=3, null_label=True)


def source(config: Any = CONFIG, names: tuple[str, ...] = ()) -> Any:
    model = tiny.build(config)
    model.diffusion, model.class_names = DIFFUSION, names
    return model


def fresh(config: Any, names: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(9)
    model = build_model(config)
    model.class_names = names
    return model


def run(*given: Any) -> int:
    pytest.importorskip("tyro", reason="tyro is not installed")
    options = [
        "--batch-size",
        4,
        "--steps",
        1,
        "--warmup",
        0,
        "--threads",
        1,
        "--log-every",
        1,
        "--device",
        "cpu",
    ]
    return main(["train", *map(str, given), *map(str, options), "--no-progress"])


def test_the_same_network_is_kept_whole() -> None:
    model = fresh(CONFIG)
    found = transfer(source(), model)
    assert str(found) == f"{len(model.state_dict())} tensors kept"
    assert all(torch.equal(model.state_dict()[name], value) for name, value in source().state_dict().items())


def test_classes_of_the_same_name_keep_their_embedding() -> None:
    old = source(names=("dog", "cat", "car"))
    model = fresh(replace(CONFIG, num_classes=4), ("car", "bird", "boat", "dog"))
    found = transfer(old, model)
    assert found.fitted == [LABELS] and not found.new and not found.unused
    before, mean = old.label_emb.weight, old.label_emb.weight[:3].mean(dim=0)
    expected = torch.stack([before[2], mean, mean, before[0], before[3]])
    torch.testing.assert_close(model.label_emb.weight, expected)


def test_the_embedding_of_no_class_takes_the_place_of_the_labels() -> None:
    """A model without classes predicts what the checkpoint does for "no class"."""
    old, model = source(), fresh(replace(CONFIG, num_classes=None, null_label=False)).eval()
    found = transfer(old, model)
    assert found.fitted == ["time_embed.2.bias"] and found.unused == [LABELS]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 11])
    torch.testing.assert_close(model(x, t), old(x, t, torch.full((2,), 3)))


def test_classes_for_a_model_that_had_none_change_nothing_at_first() -> None:
    old, model = source(replace(CONFIG, num_classes=None, null_label=False)), fresh(CONFIG).eval()
    found = transfer(old, model)
    assert found.new == [LABELS]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 11])
    torch.testing.assert_close(model(x, t, torch.tensor([0, 2])), old(x, t))


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_grey_images_look_the_same_in_colour(learn_sigma: bool) -> None:
    """Grey to RGB and back: the network of a grey image gives the same result in each channel."""
    grey = replace(tiny.GRAY, num_classes=None, learn_sigma=learn_sigma)
    colour = replace(grey, in_channels=3, out_channels=3)
    for old, new in ((grey, colour), (colour, grey)):
        before, model = source(old).eval(), fresh(new).eval()
        found = transfer(before, model)
        assert found.fitted == ["input_blocks.0.0.weight", "out.2.weight", "out.2.bias"] and not found.new
        x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 11])
        expected = before(x.expand(-1, old.in_channels, -1, -1), t)
        expected = expected.unflatten(1, (-1, old.out_channels)).mean(dim=2, keepdim=True)
        found = model(x.expand(-1, new.in_channels, -1, -1), t).unflatten(1, (-1, new.out_channels))
        torch.testing.assert_close(found, expected.expand_as(found))


def test_colours_are_seen_at_once() -> None:
    """What the first layer makes of colours of the same mean differs, so that the last one can learn from it."""
    grey = replace(tiny.GRAY, num_classes=None)
    model = fresh(replace(grey, in_channels=3, out_channels=3))
    transfer(source(grey), model)
    seen = model.input_blocks[0](torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 8, 8), torch.zeros(3, 128))
    assert (seen[0] - seen[1]).abs().mean() > 0.05 and (seen[1] - seen[2]).abs().mean() > 0.05
    weight = model.input_blocks[0][0].weight
    torch.testing.assert_close(weight.sum(dim=1), source(grey).input_blocks[0][0].weight[:, 0])


def test_an_upsamplers_image_and_small_image_stay_apart() -> None:
    grey = replace(tiny.GRAY, num_classes=None, low_res="bilinear")
    before, model = source(grey), fresh(replace(grey, in_channels=3, out_channels=3)).eval()
    transfer(before, model)
    x, small, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4), torch.tensor([3, 11])
    colour = model(x.expand(-1, 3, -1, -1), t, small.expand(-1, 3, -1, -1))
    torch.testing.assert_close(colour, before(x, t, small).expand(-1, 3, -1, -1))


def test_attention_stays_on_its_levels() -> None:
    config = at_size(tiny.UNET, 32)
    assert config.image_size == 32 and config.attention_resolutions == (16,)
    assert not transfer(source(tiny.UNET), fresh(config)).new


def test_a_classifiers_head_for_other_classes_is_new() -> None:
    found = transfer(source(tiny.CLASSIFIER), fresh(replace(at_size(tiny.CLASSIFIER, 16), num_outputs=7)))
    assert found.new == ["out.2.positional_embedding", "out.2.c_proj.weight", "out.2.c_proj.bias"]
    assert not found.fitted


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """RGB images of 8 x 8 pixels in two folders."""
    rng = np.random.default_rng(0)
    for i in range(8):
        file = tmp_path / "photos" / ("sneaker" if i % 2 else "stone") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def test_the_command_line_names_what_it_keeps(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled grey model of ten classes, fine-tuned on two classes of colour images, one of which it knows."""
    out = tmp_path / "run"
    options = ["--image-size", 16, "--channels", 3, "--num-classes", 2, "--lr", 1e-9, "--out", out]
    assert run("--data", colours, "--init", "fashion-mnist", *options) == 0
    kept = len(fastdiff.load("fashion-mnist").state_dict()) - 4
    names = "label_emb.weight, input_blocks.0.0.weight, out.2.weight, out.2.bias"
    printed = capsys.readouterr().out
    assert f"\nnote       {kept} tensors kept; fitted: {names}; 1739587 parameters are trained\n" in printed
    assert "\nmodel      fashion-mnist, 16x16 RGB, 1.74 M parameters\n" in printed

    old, model = fastdiff.load("fashion-mnist"), fastdiff.load(out / "model.safetensors")
    assert isinstance(old, UNet) and isinstance(model, UNet) and isinstance(model.config, UNetConfig)
    assert model.class_names == ("sneaker", "stone") and model.diffusion == old.diffusion
    assert (model.config.image_size, model.config.in_channels, model.config.num_classes) == (16, 3, 2)
    assert model.config.attention_resolutions == (4,)
    close = {"rtol": 1e-4, "atol": 1e-6}  # one step of a tiny learning rate
    torch.testing.assert_close(model.middle_block.state_dict(), old.middle_block.state_dict(), **close)
    sneaker = old.class_names.index("sneaker")
    torch.testing.assert_close(model.label_emb.weight[0], old.label_emb.weight[sneaker], **close)
    assert main(["sample", "--checkpoint", str(out / "model.safetensors"), "--n", "2", "--steps", "2"]
                + ["--no-progress", "--out", str(tmp_path / "samples")]) == 0  # fmt: skip
    assert np.load(tmp_path / "samples" / "samples.npz")["arr_0"].shape == (2, 16, 16, 3)


@pytest.mark.parametrize(("names", "kept"), [(("shoe", "bag", "coat"), True), (("shoe", "bag"), False)])
def test_classes_that_the_data_only_number_keep_their_names(
    toy: dict[str, Any], tmp_path: Path, names: tuple[str, ...], kept: bool
) -> None:
    """Labels 0 to 2 of an IDX file mean the model's classes if it has as many."""
    fastdiff.save(source(replace(CONFIG, num_classes=len(names)), names), tmp_path / "named.safetensors")
    labels = np.arange(12, dtype=np.uint8) % 3
    np.savez(tmp_path / "numbered.npz", np.zeros((12, 8, 8, 1), np.uint8), labels)
    options = {k: v for k, v in toy.items() if k != "preset"} | {"data": tmp_path / "numbered.npz"}
    options["init"] = str(tmp_path / "named.safetensors")
    trainer = Trainer(TrainConfig(**options))
    assert trainer.state.model.class_names == (names if kept else ())
    given = Trainer(TrainConfig(**{**options, "class_names": ("a", "b", "c")}))
    assert given.state.model.class_names == ("a", "b", "c")


def test_the_average_of_a_run_is_where_another_begins(toy: dict[str, Any], tmp_path: Path) -> None:
    train(TrainConfig(**toy, steps=4, ema=(0.9,)))
    checkpoint = toy["out"] / "checkpoints" / "step-00000004.safetensors"
    trainer = Trainer(TrainConfig(**{**toy, "out": tmp_path / "second"}, init=str(checkpoint), seed=5))
    expected = fastdiff.load(toy["out"] / "model.safetensors").state_dict()
    torch.testing.assert_close(trainer.state.model.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(trainer.state.averaged().state_dict(), expected, rtol=0, atol=0)


def test_a_fine_tuned_run_goes_on(
    toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TrainConfig(**toy, steps=2))
    options = {**toy, "init": str(toy["out"] / "model.safetensors"), "checkpoint_every": 2}
    whole = train(TrainConfig(**{**options, "out": tmp_path / "whole"}, steps=4)).model
    capsys.readouterr()
    for steps, times in ((2, 1), (4, 0)):
        parts = train(TrainConfig(**{**options, "out": tmp_path / "parts"}, steps=steps)).model
        assert capsys.readouterr().out.count("tensors kept") == times
    assert whole is not None and parts is not None
    expected, found = fastdiff.load(whole).state_dict(), fastdiff.load(parts).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_bare_weights_need_the_preset_that_they_belong_to(toy: dict[str, Any], tmp_path: Path) -> None:
    train(TrainConfig(**toy, steps=1))
    weights = fastdiff.load(toy["out"] / "model.safetensors").state_dict()
    torch.save(weights, tmp_path / "model.pt")
    options = {**toy, "out": tmp_path / "second", "init": str(tmp_path / "model.pt")}
    model = Trainer(TrainConfig(**options)).state.model  # by toy.json
    assert model.diffusion == DIFFUSION and all(
        torch.equal(v, weights[k]) for k, v in model.state_dict().items()
    )
    with pytest.raises(FastdiffError, match="the weights of no published model; give what they do not tell"):
        train(TrainConfig(**{**options, "preset": "fashion-mnist"}))
    nothing = source()
    nothing.diffusion = None
    fastdiff.save(nothing, tmp_path / "nothing.safetensors")
    options |= {"preset": "fashion-mnist", "init": str(tmp_path / "nothing.safetensors")}
    with pytest.raises(FastdiffError, match="does not say which diffusion .* give the --preset"):
        train(TrainConfig(**options))
    with pytest.raises(FastdiffError, match="no checkpoint at nowhere.pt"):
        train(TrainConfig(**{**options, "init": "nowhere.pt"}))


def test_a_loaded_model_says_that_it_is_frozen() -> None:
    from fastdiff.training import AdamWEMA

    for name, kind in (("fashion-mnist", UNet), ("fashion-mnist-classifier", Classifier)):
        model = fastdiff.load(name)
        assert isinstance(model, kind) and not model.training
        with pytest.warns(UserWarning, match="weights of this model are frozen.*trainable=True"):
            model.train()
        with pytest.raises(FastdiffError, match="load the model with trainable=True"):
            AdamWEMA(model.parameters()).step()


def test_trainable_models_learn(recwarn: pytest.WarningsRecorder) -> None:
    from fastdiff.training import AdamWEMA

    model = fastdiff.load("fashion-mnist", trainable=True)
    assert model.training and all(p.requires_grad for p in model.parameters())
    model.train()
    optimizer = AdamWEMA(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 1, 32, 32), torch.tensor([5, 9]), torch.tensor([1, 2])).square().mean().backward()
    optimizer.step()
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not recwarn.list
