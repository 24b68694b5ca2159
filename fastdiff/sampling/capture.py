"""Sampling steps recorded as CUDA graphs, which live as long as their sampler.

A replayed step costs one launch; a called step costs hundreds, each with its Python.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.backend import forced, is_eager
from fastdiff.sampling.convention import ScaledInput
from fastdiff.sampling.plan import Launches, Plan
from fastdiff.sampling.progress import OnStep
from fastdiff.sampling.step import StaticStep, Step

logger = logging.getLogger("fastdiff")

WARM_UP = 2  # calls before the recording, in which kernels are compiled and libraries choose their algorithms
DEVICE_TYPE = "cuda"
KEPT = 4  # shapes of batches; each holds the memory of a step

_logged: set[str] = set()


def log_once(reason: str) -> None:
    """Log, once for each reason in a process, that steps are not captured."""
    if reason not in _logged:
        _logged.add(reason)
        logger.warning("sampling: not captured as a CUDA graph: %s", reason)


def why_not_captured(model: Any) -> str | None:
    """Why a step with this model must not be replayed, or None.

    A replay repeats the work on the GPU and none of the Python around it. The Python of a module is assumed to have
    no effect of its own; hooks and plain functions are assumed to have one.
    """
    if not isinstance(model, nn.Module):
        return f"the model is a {type(model).__name__}, whose Python runs at every step"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"the model's {name or 'forward'} has a hook, which runs at every step"
    return None


class CapturedLoop:
    """The steps of one plan on static buffers, one CUDA graph for each kind of row.

    Raises:
        RuntimeError: CUDA refused to record what the model does (a wait for the device, for one).
    """

    def __init__(self, step: Step, plan: Plan, x: Tensor) -> None:
        self._plan = plan  # kept: loops are found by its address
        self._static = StaticStep(step, plan, x)
        self._graphs: dict[Launches, torch.cuda.CUDAGraph] = {}
        with _side_stream(x) as pool:
            for row in dict.fromkeys(plan.launches):
                self._graphs[row] = self._captured(row, pool)

    def _captured(self, row: Launches, pool: Any) -> torch.cuda.CUDAGraph:
        def step() -> None:
            self._static.index.zero_()  # a plan may have fewer rows than there are calls
            self._static(row)

        for _ in range(WARM_UP):
            step()
        self._static.index.zero_()
        return _record(lambda: self._static(row), pool)

    def run(self, step: Step, x: Tensor, on_step: OnStep | None) -> tuple[Tensor, Tensor]:
        """Run all steps: the final state and the flags [S, N], both overwritten by the next run."""
        with torch.cuda.device_of(x):
            self._static.load(step, x)
            for row in self._plan.launches:
                self._graphs[row].replay()
                if on_step:
                    on_step(self._static.x, None)
        return self._static.x, self._static.flags

    def release(self) -> None:
        """Free the graphs, and with them the memory that a step needs."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()


@contextlib.contextmanager
def _side_stream(x: Tensor) -> Iterator[Any]:
    """A stream of its own on x's device, in order with the current one, for the default stream cannot be recorded;
    and the memory pool that its recordings share.
    """
    with torch.cuda.device_of(x):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                yield torch.cuda.graph_pool_handle()
        finally:
            current.wait_stream(stream)


def _record(call: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
    """Record what ``call`` launches on the current stream, as a graph with its memory in ``pool``."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating and copying, as data loaders do.
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        call()
    except BaseException:
        try:
            graph.capture_end()
        except RuntimeError:  # "a previous error during capture", which says less than the error raised below
            _give_back(pool)
        raise
    graph.capture_end()
    return graph


def _give_back(pool: Any) -> None:
    """Undo what a recording that could not be ended has left in the allocator."""
    device = torch.cuda.current_device()
    for undo in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        with contextlib.suppress(RuntimeError, AttributeError):
            getattr(torch._C, undo)(device, pool)


class Captures:
    """The captured loops of one sampler, by everything that a recording depends on; the oldest is dropped first."""

    def __init__(self) -> None:
        self._loops: dict[Hashable, CapturedLoop | None] = {}  # None: CUDA refused the recording

    def __len__(self) -> int:
        return sum(loop is not None for loop in self._loops.values())

    def find(self, step: Step, plan: Plan, model: Any, x: Tensor) -> CapturedLoop | None:
        """The captured loop for batches like x, which is recorded if necessary; None if that is impossible.

        The reason is logged once, except on the CPU and under ``use_backend("eager")``, where nothing is replayed.
        """
        if x.device.type != DEVICE_TYPE or not len(x) or is_eager():
            return None
        reason = why_not_captured(model)
        if reason is not None:
            log_once(reason)
            return None
        key = _key(step, plan, model, x)
        if key not in self._loops:
            while len(self._loops) >= KEPT:
                self._free(next(iter(self._loops)))
            try:
                self._loops[key] = CapturedLoop(step, plan, x)
            except RuntimeError as error:  # also out of memory: a step that is called may still fit
                self._loops[key] = None
                log_once(str(error).partition("\n")[0])
        return self._loops[key]

    def release(self) -> None:
        """Free everything."""
        for key in list(self._loops):
            self._free(key)

    def _free(self, key: Hashable) -> None:
        loop = self._loops.pop(key)
        if loop is not None:
            loop.release()


def _key(step: Step, plan: Plan, model: nn.Module, x: Tensor) -> Hashable:
    """A key that is equal only where a recording may be replayed: same shapes, code and parameter addresses."""
    inputs = tuple((name, tuple(t.shape), t.dtype) for name, t in step.tensors.items())
    weights = tuple((t.data_ptr(), t.dtype) for t in (*model.parameters(), *model.buffers()))
    state = (tuple(x.shape), x.stride(), x.dtype, x.device)
    # The module itself may be a new view at each call, of the same parameters.
    seen = tuple((type(m), id(m._parameters)) for m in model.modules() if not isinstance(m, ScaledInput))
    return (id(plan), state, inputs, step.clip, forced(), seen, hash(weights))
