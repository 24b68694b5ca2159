"""Scripts in the manner of guided-diffusion's seven, unchanged imports and all, under ``fastdiff run``.

One after another, each on what the one before has written: train, sample, likelihood, classifier, guidance, upsampler.
Then in two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_runner import SCRIPTS, flags, run_script

from fastdiff.interop.guided_diffusion import image_datasets, logger, script_util
from fastdiff.interop.guided_diffusion.train_util import parse_resume_step_from_filename

pytestmark = pytest.mark.xdist_group("guided_scripts")  # they share what the first of them trains


SMALL = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 1,
    "attention_resolutions": 8,
    "learn_sigma": True,
}
MODEL = flags(image_size=64, **SMALL)
PROCESS = flags(diffusion_steps=20, noise_schedule="cosine")
SR = flags(large_size=64, small_size=16, **SMALL, diffusion_steps=30, timestep_respacing=2)
CLASSIFIER = flags(image_size=64, classifier_width=64, classifier_depth=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two kinds, of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 255, (70 + 9 * i, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{'cat' if i % 2 else 'dog'}_{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of image_train."""
    folder = tmp_path_factory.mktemp("trained")
    options = flags(batch_size=2, microbatch=1, lr_anneal_steps=2, save_interval=2, log_interval=1)
    options += flags(schedule_sampler="loss-second-moment", ema_rate="0.9,0.99")
    run_script("image_train", "--data_dir", str(images), *options, *MODEL, *PROCESS, logdir=folder)
    return folder


