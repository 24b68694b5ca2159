"""Several processes train what one trains: the same numbers up to rounding, from and to the same checkpoints.

Dropout's units are the same where a batch is divided into the same parts, so all runs take two images at a time.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import programs
import pytest
import tiny
import torch
from safetensors.torch import load_file

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, parallel, train
from fastdiff.training.distributed import Processes, local_device
from fastdiff.training.state import checkpoints

pytestmark = pytest.mark.xdist_group("distributed")  # the fixture's runs are made once
STEPS = 6
# an odd number of samples: the last of a process is one too many
FID = {"fid_every": STEPS, "fid_samples": 13} if importlib.util.find_spec("torchmetrics") else {}
FEW = {"task": "consistency", "timesteps": "uniform", "target_ema": 0.9, "fid_every": 0}
CONTINUOUS = {**FEW, "target_ema": 0.0, "pairs": "continuous", "parametrisation": "edm"}


def options(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Everything random is on, and the times learn from the losses."""
    return {
        **{"data": str(folder / "toy.npz"), "preset": str(folder / "toy.json"), "out": str(folder / name)},
        **{
            "steps": STEPS,
            "batch_size": 8,
            "microbatch": 2,
            "warmup": 5,
            "flip": True,
            "threads": 1,
            "device": "cpu",
        },
        **{"timesteps": "loss-second-moment", "checkpoint_every": 3, "ema": [0.9, 0.99]},
        **{"log_every": 1, "progress": False, "val_data": str(folder / "toy.npz"), "val_every": STEPS},
        **(FID | {"fid_features": str(folder / "features.safetensors")} if FID else {}),
        **changes,
    }


