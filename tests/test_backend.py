"""use_backend: a block's own thread or task, whatever the others do; a backward goes where its forward went."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from fastdiff.backend import Backend, forced, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import group_norm_silu
from fastdiff.ops._op import OPS

X = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))


def _ran_reference(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops that ran on their reference, as they do."""
    ran: list[str] = []
    for name in ("group_norm_silu", "group_norm_silu_backward"):
        op = OPS[name]
        run = op.reference
        monkeypatch.setattr(op, "reference", lambda *a, name=name, run=run: (ran.append(name), run(*a))[1])
    return ran


def test_blocks_of_two_threads_that_overlap() -> None:
    """Each sees its own, and in the end nothing is forced: neither in Python nor in the compiled library."""
    entered, left = threading.Event(), threading.Event()
    seen: dict[str, Backend | None] = {}

    def other() -> None:
        with use_backend("eager"):
            entered.set()
            left.wait()
            seen["other"] = forced()
        seen["other after"] = forced()

    thread = threading.Thread(target=other)
    with use_backend("reference"):
        thread.start()
        entered.wait()
        seen["here"] = forced()
    left.set()
    thread.join()
    assert seen == {"here": Backend.REFERENCE, "other": Backend.EAGER, "other after": None}
    assert forced() is None
    assert torch.ops.fastdiff._use_backend(0) == 0


def test_a_new_thread_is_forced_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _ran_reference(monkeypatch)
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: group_norm_silu(X, 4))
        thread.start()
        thread.join()
        assert not ran
        group_norm_silu(X, 4)
    assert ran == ["group_norm_silu"]


def test_tasks_that_take_turns_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _ran_reference(monkeypatch)
    counts: dict[str, int] = {}

    async def task(backend: str) -> None:
        with use_backend(backend):
            for _ in range(3):
                await asyncio.sleep(0)
                before = len(ran)
                group_norm_silu(X, 4)
                counts[backend] = counts.get(backend, 0) + len(ran) - before

    async def both() -> None:
        await asyncio.gather(task("reference"), task("cpu"))

    asyncio.run(both())
    assert counts == {"reference": 3, "cpu": 0}


def test_a_backward_goes_where_its_forward_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's backward runs on threads that never entered the block; here the block is merely over."""
    ran = _ran_reference(monkeypatch)
    x = X.clone().requires_grad_()
    with use_backend("reference"):
        y = group_norm_silu(x, 4)
    y.sum().backward()
    assert ran == ["group_norm_silu", "group_norm_silu_backward"]
    with use_backend("cpu"):
        y = group_norm_silu(x, 4)
    with use_backend("reference"):
        y.sum().backward()
    assert ran[2:] == ["group_norm_silu_backward"]


def test_a_compiled_function_sees_the_block() -> None:
    def which(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if forced() is Backend.REFERENCE else x

    compiled = torch.compile(which, fullgraph=True, backend="eager")
    zero = torch.zeros(())
    assert compiled(zero) == 0
    with use_backend("reference"):
        assert compiled(zero) == 1
    assert compiled(zero) == 0


def test_unknown_backend() -> None:
    with (
        pytest.raises(FastdiffError, match="unknown backend 'gpu'; known: eager, reference, cpu"),
        use_backend("gpu"),
    ):
        pass


def test_codes_are_the_librarys() -> None:
    """csrc/torch/kernels.h: enum BackendCode."""
    for backend in Backend:
        with use_backend(backend):
            assert torch.ops.fastdiff._use_backend(backend.code) == backend.code
