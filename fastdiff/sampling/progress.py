"""What a caller is told of a run while it lasts: a bar, or a call of a function after each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """A sampling run after one of its steps, as the function given as ``progress`` gets it.

        def show(now: fastdiff.Progress) -> None:
            print(f"{now.step} of {now.steps}")

        images = fastdiff.sample(model, 16, progress=show)

    The tensors are the loop's own, in inference mode: clone what is to be kept. An exception that the function raises
    ends the run and reaches its caller.

    Attributes:
        step: number of model calls that are done, from 1, of all batches.
        steps: number of those there will be; of "dpm_adaptive", which chooses its steps, only a guess.
        x: state of the batch after the step, [N,C,*]; of "dpm_adaptive", which goes sample by sample, one row.
        x0: estimate of the clean samples that the step was made with, like x, in [-1, 1] if ``clip``.
    """

    step: int
    steps: int
    x: Tensor
    x0: Tensor


Follow = bool | Callable[[Progress], object]
OnStep = Callable[[Tensor, Tensor | None], object]  # of x and x0, which a replayed step does not tell


@contextlib.contextmanager
def following(progress: Follow, steps: int) -> Iterator[OnStep]:
    """What to call after each of a run's steps: the caller's function, or a bar's update."""
    if callable(progress):
        now = 0

        def told(x: Tensor, x0: Tensor | None) -> None:
            nonlocal now
            assert x0 is not None
            now += 1
            progress(Progress(now, max(now, steps), x, x0))

        yield told
    else:
        with tqdm(total=steps, disable=not progress, unit="step") as bar:
            yield lambda x, x0: bar.update()
