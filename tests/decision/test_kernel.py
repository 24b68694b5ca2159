"""The op decision: kernel against reference, known answers of Philox, one result on every instruction set."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import _native, first_passage
from fastdiff.ops.decision import PARAMETERS
from fastdiff.sampling.request import sample_seeds

WAYS = [("exact", False), ("bridge", False), ("bridge", True), ("euler", False), ("euler", True)]
# Philox4x32-10 of counter 0 and key 0 (Salmon et al. 2011, known-answer tests of Random123)
WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def _trials(n: int = 2003) -> tuple[Tensor, dict[str, Tensor]]:
    """Parameters of every size. From NumPy, whose linspace is the same whatever torch is told about the processor."""
    rows = {"v": (-3, 3), "a": (0.5, 3), "z": (0.2, 1.2), "t0": (0.1, 0.3), "s": (1, 1)}
    rows |= {"sv": (0, 1), "sz": (0, 0.1), "st0": (0, 0.2)}
    return sample_seeds(n, 7), {
        k: torch.from_numpy(np.linspace(*rows[k], n, dtype=np.float32)) for k in PARAMETERS
    }


@pytest.mark.parametrize(("method", "every_step"), WAYS)
def test_kernel_agrees_with_the_reference(method, every_step: bool) -> None:
    seeds, p = _trials()
    results = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            results.append(
                first_passage(seeds, **p, method=method, dt=0.01, t_max=1.5, every_step=every_step)
            )
    one, two = results
    same = one.choice == two.choice
    assert float(same.float().mean()) > 0.998  # rounding may tip a decision, rarely
    torch.testing.assert_close(one.rt[same], two.rt[same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.position[same], two.position[same], rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_known_answers_of_philox_move_the_walker(backend: str, steps: int) -> None:
    """Far from both boundaries the first four steps are four normals made of the four known words."""
    u = [word * 2.0**-32 + 2.0**-33 for word in WORDS]
    z = [
        part
        for i in (0, 2)
        for part in (
            math.sqrt(-2 * math.log(u[i])) * math.cos(2 * math.pi * u[i + 1]),
            math.sqrt(-2 * math.log(u[i])) * math.sin(2 * math.pi * u[i + 1]),
        )
    ]
    values = dict(zip(PARAMETERS, (0.0, 100.0, 50.0, 0.0, 1.0, 0.0, 0.0, 0.0), strict=True))
    with use_backend(backend):
        end = first_passage(
            torch.zeros(1, dtype=torch.int64), **{k: torch.tensor([x]) for k, x in values.items()},
            method="euler", dt=1.0, t_max=float(steps), every_step=True,
        )  # fmt: skip
    assert end.choice.item() == -1
    assert end.position.item() == pytest.approx(50 + sum(z[:steps]), abs=2e-5)


def _digest() -> str:
    seeds, p = _trials()
    digest = hashlib.sha256()
    for method, every_step in WAYS:
        end = first_passage(seeds, **p, method=method, dt=0.01, t_max=1.5, every_step=every_step)  # type: ignore[arg-type]
        for x in (end.rt, end.choice, end.position.nan_to_num(7)):
            digest.update(x.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_every_instruction_set_gives_the_same_bits(capability: str) -> None:
    if _native.instruction_set() == capability:
        pytest.skip("this is the library under test anyway")
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_kernel as t; "
        "from fastdiff.ops import _native; print(_native.instruction_set(), t._digest())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [capability, _digest()]


def test_threads_change_nothing() -> None:
    seeds, p = _trials(50_000)  # several ranges, which threads share
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(first_passage(seeds, **p, method="exact"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].rt, results[1].rt) and torch.equal(results[0].choice, results[1].choice)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_strides_and_any_subset_of_trials(backend: str) -> None:
    seeds, p = _trials(300)
    with use_backend(backend):
        whole = first_passage(seeds, **p, method="bridge", dt=0.01)
        part = first_passage(seeds[5::7], **{k: x[5::7] for k, x in p.items()}, method="bridge", dt=0.01)
    torch.testing.assert_close(part.rt, whole.rt[5::7], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("method", ["exact", "bridge", "euler"])
def test_trials_that_cannot_begin_are_nan(backend: str, method) -> None:
    seeds, p = _trials(20)
    p["z"][3], p["z"][4], p["v"][5], p["a"][6], p["s"][7] = -1, 10, math.nan, math.nan, 0
    with use_backend(backend):
        end = first_passage(seeds, **p, method=method, dt=0.01)
    assert end.rt.isnan().nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert (end.choice[3:8] == -1).all()


def test_no_trials() -> None:
    seeds, p = _trials(0)
    assert [len(x) for x in first_passage(seeds, **p)] == [0, 0, 0]


def test_float64_runs_on_the_reference() -> None:
    seeds, p = _trials(50)
    assert first_passage(seeds, **{k: x.double() for k, x in p.items()}).rt.dtype == torch.float64


def test_opcheck() -> None:
    seeds, p = _trials(20)
    torch.library.opcheck(torch.ops.fastdiff.decision.default, (seeds, *p.values(), 1, 0.01, 100, 1.0, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.ones(3)}, "v must be float32 or float64"),
        ({"a": torch.ones(20, dtype=torch.float64)}, "give one dtype"),
        ({"method": "milstein"}, "method must be one of exact, bridge, euler, got 'milstein'"),
        ({"dt": 0.0}, "dt must be a positive number"),
        ({"dt": math.nan}, "dt must be a positive number"),
        ({"t_max": -1.0}, "t_max must be a positive number"),
        ({"seeds": torch.ones(20)}, "seeds must be int64"),
    ],
)
def test_bad_arguments(change, message: str) -> None:
    seeds, p = _trials(20)
    with pytest.raises(FastdiffError, match=message):
        first_passage(**{"seeds": seeds, **p, **change})
