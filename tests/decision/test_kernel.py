"""The op decision: kernel against reference, known answers of Philox, one result on every instruction set."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import backends
import numpy as np
import programs
import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import _library, first_passage
from fastdiff.ops.decision import PARAMETERS, decision_op
from fastdiff.ops.philox import sample_seeds

each_backend = backends.each("decision")
WAYS = [("exact", False), ("bridge", False), ("bridge", True), ("euler", False), ("euler", True)]
# Philox4x32-10 of counter 0 and key 0 (Salmon et al. 2011, known-answer tests of Random123)
WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter takes turns with programs, and computes the lanes of one at once."""
    if backends.INTERPRETED:
        monkeypatch.setattr("fastdiff.ops.decision.triton._LANES", 128)


def _trials(n: int = 2003) -> tuple[Tensor, dict[str, Tensor]]:
    """Parameters of every size. From NumPy, whose linspace is the same whatever torch is told about the processor."""
    rows = {"v": (-3, 3), "a": (0.5, 3), "z": (0.2, 1.2), "t0": (0.1, 0.3), "s": (1, 1)}
    rows |= {"sv": (0, 1), "sz": (0, 0.1), "st0": (0, 0.2)}
    return sample_seeds(n, 7), {
        k: torch.from_numpy(np.linspace(*rows[k], n, dtype=np.float32)) for k in PARAMETERS
    }


@backends.each_kernel("decision")
@pytest.mark.parametrize(("method", "every_step"), WAYS)
def test_kernel_agrees_with_the_reference(backend: Backend, method, every_step: bool) -> None:
    seeds, p = _trials(130 if backend is Backend.TRITON else 2003)
    dt, t_max = (0.02, 0.4) if backend is Backend.TRITON else (0.01, 1.5)
    results = []
    for one in (backend, Backend.REFERENCE):
        with use_backend(one):
            results.append(
                first_passage(seeds, **p, method=method, dt=dt, t_max=t_max, every_step=every_step)
            )
    one, two = results
    same = one.choice == two.choice
    assert float(same.float().mean()) > 0.998  # rounding may tip a decision, rarely
    torch.testing.assert_close(one.rt[same], two.rt[same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.position[same], two.position[same], rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@each_backend
def test_known_answers_of_philox_move_the_walker(backend: Backend, steps: int) -> None:
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


@pytest.mark.parametrize("capability", ["avx512", "avx2", "default"])
def test_every_instruction_set_gives_the_same_bits(capability: str) -> None:
    """And densities as near to the reference's as on the one of this process."""
    if _library.instruction_set() == capability:
        pytest.skip("this is the library under test anyway")
    if capability == "avx512" and _library.instruction_set() != "amx":
        pytest.skip("this processor has no AVX-512")
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}; import test_kernel as t; "
        "import test_first_passage_density as density; density.test_kernel_is_the_reference(20003);"
        "from fastdiff.ops import _library; print(_library.instruction_set(), t._digest())"
    )
    # AMX is left out by oneDNN's own switch.
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [capability, _digest()]


def test_threads_change_nothing() -> None:
    seeds, p = _trials(50_000)  # several ranges, which threads share
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(first_passage(seeds, **p, method="exact"))
    assert torch.equal(results[0].rt, results[1].rt) and torch.equal(results[0].choice, results[1].choice)


@backends.each("decision", Backend.TRITON)  # tests/gpu/test_triton_interpreted.py has it
def test_strides_and_any_subset_of_trials(backend: Backend) -> None:
    seeds, p = _trials(300)
    with use_backend(backend):
        whole = first_passage(seeds, **p, method="bridge", dt=0.01)
        part = first_passage(seeds[5::7], **{k: x[5::7] for k, x in p.items()}, method="bridge", dt=0.01)
    torch.testing.assert_close(part.rt, whole.rt[5::7], rtol=0, atol=0)


@each_backend
@pytest.mark.parametrize("method", ["exact", "bridge", "euler"])
def test_trials_that_cannot_begin_are_nan(backend: Backend, method) -> None:
    seeds, p = _trials(20)
    p["z"][3], p["z"][4], p["v"][5], p["a"][6], p["s"][7] = -1, 10, math.nan, math.nan, 0
    with use_backend(backend):
        end = first_passage(seeds, **p, method=method, dt=0.01, t_max=0.5)
    assert end.rt.isnan().nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert (end.choice[3:8] == -1).all()


