"""The images of each step, decoded ahead of it in worker processes."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastdiff.data.images import ImageData
from fastdiff.errors import FastdiffError

MOST_WORKERS = 8  # of the default: each holds two batches
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class ImageLoader:
    """Returns the images of any step, while workers decode those of the following steps.

    The images of a step do not depend on the number of workers, nor on the first step requested.

    Args:
        data: the images.
        indices_of_step: function from a step to the indices of its images, [n] int64.
        workers: number of processes that decode; 0: decode in this process; None: :func:`usual_workers`.
        pin_memory: return page-locked memory, from which a GPU copies without waiting.
        transform: function from the images of a step and the step to images of the same shape; workers call it.
    """

    def __init__(
        self,
        data: ImageData,
        indices_of_step: Callable[[int], Tensor],
        workers: int | None = None,
        *,
        pin_memory: bool = False,
        transform: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self._fetch, self._indices_of_step = _Fetch(data, transform), indices_of_step
        self.workers = usual_workers(data) if workers is None else workers
        self._pin_memory = pin_memory
        self._running: Any = None  # the DataLoader's iterator
        self._next = -1  # the step that it gives next

    def images(self, step: int) -> Tensor:
        """The images of a step, [n,C,H,W] uint8. Any step but the next one restarts the workers.

        Raises:
            FastdiffError: an image that cannot be read, with its name; workers that were killed.
        """
        if not self.workers:
            images = self._fetch.now(step, self._indices_of_step(step))
            return images.pin_memory() if self._pin_memory else images
        if self._running is None or step != self._next:
            self.close()
            self._running = self._start(step)
        self._next = step + 1
        try:
            images = next(self._running)
        except RuntimeError as error:
            self.close()
            raise FastdiffError(
                f"the workers that decode images ended ({error}); if memory or /dev/shm is short, give fewer --workers"
            ) from None
        if isinstance(images, FastdiffError):
            self.close()
            raise images
        return images

    def close(self) -> None:
        """End the workers; a later call of :meth:`images` starts them again."""
        running, self._running = self._running, None
        if running is not None:
            running._shutdown_workers()  # its __del__ does so too, but a traceback may keep it alive

    def _start(self, step: int) -> Any:
        loader = DataLoader(
            self._fetch,
            batch_size=None,  # the sampler's items are batches already
            sampler=_Onward(self._indices_of_step, step),
            num_workers=self.workers,
            pin_memory=self._pin_memory,
            worker_init_fn=_block_signals,
            generator=torch.Generator(),  # else the global one is advanced
        )
        _STARTED.add(self)
        # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but only the trainer ends the run, after
        # its step. Workers inherit the mask, so there is no moment in which a signal could hit them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usual_workers(data: ImageData) -> int:
    """Default number of workers: 0 if images are in memory, else one per core but one, at most 8, shared by ranks."""
    if data.in_memory:
        return 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return max(1, min(MOST_WORKERS, cores // ranks - 1))


class _Onward(Sampler[Any]):
    """A sampler for the DataLoader: a step and all following steps, each with its indices."""

    def __init__(self, indices_of_step: Callable[[int], Tensor], step: int) -> None:
        self._indices_of_step, self._step = indices_of_step, step

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return ((step, self._indices_of_step(step)) for step in itertools.count(self._step))


class _Fetch(Dataset[Any]):
    """``fetch`` in a worker. An error is returned as a value; if raised, it would arrive as the text of a traceback."""

    def __init__(self, data: ImageData, transform: Callable[[Tensor, int], Tensor] | None) -> None:
        self._data, self._transform = data, transform

    def now(self, step: int, indices: Tensor) -> Tensor:
        images = self._data.fetch(indices, step)
        return images if self._transform is None else self._transform(images, step)

    def __getitem__(self, batch: tuple[int, Tensor]) -> Tensor | FastdiffError:
        try:
            return self.now(*batch)
        except FastdiffError as error:
            return error


def _block_signals(_: int) -> None:
    """Block the signals again, for start methods that do not pass on the signal mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


_STARTED: weakref.WeakSet[ImageLoader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the workers before multiprocessing's own exit handler, registered earlier, which only sends SIGTERM."""
    for loader in tuple(_STARTED):
        loader.close()
