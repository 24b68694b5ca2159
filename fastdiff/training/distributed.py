"""The processes of a run: their rows of a batch, and communication among them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdiff.backend import usable_device
from fastdiff.errors import FastdiffError

PATIENCE = timedelta(minutes=30)  # with a process that draws samples or writes a checkpoint for the others


@dataclass(frozen=True)
class Processes:
    """This process among ``count`` processes. Methods that communicate must be called by all of them."""

    rank: int = 0
    count: int = 1
    _control: Any = None  # a group for messages between CPUs, so that no GPU is waited for

    @property
    def first(self) -> bool:
        """True for the process that writes files and shows the progress bar."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process computes.

        Raises:
            FastdiffError: a batch that cannot be shared equally.
        """
        if batch_size % self.count:
            raise FastdiffError(
                f"batch_size, of all processes together, must be a multiple of their number, {self.count}; "
                f"got {batch_size}"
            )
        share = batch_size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def any(self, flag: bool) -> bool:
        """True if the flag is set on any process."""
        if self.count == 1:
            return flag
        word = torch.tensor(int(flag))
        dist.all_reduce(word, dist.ReduceOp.MAX, self._control)
        return bool(word)

    def agree(self, number: int) -> bool:
        """True if the value is the same on all processes."""
        if self.count == 1:
            return True
        extremes = torch.tensor([number, -number])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, self._control)
        return int(extremes[0]) == -int(extremes[1])

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, element by element."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.count

    def gather(self, rows: Tensor) -> Tensor:
        """[n,*] of each -> [count n,*] of all, in the order of a batch's rows."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait for all other processes."""
        self.agree(0)


@contextlib.contextmanager
def join(device: torch.device, *, group: bool = False) -> Iterator[Processes]:
    """The processes that torchrun started, as one process group; an existing group is used.

    Args:
        device: the device of this process; GPUs communicate by nccl, CPUs by gloo.
        group: make a group even for a single process, which FSDP needs.

    Raises:
        FastdiffError: another process ended early.
    """
    ours = not dist.is_initialized()
    if ours and not group and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if ours:
        _initialise("nccl" if device.type == "cuda" else "gloo", device)
    count = dist.get_world_size()
    control = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), count, control)
    except RuntimeError as error:
        if count > 1 and re.search(r"\bpeer\b|gloo|nccl", str(error), re.IGNORECASE):
            raise FastdiffError("another process of this run has ended; its own message says why") from error
        raise
    finally:
        if ours and count == 1:
            dist.destroy_process_group()
    if ours and count > 1:  # after an error the others may be gone, and this would wait for them
        dist.destroy_process_group()


def _initialise(backend: str, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)


def local_device(name: str) -> str:
    """The device of this process; for "cuda", the GPU with the number of the process on this machine.

    "auto" is "cuda" where there is a GPU, else "cpu".

    Raises:
        FastdiffError: one GPU for several processes.
    """
    name, local = usual_device(name), os.environ.get("LOCAL_RANK")
    if local is None or not name.startswith("cuda"):
        return name
    if name != "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise FastdiffError(
            f"{name} is one GPU for several processes; give --device cuda, which gives each its own"
        )
    return f"cuda:{local}" if name == "cuda" else name


def usual_device(name: str) -> str:
    """The device by its name, where "auto" is the GPU if there is one."""
    return str(usable_device(name)) if name == "auto" else name
