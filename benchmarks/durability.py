"""Kills, damaged files and full disks, many of each: what a run of training or sampling makes of them.

    python benchmarks/durability.py [--kills N] [--damages N] [--fills N] [--only sample] [--seed S]

A small network is trained, and sampled, once undisturbed. Then the same is done again and again: killed (SIGKILL) at a
random moment and started anew until it ends; with a file of the half-finished run damaged; with a disk, or a size of
files, that suffices for a part only. Counted are the ends:

    same      the files of the undisturbed run, bit for bit
    refused   one sentence that names the file; once that file is out of the way, "same" too
    WRONG     another result, without a word
    BROKEN    any other exception, or a sentence after which the run does not come to its end

Exits with 1 if there is one of the last two.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from fastdiff.cli import main as command
from fastdiff.files import LOCK

STEPS, IMAGES, BATCH = 8, 8, 2
BROKEN_EXIT = 70
MODEL = {"image_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 32, "channel_mult": [1]}
MODEL |= {"num_res_blocks": 1, "attention_resolutions": [], "num_classes": 2}


@dataclass(frozen=True)
class Setting:
    """How many of each."""

    kills: int = 40
    """Number of killed runs of training, and as many of sampling."""
    damages: int = 100
    """Number of damaged files of each kind."""
    fills: int = 40
    """Number of full disks in training, and as many in sampling."""
    only: str = ""
    """Prefix of the names of the series to run, such as "sample". Default: all series."""
    seed: int = 0
    """Random seed of the moments of kills and of the places and kinds of damage."""


@dataclass(frozen=True)
class Job:
    """A command that can be taken up again, and the file that it makes in the end."""

    name: str
    options: tuple[str, ...]
    result: str

    def run(self, out: Path) -> int:
        return command([*self.options, "--out", str(out)])


class Undisturbed:
    """The two jobs, what they make, and their half-finished folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        jobs = _jobs(folder)
        self.train, self.sample = jobs
        self.results: dict[str, bytes] = {}
        self.seconds: dict[str, float] = {}
        for job in jobs:
            with contextlib.redirect_stdout(io.StringIO()):
                job.run(folder / job.name)  # here, so that no child imports what it needs anew
            started = time.perf_counter()
            ended = in_child(partial(job.run, folder / f"{job.name}-timed"))
            assert ended.code == 0, ended.said
            self.seconds[job.name] = time.perf_counter() - started
            self.results[job.name] = content(folder / job.name / job.result)

    def judge(self, job: Job, out: Path) -> str:
        """Verdict on a finished job's result: "same" as that of an undisturbed run, or "WRONG"."""
        file = out / job.result
        return "same" if file.exists() and content(file) == self.results[job.name] else "WRONG"


@dataclass(frozen=True)
class Ended:
    code: int
    said: str


def in_child(
    action: Callable[[], int],
    *,
    kill_when: Callable[[], bool] | None = None,
    most_bytes: int | None = None,
) -> Ended:
    """Run ``action`` in a process of its own, which may be killed, or whose files may be limited in size."""
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if not child:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            os._exit(_act(action, most_bytes))
        ended, status = os.waitpid(child, 0 if kill_when is None else os.WNOHANG)
        while not ended and kill_when is not None:
            time.sleep(0.001)
            if kill_when():
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status)
        told.seek(0)
        return Ended(code, told.read().decode(errors="replace"))


def _act(action: Callable[[], int], most_bytes: int | None) -> int:
    try:
        torch.set_num_threads(1)  # others do not survive a fork
        sys.stdout = sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (for the rest of the process)
        if most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an error, as of a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        return action()
    except BaseException:
        traceback.print_exc()
        return BROKEN_EXIT
    finally:
        sys.stderr.flush()  # os._exit does not


def kills(whole: Undisturbed, job: Job, count: int, rng: np.random.Generator) -> Counter[str]:
    """Killed at random moments; a run may be killed several times before it ends."""
    ends: Counter[str] = Counter()
    for number in range(count):
        out = whole.folder / f"killed-{job.name}-{number}"
        for _ in range(int(rng.integers(1, 4))):
            moment = time.perf_counter() + float(rng.uniform(0, whole.seconds[job.name]))
            in_child(partial(job.run, out), kill_when=partial(_is_past, moment))
        ended = in_child(partial(job.run, out))
        rest = [path for path in out.rglob(".*") if path.name != LOCK]
        ends[whole.judge(job, out) if ended.code == 0 and not rest else _broken(ended, out)] += 1
        shutil.rmtree(out)
    return ends


def _is_past(moment: float) -> bool:
    return time.perf_counter() > moment


def damages(whole: Undisturbed, job: Job, file: str, count: int, rng: np.random.Generator) -> Counter[str]:
    """Damage a file of a half-finished run; if an error reports it, remove the file, as the message asks."""
    ends: Counter[str] = Counter()
    half = halfway(whole, job)
    for number in range(count):
        out = whole.folder / f"damaged-{number}"
        shutil.copytree(half, out)
        path = sorted(out.glob(file))[-1]
        path.write_bytes(damaged(path.read_bytes(), rng))
        ended = in_child(partial(job.run, out))
        end = whole.judge(job, out) if ended.code == 0 else _taken_up(whole, job, ended, out, path)
        ends[end] += 1
        shutil.rmtree(out)
    shutil.rmtree(half)
    return ends


