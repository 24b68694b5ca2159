"""Features of a classifier, and of Inception by torch-fidelity's network or a stand-in with its interface."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import inception
import pytest
import torch
from tiny_images import images, tiny_classifier
from torch import Tensor, nn

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.features import ClassifierFeatures, InceptionFeatures, load_features


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_pool_is_what_the_last_layer_sees(pool: Any) -> None:
    """Logits are linear in it."""
    model = tiny_classifier(pool=pool)
    found = ClassifierFeatures(model, "tiny")(images(9).images)
    last: Any = model.out[2].c_proj if pool == "attention" else model.out[3 if pool == "adaptive" else -1]
    assert found.pool.shape == (9, last.weight.shape[1])
    again = found.pool @ last.weight.flatten(1).T + last.bias
    torch.testing.assert_close(again, found.logits, rtol=1e-4, atol=1e-5)
    x = images(9).images.float() / 127.5 - 1
    expected = model(x, torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_spatial_features_are_seven_channels_at_every_position(features) -> None:
    pixels = images(4).images
    found = features(pixels).spatial
    assert found.shape == (4, 8 * 8 * 7)
    seen: list[Tensor] = []
    model = tiny_classifier()
    model.input_blocks[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    model(pixels.float() / 127.5 - 1, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(
        found.reshape(4, 8, 8, 7), seen[0][:, :7].permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5
    )


def test_no_hook_stays_behind(features) -> None:
    features(images(2).images)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in features._model.modules())


def test_a_denoiser_has_no_features() -> None:
    with pytest.raises(FastdiffError, match="fashion-mnist is no classifier"):
        load_features("fashion-mnist")


def test_a_checkpoint_is_named_after_its_file(tmp_path: Path) -> None:
    fastdiff.save(tiny_classifier(), tmp_path / "mine.safetensors")
    found = load_features(str(tmp_path / "mine.safetensors"))
    assert (found.name, found.shape) == ("mine", (1, 8, 8))
    assert "not comparable with published numbers" in found.note
    with pytest.raises(FastdiffError, match="have no use for Inception's weights"):
        load_features(str(tmp_path / "mine.safetensors"), inception_weights=tmp_path / "inception.pth")


# --- Inception ------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return inception.write_weights(tmp_path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    inception.install(monkeypatch)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception(stand_in, weights: Path, channels: int) -> None:
    """Given its weights it is the default; grey images are shown as RGB; 2048, 17 x 17 x 7 and 1008 features."""
    found = load_features(inception_weights=weights)
    assert isinstance(found, InceptionFeatures) and found.shape is None
    pixels = images(3).images.expand(-1, channels, -1, -1)
    pool, spatial, logits = found(pixels)
    assert (pool.shape, spatial.shape, logits.shape) == ((3, 2048), (3, 2023), (3, 1008))
    block: Any = found._network.get_submodule("Mixed_6d.branch1x1")
    map17 = block(nn.functional.interpolate(pixels.expand(-1, 3, -1, -1).float(), (17, 17)))
    torch.testing.assert_close(spatial.reshape(3, 17, 17, 7), map17[:, :7].permute(0, 2, 3, 1))
    assert not block._forward_hooks


def test_the_real_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch-fidelity's own, with random weights: the block has the name and the place that sFID needs."""
    module = pytest.importorskip(inception.MODULE, reason="torch-fidelity is not installed")
    network_class = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_class, "load_state_dict", lambda *_: None)
        network = network_class("random", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), tmp_path / "random.pth")
    seen: list[Tensor] = []
    network.Mixed_6d.register_forward_hook(lambda _, __, output: seen.append(output))
    pixels = images(2).images
    pool, logits = network(pixels.expand(-1, 3, -1, -1))
    found = InceptionFeatures(tmp_path / "random.pth")(pixels)
    assert torch.equal(found.pool, pool) and torch.equal(found.logits, logits)
    assert torch.equal(found.spatial, seen[0][:, :7].permute(0, 2, 3, 1).reshape(2, 2023))


def test_without_weights() -> None:
    with pytest.raises(FastdiffError, match="give --inception-weights pt_inception-2015-12-05-6726825d.pth"):
        load_features("inception")
    with pytest.raises(
        FastdiffError, match="no Inception weights at nowhere.pth; give the file published at https"
    ):
        load_features(inception_weights=Path("nowhere.pth"))


def test_other_weights(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(FastdiffError, match=r"no fc.weight of \[1008, 2048\]"):
        load_features(inception_weights=tmp_path / "torchvision.pth")


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "attacked"), "w")

    torch.save({"fc.weight": Attack()}, tmp_path / "inception.pth")
    with pytest.raises(FastdiffError, match="is refused"):
        load_features(inception_weights=tmp_path / "inception.pth")
    assert not (tmp_path / "attacked").exists()


def test_without_torch_fidelity(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, inception.MODULE, raising=False)
    with pytest.raises(FastdiffError, match=r"need torch-fidelity .*; pip install 'fastdiff\[inception\]'"):
        load_features(inception_weights=weights)