def _alike(n: int, **values: float) -> dict[str, Tensor]:
    """One set of parameters for all trials."""
    return {k: torch.tensor(values.get(k, float(k == "s"))).expand(n) for k in PARAMETERS}


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("method", ["exact", "bridge", "euler"])
@each_backend
@pytest.mark.parametrize(
    "values",
    [{"v": 1e9, "a": 1.4, "z": 0.7, "s": 1e-4}, {"v": -1e9, "a": 1.4, "z": 1.0, "s": 1e-4}],
    ids=["up", "down"],
)
def test_a_drift_whose_steps_are_below_an_ulp_goes_straight(
    backend: Backend, method, every_step: bool, values
) -> None:
    with use_backend(backend):
        end = first_passage(torch.arange(9), **_alike(9, **values), method=method, every_step=every_step)
    up = values["v"] > 0
    assert (end.choice == int(up)).all()
    distance = values["a"] - values["z"] if up else values["z"]
    seconds = 0.001 if method == "euler" else distance / abs(values["v"])  # Euler sees it at the next step
    # A bridge's time is told from the end of its step: to an ulp of that.
    atol = 0.001 * 2**-23 if method == "bridge" else 0
    torch.testing.assert_close(end.rt, torch.full((9,), seconds), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("method", ["bridge", "euler"])
@each_backend
@pytest.mark.parametrize("dt", [1e-3, 1e-60])
def test_a_walk_that_cannot_move_is_out_of_time(backend, method, every_step: bool, dt: float) -> None:
    s = 1e-12 if dt == 1e-3 else 1.0
    with use_backend(backend):
        walks = _alike(9, a=1.4, z=0.75, s=s)
        end = first_passage(torch.arange(9), **walks, method=method, every_step=every_step, dt=dt)
    assert (end.choice == -1).all() and end.rt.isposinf().all()
    torch.testing.assert_close(end.position, torch.full((9,), 0.75))


@each_backend
@pytest.mark.parametrize("v", [900.0, -2500.0, 1e6])
def test_times_where_the_drift_takes_over(backend: Backend, v: float) -> None:
    """To a boundary a distance b away the time is inverse Gaussian: mean b / |v|, variance b / |v|^3."""
    n, b = {Backend.CPU: 20_000, Backend.TRITON: 500}.get(backend, 2000), 1.25 if v > 0 else 1.75
    with use_backend(backend):
        end = first_passage(torch.arange(n), **_alike(n, v=v, a=3.0, z=1.75))
    assert (end.choice == int(v > 0)).all()
    mean, sd = b / abs(v), math.sqrt(b / abs(v) ** 3)
    rt = end.rt.double()
    assert abs(float(rt.mean()) - mean) < 5 * sd / math.sqrt(n) + 1e-6 * mean
    assert abs(float(rt.std()) / sd - 1) < 5 / math.sqrt(2 * n)


def test_time_runs_out_on_the_way_to_a_certain_boundary() -> None:
    end = first_passage(torch.arange(9), **_alike(9, v=1e4, a=2.0, z=1.0), t_max=5e-5)
    assert (end.choice == -1).all() and end.rt.isposinf().all() and end.position.isnan().all()


def test_parts_of_a_large_call_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, p = _trials(5003)
    whole = first_passage(seeds, **p)
    monkeypatch.setattr("fastdiff.ops.decision._RANGE", 16)
    monkeypatch.setattr(decision_op, "_overload", None)  # nothing is run as one
    for part, one in zip(first_passage(seeds, **p), whole, strict=True):
        torch.testing.assert_close(part, one, rtol=0, atol=0, equal_nan=True)
    monkeypatch.undo()
    with use_backend("reference"):  # has no parts
        assert len(first_passage(seeds[:20], **{k: x[:20] for k, x in p.items()}).rt) == 20


def test_ctrl_c_is_heard() -> None:
    """In a second or so of what would take minutes."""
    code = (
        "import os, signal, threading, torch\n"
        "from fastdiff.ops import first_passage\n"
        "n = 1 << 30\n"
        "walks = [torch.tensor(x).expand(n) for x in (0.0, 2.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)]\n"
        "seeds = torch.zeros(1, dtype=torch.int64).expand(n)\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    first_passage(seeds, *walks)\n"
        "except KeyboardInterrupt:\n    print('heard')\n"
    )
    done = programs.run("-c", code, timeout=100)
    assert done.stdout.strip() == "heard", done.stderr[-3000:]


@pytest.mark.parametrize("state", ["bfloat16", "float64", "meta"])
def test_the_state_of_the_process_changes_nothing(state: str) -> None:
    seeds, p = _trials(100)
    before = first_passage(seeds, **p)
    if state == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, state))
    after = first_passage(seeds, **p)
    torch.set_default_device(None)
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_no_trials() -> None:
    seeds, p = _trials(0)
    assert [len(x) for x in first_passage(seeds, **p)] == [0, 0, 0]


def test_float64_runs_on_the_reference() -> None:
    seeds, p = _trials(50)
    assert first_passage(seeds, **{k: x.double() for k, x in p.items()}).rt.dtype == torch.float64


