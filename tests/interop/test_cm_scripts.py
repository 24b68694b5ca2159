"""Scripts in the manner of consistency_models' three, with its imports, under ``fastdiff run``.

One after another, each on what the one before has written: train an EDM model, distil it, sample from both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from script_runner import flags, run_script

import fastdiff
from fastdiff import DiffusionConfig

pytestmark = pytest.mark.xdist_group("cm_scripts")  # they share what the first of them trains
MODEL = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "num_head_channels": 32,
    "attention_resolutions": 8,
    "resblock_updown": True,
}


def run(script: str, logdir: Path, **options: object) -> str:
    return run_script(script, *flags(**{**MODEL, **options}), logdir=logdir)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 255, (18, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"a_{i}.png")
    return folder


@pytest.fixture(scope="module")
def edm(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of EDM training."""
    folder = tmp_path_factory.mktemp("edm")
    run("cm_train", folder, data_dir=images, schedule_sampler="lognormal")
    return folder


DISTIL = {
    "training_mode": "consistency_distillation",
    "start_ema": 0.95,
    "loss_norm": "l2",
    "weight_schedule": "uniform",
}


@pytest.fixture(scope="module")
def distilled(edm: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cd")
    run("cm_train", folder, data_dir=images, teacher_model_path=edm / "ema_0.9_000002.pt", **DISTIL)
    return folder


def test_what_training_writes(edm: Path, distilled: Path) -> None:
    """The original's files, with 2-d projections; fastdiff loads them, too."""
    for folder, more in ((edm, set()), (distilled, {"target_model000002.pt"})):
        names = {path.name for path in folder.iterdir()}
        assert {"model000002.pt", "ema_0.9_000002.pt", "opt000002.pt", "progress.csv"} | more <= names
        for name in {"model000002.pt", "ema_0.9_000002.pt"} | more:
            state = torch.load(folder / name, weights_only=True)
            assert {v.dim() for k, v in state.items() if ".qkv.weight" in k} == {4}
    kind = DiffusionConfig(parametrisation="consistency")
    model: Any = fastdiff.load(
        distilled / "model000002.pt", image_size=16, num_head_channels=32, diffusion=kind
    )
    assert model.config.use_new_attention_order
    assert fastdiff.sample(model, 2, sampler="euler", steps=1, progress=False).shape == (2, 3, 16, 16)


def test_the_target_is_an_average(edm: Path, distilled: Path) -> None:
    """After two steps: 0.95^2 start + 0.95 0.05 first + 0.05 second, so it differs from the model, and little."""
    target, model = (
        torch.load(distilled / f"{n}000002.pt", weights_only=True) for n in ("target_model", "model")
    )
    apart = [(target[name] - model[name]).abs().max().item() for name in model]
    assert 0 < max(apart) < 1e-2


def test_consistency_training_resumes(images: Path, distilled: Path, tmp_path: Path) -> None:
    options = {**DISTIL, "training_mode": "consistency_training", "target_ema_mode": "adaptive"}
    options |= {"scale_mode": "progressive", "start_scales": 2, "end_scales": 10, "lr_anneal_steps": 3}
    printed = run(
        "cm_train", tmp_path, data_dir=images, resume_checkpoint=distilled / "model000002.pt", **options
    )
    assert "loading the target model" in printed and "loading EMA" in printed
    assert (tmp_path / "target_model000003.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "heun", "s_churn": 1.0},
        {"sampler": "progdist"},
        {"sampler": "onestep", "training_mode": "consistency_distillation"},
        {"sampler": "multistep", "ts": "0,1,3", "training_mode": "consistency_distillation"},
    ],
    ids=lambda options: options["sampler"],
)
def test_sampling(edm: Path, distilled: Path, options: dict[str, Any], tmp_path: Path) -> None:
    folder = distilled if "training_mode" in options else edm
    run("cm_sample", tmp_path, model_path=folder / "model000002.pt", **options)
    made = np.load(tmp_path / "samples.npz")["arr_0"]
    assert made.shape == (4, 16, 16, 3) and made.dtype == np.uint8
    assert made.std() > 0.1  # after two steps D is little more than c_skip x


def test_class_conditional_models_and_individual_noise(images: Path, tmp_path: Path) -> None:
    run("cm_train", tmp_path, data_dir=images, class_cond=True, schedule_sampler="lognormal")
    model = tmp_path / "model000002.pt"
    run("cm_sample", tmp_path, model_path=model, class_cond=True, generator="determ-indiv", num_samples=3)
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (3, 16, 16, 3)