def config(folder: Path, name: str, **changes: Any) -> TrainConfig:
    given = options(folder, name, **changes)
    paths = {name: Path(given[name]) for name in ("data", "val_data", "out")}
    return TrainConfig(**{**given, **paths, "ema": tuple(given["ema"])})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_files: Any) -> Path:
    """A folder with one run of each kind: by one process, and by two in one launch."""
    folder = tmp_path_factory.mktemp("runs")
    toy_files(folder)
    fastdiff.save(tiny.build(tiny.GRAY_CLASSIFIER), folder / "features.safetensors")
    train(config(folder, "one"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "LAYOUT", torch.contiguous_format)
        train(config(folder, "contiguous"))
    plans = [
        options(folder, "ddp"),
        options(folder, "fsdp", strategy="fsdp", recompute="selective", sample_every=STEPS),
        options(folder, "half", steps=3),
        options(folder, "half-again", steps=3),
        options(folder, "half-again", steps=3, strategy="fsdp"),  # loads and writes, no more
        options(folder, "two-go-on", steps=3),
        options(folder, "two-go-on"),
        options(folder, "moved", steps=3),
        options(folder, "moved", strategy="fsdp"),
        options(folder, "interrupted", _interrupt=[1, 2]),
        options(folder, "failed", _fail=[1, 2]),  # the last: it ends the processes
    ]
    # A model as its own teacher, with an averaged target, and without a gap: forward mode in each process.
    train(config(folder, "few", **FEW, steps=2))
    plans[:0] = [options(folder, "few-ddp", **FEW, steps=2)]
    train(config(folder, "continuous", **CONTINUOUS, steps=2))
    plans[:0] = [options(folder, "continuous-ddp", **CONTINUOUS, steps=2)]
    (folder / "runs.json").write_text(json.dumps(plans))
    done = programs.run(Path(__file__).with_name("world.py"), folder / "runs.json", processes=2)
    assert (folder / "failed" / "error-1.txt").exists(), done.stderr[-3000:]
    return folder


def log(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def curve(folder: Path, name: str) -> torch.Tensor:
    """[steps, 2]: loss and gradient norm."""
    lines = [line for line in log(folder, name) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return torch.tensor([[line["loss"], line["grad_norm"]] for line in lines])


def assert_same_run(folder: Path, name: str, other: str, rtol: float = 1e-4) -> None:
    """The loss curves, and all weights, moments and averages together: one by one they may differ by more than
    rounding, since Adam's first steps are as large where the gradient is next to nothing."""
    torch.testing.assert_close(curve(folder, name), curve(folder, other), rtol=rtol, atol=1e-6)
    for file in (
        f"checkpoints/step-{STEPS:08d}.safetensors",
        "model.safetensors",
        "model-ema-0.99.safetensors",
    ):
        found, expected = load_file(folder / name / file), load_file(folder / other / file)
        assert found.keys() == expected.keys()
        for kind in ("exp_avg", "exp_avg_sq", "ema_0", "ema_1", "weight"):
            if keys := [key for key in found if key.endswith(kind)]:
                a, b = (torch.cat([tensors[key].flatten() for key in keys]) for tensors in (found, expected))
                assert (a - b).norm() <= 10 * rtol * b.norm(), kind


def test_two_processes_train_what_one_does(runs: Path) -> None:
    assert_same_run(runs, "ddp", "one")


@pytest.mark.parametrize("name", ["few", "continuous"])
def test_two_processes_tune_what_one_does(runs: Path, name: str) -> None:
    both = [load_file(runs / found / "model.safetensors") for found in (f"{name}-ddp", name)]
    a, b = (torch.cat([tensor.flatten() for tensor in tensors.values()]) for tensors in both)
    assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.skipif(not FID, reason="torchmetrics is not installed")
@pytest.mark.parametrize(("name", "other"), [("ddp", "one"), ("fsdp", "contiguous")])
def test_processes_share_the_samples_of_an_fid(runs: Path, name: str, other: str) -> None:
    found, expected = (
        [line for line in log(runs, one) if "fid" in line or "val_loss" in line] for one in (name, other)
    )
    assert [line["step"] for line in found] == [STEPS, STEPS]
    assert found[1]["fid"] == pytest.approx(expected[1]["fid"], rel=0.05)
    assert found[0]["val_loss"] == pytest.approx(expected[0]["val_loss"], rel=1e-3)


def test_sharded_processes_train_what_one_does(runs: Path) -> None:
    """PyTorch shards contiguous parameters only, and convolutions round otherwise in another layout."""
    assert_same_run(runs, "fsdp", "contiguous")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_processes_share_the_validation(runs: Path, name: str) -> None:
    (found,), (expected,) = ([line for line in log(runs, n) if "val_loss" in line] for n in (name, "one"))
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-3)


def test_shards_make_pictures(runs: Path) -> None:
    assert (runs / "fsdp" / "samples" / f"step-{STEPS:08d}.png").exists()


def test_four_processes_by_the_command_line(runs: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = [f"--{name.replace('_', '-')}" for name in ("data", "preset")]
    command = [given[0], str(runs / "toy.npz"), given[1], str(runs / "toy.json"), "--out", str(runs / "four")]
    command += ["--steps", str(STEPS), "--batch-size", "8", "--microbatch", "2", "--warmup", "5", "--flip"]
    command += [
        "--timesteps",
        "loss-second-moment",
        "--ema",
        "0.9",
        "0.99",
        "--log-every",
        "1",
        "--no-progress",
    ]
    done = programs.run("-m", "fastdiff", "train", *command, "--threads", "1", processes=4)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained 6 steps") == 1
    assert_same_run(runs, "four", "one")


def test_two_processes_go_on_bit_for_bit(runs: Path) -> None:
    file = f"checkpoints/step-{STEPS:08d}.safetensors"
    whole, resumed = load_file(runs / "ddp" / file), load_file(runs / "two-go-on" / file)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_checkpoint_of_two_processes_goes_on_with_one(runs: Path) -> None:
    train(config(runs, "half"))
    assert_same_run(runs, "half", "one")


def test_shards_load_and_save_bit_for_bit(runs: Path) -> None:
    file = "checkpoints/step-00000003.safetensors"
    whole, through_shards = load_file(runs / "half" / file), load_file(runs / "half-again" / file)
    assert whole.keys() == through_shards.keys()
    assert all(torch.equal(whole[key], through_shards[key]) for key in whole)


def test_replicas_go_on_sharded(runs: Path) -> None:
    assert_same_run(runs, "moved", "one", rtol=1e-2)  # the layout changes on the way


def test_shards_go_on_with_one(runs: Path) -> None:
    shutil.copytree(runs / "fsdp", runs / "from-fsdp")
    checkpoints(runs / "from-fsdp")[-1].unlink()
    train(config(runs, "from-fsdp"))
    assert_same_run(runs, "from-fsdp", "one", rtol=1e-2)


def test_an_interrupt_on_one_process_stops_all_with_a_checkpoint(runs: Path) -> None:
    assert [path.stem for path in checkpoints(runs / "interrupted")] == ["step-00000003"]
    # The model of an interrupted run, as far as it was trained.
    assert fastdiff.load(runs / "interrupted" / "model.safetensors").config.image_size == 8


def test_an_error_on_one_process_ends_all(runs: Path) -> None:
    assert (runs / "failed" / "error-1.txt").read_text().startswith("ZeroDivisionError")
    told = (runs / "failed" / "error-0.txt").read_text()
    assert told.startswith("FastdiffError: another process of this run has ended")


def test_fsdp_alone(runs: Path) -> None:
    train(config(runs, "fsdp-alone", strategy="fsdp"))
    assert_same_run(runs, "fsdp-alone", "contiguous")
    assert not torch.distributed.is_initialized()


def test_a_batch_must_be_shared_equally() -> None:
    assert Processes(1, 4).rows(8) == slice(2, 4)
    with pytest.raises(FastdiffError, match="must be a multiple of their number, 4; got 6"):
        Processes(0, 4).rows(6)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert local_device("cuda") == "cuda:3" and local_device("cpu") == "cpu"
    with pytest.raises(FastdiffError, match="cuda:0 is one GPU for several processes"):
        local_device("cuda:0")