def test_opcheck() -> None:
    seeds, p = _trials(20)
    torch.library.opcheck(
        torch.ops.fastdiff.decision.default, (seeds, *p.values(), 1, 0.01, 100, 1.0, 2.0, None, 0.0)
    )


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
        ({"seeds": torch.zeros(20, 1, dtype=torch.int64)}, "seeds must be int64"),
        ({"seeds": torch.zeros(19, dtype=torch.int64)}, "v must be float32 or float64"),
        ({"s": torch.ones(20, device="meta")}, "s is on meta, the seeds are on cpu"),
        ({"st0": torch.ones(20, dtype=torch.int64)}, "st0 must be float32 or float64"),
        ({"dt": math.inf}, "dt must be a positive number"),
        ({"t_max": math.nan}, "t_max must be a positive number"),
    ],
)
def test_bad_arguments(change, message: str) -> None:
    seeds, p = _trials(20)
    with pytest.raises(FastdiffError, match=message):
        first_passage(**{"seeds": seeds, **p, **change})


NUMBERS = (0, 0.001, 1000, 1.0, 0.0)


@pytest.mark.parametrize(
    ("place", "number", "message"),
    [
        (0, 3, "method 3"),
        (0, -1, "method -1"),
        (1, 0.0, "dt must be"),
        (2, 0, "max_steps 0"),
        (2, 2**31, "max_steps 2147483648"),
        (3, math.nan, "t_max must be"),
        (4, -1.0, "reach -1.0"),
    ],
)
def test_bad_numbers_of_the_operator(place: int, number: float, message: str) -> None:
    seeds, p = _trials(20)
    numbers = (*NUMBERS[:place], number, *NUMBERS[place + 1 :], None, 0.0)
    assert decision_op.why_not(Backend.CPU, seeds, *p.values(), *numbers) is not None
    with pytest.raises(FastdiffError, match=message):
        decision_op(seeds, *p.values(), *numbers)


def test_a_tensor_beyond_its_storage_is_left_alone() -> None:
    seeds, p = _trials(20)
    p["v"] = torch.ones(20)
    p["v"].untyped_storage().resize_(16)
    assert "reaches beyond its storage" in str(decision_op.why_not(Backend.CPU, seeds, *p.values(), *NUMBERS))


def _table(steps: int, dt: float) -> Tensor:
    """Boundaries that close by three quarters, and a drift that rises and falls."""
    t = np.arange(steps + 1) * dt
    return torch.from_numpy(np.stack([1 - 0.75 * t / t[-1], 2 * np.sin(4 * t)], 1).astype(np.float32))


@backends.each_kernel("decision")
@pytest.mark.parametrize("leak", [0.0, 1.5, -0.7])
@pytest.mark.parametrize("method", ["bridge", "euler"])
def test_moving_walks_agree_with_the_reference(backend: Backend, method, leak: float) -> None:
    """Each trial with its own noise s, boundaries and drift, and some that cannot begin."""
    seeds, p = _trials(130 if backend is Backend.TRITON else 2003)
    p["s"] = 0.5 + torch.arange(len(seeds)) % 3 / 3.0
    p["z"][4] = 10
    dt, steps = (0.025, 24) if backend is Backend.TRITON else (0.01, 150)
    results = []
    for one in (backend, Backend.REFERENCE):
        with use_backend(one):
            results.append(
                first_passage(
                    seeds, **p, method=method, dt=dt, t_max=steps * dt, table=_table(steps, dt), leak=leak
                )
            )
    one, two = results
    same = one.choice == two.choice
    assert float(same.float().mean()) > 0.998
    assert 0 < int((one.choice == -1).sum()) < len(seeds) // 2
    torch.testing.assert_close(one.rt[same], two.rt[same], rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(one.position[same], two.position[same], rtol=1e-3, atol=1e-3, equal_nan=True)


@each_backend
def test_a_table_that_moves_nothing_changes_nothing(backend: Backend) -> None:
    seeds, p = _trials(100)
    table = torch.tensor([1.0, 0.0]).repeat(21, 1)
    with use_backend(backend):
        fixed = first_passage(seeds, **p, method="bridge", dt=0.02, t_max=0.4, every_step=True)
        moving = first_passage(seeds, **p, method="bridge", dt=0.02, t_max=0.4, table=table)
    assert int((fixed.choice != moving.choice).sum()) <= 1
    same = fixed.choice == moving.choice
    torch.testing.assert_close(fixed.rt[same], moving.rt[same], rtol=1e-4, atol=1e-4)


def test_tables_that_do_not_fit_are_refused() -> None:
    seeds, p = _trials(9)
    table = _table(100, 0.01)
    for bad, message in [
        ({"table": table, "t_max": 2.0}, "the table has 101 rows, 200 steps need one more"),
        ({"table": table.double(), "t_max": 1.0}, "must be contiguous float32"),
        ({"table": table, "t_max": 1.0, "method": "exact"}, "every step of the bridge and euler methods"),
        ({"leak": 1.0, "t_max": 1.0}, "leak needs a table"),
    ]:
        with pytest.raises(FastdiffError, match=message):
            first_passage(seeds, **p, **{"method": "bridge", "dt": 0.01, **bad})