def halfway(whole: Undisturbed, job: Job) -> Path:
    """A folder as a kill leaves it, with two checkpoints or parts at least."""
    out = Path(tempfile.mkdtemp(dir=whole.folder))

    def several() -> bool:
        return len(list(out.glob("checkpoints/step-*"))) > 1 or len(list(out.glob("samples.parts/0*"))) > 1

    in_child(partial(job.run, out), kill_when=several)
    return out


def fills(whole: Undisturbed, job: Job, count: int, rng: np.random.Generator) -> Counter[str]:
    """A disk that is too small, where one may be mounted; else files that may not grow beyond a size."""
    ends: Counter[str] = Counter()
    most = 2 * sum(path.stat().st_size for path in (whole.folder / job.name).rglob("*") if path.is_file())
    for _ in range(count):
        size = int(2 ** rng.uniform(8, np.log2(most)))
        with small_disk(whole.folder, size) as (disk, is_disk):
            out = disk / "out"
            ended = in_child(partial(job.run, out), most_bytes=None if is_disk else size)
            roomy = whole.folder / "roomy"
            if out.exists():
                shutil.copytree(out, roomy)
        end = whole.judge(job, roomy) if ended.code == 0 else _taken_up(whole, job, ended, roomy)
        ends[end] += 1
        shutil.rmtree(roomy, ignore_errors=True)
    return ends


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[Path, bool]]:
    """A folder on a disk of ``size`` bytes, and whether it is one."""
    disk = Path(tempfile.mkdtemp(dir=folder))
    options = ["-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(disk)]
    mounted = (
        shutil.which("mount") and not subprocess.run(["mount", *options], capture_output=True).returncode
    )
    try:
        yield disk, bool(mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(disk)


def _taken_up(whole: Undisturbed, job: Job, ended: Ended, out: Path, damaged: Path | None = None) -> str:
    """Verdict on a run that ended with an error: does it succeed once there is room and a damaged file is deleted?"""
    lines = [line for line in ended.said.splitlines() if line.startswith("fastdiff: ")]
    if ended.code != 2 or "Traceback" in ended.said or not lines:
        return _broken(ended, out)
    if damaged is not None and damaged.name == "settings.json":
        shutil.rmtree(damaged.parent)
    elif damaged is not None:
        damaged.unlink()
    again = in_child(partial(job.run, out))
    if again.code != 0:
        return _broken(again, out)
    return "refused" if whole.judge(job, out) == "same" else "WRONG"


def _broken(ended: Ended, out: Path) -> str:
    print(f"\n{out}: exit code {ended.code}\n{ended.said[-2000:]}", file=sys.stderr)
    return "BROKEN"


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A flipped bit, zeros from somewhere on, zeros in between, or a cut."""
    start, kind = int(rng.integers(len(data))), int(rng.integers(4))
    if kind == 0:
        return data[:start] + bytes([data[start] ^ 1 << int(rng.integers(8))]) + data[start + 1 :]
    if kind == 1:
        return data[:start] + bytes(len(data) - start)
    if kind == 2:
        return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]
    return data[:start]


def content(file: Path) -> bytes:
    """What a result says; a zip also says when it was made."""
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return b"".join(archive[name].tobytes() for name in archive.files)
    return file.read_bytes()


def _jobs(folder: Path) -> tuple[Job, Job]:
    data, preset = folder / "toy.npz", folder / "toy.json"
    rng = np.random.default_rng(0)
    np.savez(data, images=rng.integers(0, 256, (16, 8, 8), dtype=np.uint8), labels=np.arange(16) % 2)
    preset.write_text(json.dumps({"model": MODEL, "diffusion": {"steps": 20, "schedule": "cosine"}}))
    training = f"train --data {data} --preset {preset} --steps {STEPS} --batch-size 4 --checkpoint-every 1"
    training += " --log-every 1 --sample-every 0 --ema 0.5 0.9 --threads 1 --device cpu --no-progress"
    sampling = (
        f"sample --checkpoint {folder}/train/model.safetensors --n {IMAGES} --batch-size {BATCH} --steps 4"
    )
    sampling += " --no-progress"
    train = Job("train", tuple(training.split()), "model.safetensors")
    return train, Job("sample", tuple(sampling.split()), "samples.npz")


def main(setting: Setting) -> int:
    rng = np.random.default_rng(setting.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        whole = Undisturbed(Path(name))
        train, sample = whole.train, whole.sample
        series: dict[str, Callable[[], Counter[str]]] = {
            "train, killed": partial(kills, whole, train, setting.kills, rng),
            "sample, killed": partial(kills, whole, sample, setting.kills, rng),
        }
        for job, file in (
            (train, "checkpoints/step-*.safetensors"),
            (train, "log.jsonl"),
            (sample, "samples.parts/0*.npz"),
            (sample, "samples.parts/settings.json"),
        ):
            what = f"{job.name}, {re.sub('[*]', 'N', file)} damaged"
            series[what] = partial(damages, whole, job, file, setting.damages, rng)
        series["train, disk full"] = partial(fills, whole, train, setting.fills, rng)
        series["sample, disk full"] = partial(fills, whole, sample, setting.fills, rng)
        print("| what | same | refused | WRONG | BROKEN |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
        total: Counter[str] = Counter()
        for what, count in series.items():
            if not what.startswith(setting.only):
                continue
            ends = count()
            total += ends
            row = " | ".join(str(ends[end]) for end in ("same", "refused", "WRONG", "BROKEN"))
            print(f"| {what} | {row} |", flush=True)
    return 1 if total["WRONG"] or total["BROKEN"] else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Setting, description=__doc__)))