def test_image_train_writes_what_the_original_does(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    step = "000002"
    assert {f"model{step}.pt", f"ema_0.9_{step}.pt", f"ema_0.99_{step}.pt", f"opt{step}.pt"} <= names
    assert {"log.txt", "progress.csv"} <= names
    assert "loss_q" in (trained / "progress.csv").read_text()


def test_training_resumes(trained: Path, images: Path, tmp_path: Path) -> None:
    options = flags(batch_size=2, lr_anneal_steps=4, save_interval=5, log_interval=1, ema_rate="0.9,0.99")
    resume = ["--resume_checkpoint", str(trained / "model000002.pt")]
    printed = run_script(
        "image_train", "--data_dir", str(images), *options, *resume, *MODEL, *PROCESS, logdir=tmp_path
    )
    assert "loading EMA" in printed and "loading optimizer state" in printed
    assert (tmp_path / "model000004.pt").exists()


def test_image_sample(trained: Path, tmp_path: Path) -> None:
    model = ["--model_path", str(trained / "ema_0.9_000002.pt")]
    run_script("image_sample", *model, "--timestep_respacing", "3", *MODEL, *PROCESS, logdir=tmp_path)
    arrays = np.load(tmp_path / "samples_4x64x64x3.npz")
    assert arrays["arr_0"].shape == (4, 64, 64, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_0"].std() > 5


def test_image_sample_by_ddim_in_two_processes(trained: Path, tmp_path: Path) -> None:
    model = ["--model_path", str(trained / "model000002.pt"), "--use_ddim", "True"]
    run_script(
        "image_sample",
        *model,
        "--timestep_respacing",
        "ddim4",
        *MODEL,
        *PROCESS,
        logdir=tmp_path,
        processes=2,
    )
    assert np.load(tmp_path / "samples_4x64x64x3.npz")["arr_0"].shape == (4, 64, 64, 3)


@pytest.mark.proof
def test_image_train_in_two_processes(images: Path, tmp_path: Path) -> None:
    """By torchrun itself."""
    options = flags(batch_size=1, lr_anneal_steps=2, save_interval=5, log_interval=1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "fastdiff", "run", str(SCRIPTS / "image_train.py"), "--data_dir", str(images)]
    environment = {**os.environ, "OPENAI_LOGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *script, *options, *MODEL, *PROCESS], env=environment, check=True, timeout=300)
    assert (tmp_path / "model000002.pt").exists()
    assert "samples" in (tmp_path / "progress.csv").read_text()


def test_image_nll(trained: Path, images: Path, tmp_path: Path) -> None:
    model = ["--model_path", str(trained / "model000002.pt"), "--timestep_respacing", "4"]
    printed = run_script("image_nll", "--data_dir", str(images), *model, *MODEL, *PROCESS, logdir=tmp_path)
    assert "bpd=" in printed and np.load(tmp_path / "vb_terms.npz")["arr_0"].shape == (4,)


def test_classifier_train_and_sample(trained: Path, images: Path, tmp_path: Path) -> None:
    run_script(
        "classifier_train",
        "--data_dir",
        str(images),
        *CLASSIFIER,
        *flags(diffusion_steps=30),
        logdir=tmp_path,
    )
    assert "train_loss_q" in (tmp_path / "progress.csv").read_text()
    guided = ["--model_path", str(trained / "model000002.pt"), "--classifier_scale", "3.0"]
    guided += ["--classifier_path", str(tmp_path / "model000002.pt"), "--timestep_respacing", "2"]
    run_script("classifier_sample", *guided, *CLASSIFIER, *MODEL, *PROCESS, logdir=tmp_path)
    arrays = np.load(tmp_path / "samples_2x64x64x3.npz")
    assert arrays["arr_1"].shape == (2,)


def test_super_res_train_and_sample(images: Path, tmp_path: Path) -> None:
    options = flags(batch_size=1, lr_anneal_steps=2, save_interval=5)
    run_script("super_res_train", "--data_dir", str(images), *options, *SR, logdir=tmp_path)
    np.savez(tmp_path / "base.npz", np.zeros((2, 16, 16, 3), np.uint8))
    base = ["--base_samples", str(tmp_path / "base.npz"), "--model_path", str(tmp_path / "model000002.pt")]
    run_script("super_res_sample", *base, *SR, logdir=tmp_path)
    assert np.load(tmp_path / "samples_2x64x64x3.npz")["arr_0"].shape == (2, 64, 64, 3)


def test_state_dicts_are_the_published_ones() -> None:
    """The released 256x256 model's flags give the released keys and shapes (those of fastdiff's preset)."""
    from fastdiff.models import UNet
    from fastdiff.zoo import PRESETS

    options = script_util.model_and_diffusion_defaults() | {
        "image_size": 256, "num_channels": 256, "num_head_channels": 64, "attention_resolutions": "32,16,8",
        "class_cond": True, "learn_sigma": True, "resblock_updown": True, "use_fp16": True,
    }  # fmt: skip
    with torch.device("meta"):
        model, _ = script_util.create_model_and_diffusion(**options)
        preset = UNet(PRESETS["adm-256"].model)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes == {k: v.shape for k, v in preset.state_dict().items()}


def test_half_precision_casts_convolutions_alone() -> None:
    model = script_util.create_model(64, 32, 1, attention_resolutions="8", use_fp16=True)
    model.convert_to_fp16()
    assert model.dtype == torch.float16 and model.time_embed[0].weight.dtype == torch.float32
    model.convert_to_fp32()
    assert model.dtype == torch.float32


def test_cropping_and_labels(images: Path) -> None:
    batch, cond = next(
        image_datasets.load_data(
            data_dir=str(images), batch_size=6, image_size=32, class_cond=True, deterministic=True
        )
    )
    assert batch.shape == (6, 3, 32, 32) and float(batch.min()) >= -1 and float(batch.max()) <= 1
    assert cond["y"].tolist() == [0, 0, 0, 1, 1, 1]  # cat_1, cat_3, cat_5, dog_0, ...
    with pytest.raises(ValueError, match="unspecified"):
        image_datasets.load_data(data_dir="", batch_size=1, image_size=8)
    crop = image_datasets.random_crop_arr(Image.new("RGB", (100, 40)), 16)
    assert crop.shape == (16, 16, 3)


def test_logger_means_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger.configure(str(tmp_path), format_strs=["stdout", "csv", "json"])
    try:
        for value in (1.0, 3.0):
            logger.logkv_mean("loss", value)
        logger.logkv("step", 7)
        assert logger.dumpkvs() == {"loss": 2.0, "step": 7} and logger.getkvs() == {}
        logger.logkv("other", 1)
        logger.dumpkvs()
        assert "loss,step,other" in (tmp_path / "progress.csv").read_text()
        assert "| loss" in capsys.readouterr().out
    finally:
        logger.reset()


def test_names_and_arguments() -> None:
    assert parse_resume_step_from_filename("some/model012345.pt") == 12345
    assert parse_resume_step_from_filename("some/ema.pt") == 0
    with pytest.raises(ValueError, match="unsupported image size"):
        script_util.create_model(48, 32, 1, attention_resolutions="8")
    assert "channel_mult" not in script_util.sr_model_and_diffusion_defaults()
    assert script_util.str2bool("Yes") and not script_util.str2bool("0")
