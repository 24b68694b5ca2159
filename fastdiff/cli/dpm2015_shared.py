"""What the experiments of ``fastdiff dpm2015`` share: options of training, progress bars, and what they print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from fastdiff.cli.options import Out, Progress
from fastdiff.cli.shared import check_folder
from fastdiff.files import atomic_path

if TYPE_CHECKING:
    import torch

    from fastdiff.dpm2015 import Run

Batch = Annotated[int, arg(aliases=["-b"])]
Steps = Annotated[int, arg(aliases=["-s"])]
# Options that may change when a run is continued. The others decide the network that is trained.
FREE = frozenset({"resume", "checkpoint_every", "val_every", "out", "progress"})


@dataclass(frozen=True)
class Experiment:
    """Options of training that all experiments have."""

    iterations: int = 8000
    """Number of training iterations."""
    batch_size: Batch = 12
    """Number of samples in an iteration, spread over the diffusion steps."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    steps: Steps = 1000
    """Number T of diffusion steps."""
    seed: int = 0
    """Random seed."""
    resume: Literal["auto", "never"] = "auto"
    """"auto" continues the run in OUT, with the results of an unbroken one; "never" is an error if there is one."""
    checkpoint_every: int = 500
    """Number of iterations between checkpoints."""
    val_every: int = 500
    """Number of iterations between estimates of the bound K on held-out data."""
    out: Out = Path("out")
    progress: Progress = True

    name: ClassVar[str]
    free: ClassVar[frozenset[str]] = FREE

    @property
    def file(self) -> str:
        """The beginning of the names of the files in OUT."""
        return self.name.replace("-", "_")

    def folder(self, **more: Any) -> Run:
        """The run in OUT, with the options (and ``more``) in which it must agree with what is there."""
        from fastdiff.dpm2015 import Run

        options = {
            f"--{f.name.replace('_', '-')}": getattr(self, f.name)
            for f in fields(self)
            if f.name not in self.free
        }
        return Run(
            self.out, {"experiment": self.name, **options, **more}, self.resume, self.checkpoint_every, self.val_every
        )  # fmt: skip

    def report(self, trained: Any, run: Run | None, start: float, best: float | None = None) -> None:
        """Print K, K - L_null and their parts beside the paper's Table 1; draw K over the iterations."""
        from fastdiff.bench.machine import device_name
        from fastdiff.dpm2015 import plots
        from fastdiff.dpm2015.experiments import PAPER

        found, per = trained.bound, trained.units
        paper = [f"{x:8.3f}" for x in PAPER[self.name]] if self.name in PAPER else ["       -"] * 2
        print(f"bits a {trained.unit:<8}     here             paper")
        print(f"K           {found.k / per:9.4f} +- {found.error / per:.4f}  {paper[0]}")
        print(f"K - L_null  {found.gain / per:9.4f}            {paper[1]}")
        print(
            f"K = -{float(found.step_kl.sum()) / per:.4f} (sum of KL) + {found.last_entropy / per:.4f} (H_T)"
            f" - {found.first_entropy / per:.4f} (H_1) - {found.prior_entropy / per:.4f} (H_p)"
        )
        print(f"device     {device_name()}, {time.perf_counter() - start:.0f} s")
        if run is not None:
            lines = run.history()
            print(f"trained    {lines[-1]['step']} iterations in {lines[-1]['seconds']:.0f} s")
            known = {"paper": PAPER[self.name][0]} if self.name in PAPER else {}
            known |= {} if best is None else {"best possible": best}
            self.save(plots.curve_picture(lines, trained, known), f"{self.file}_curve.png")

    def estimate(self, trained: Any, x_0: torch.Tensor, trajectories: int) -> None:
        """Print the estimate of log p by equation 9, of which K is a lower bound."""
        from fastdiff.dpm2015 import log_likelihood

        with bar(self.progress, "log p", trained.diffusion.steps) as shown:
            bits = log_likelihood(
                trained.diffusion, trained.network, x_0, trajectories=trajectories, seed=self.seed,
                progress=shown.update,
            )  # fmt: skip
        of = f"(equation 9, {trajectories} trajectories of {len(x_0)})"
        print(f"log p      {float(bits.mean()) / trained.units:.4f} bits a {trained.unit} {of}")

    def save(self, picture: Any, name: str) -> None:
        """Write a picture into OUT, and close it."""
        from fastdiff.plots import pyplot

        check_folder(self.out)
        with atomic_path(self.out / name) as path:
            picture.savefig(path, format="png")
        pyplot("train").close(picture)
        print(f"wrote      {self.out / name}")


@contextmanager
def bar(shown: bool, words: str, total: int) -> Iterator[Any]:
    """A progress bar."""
    from tqdm import tqdm

    unit = "iteration" if words == "training" else "step"
    with tqdm(desc=words, total=total, unit=unit, disable=not shown, leave=False, delay=0.5) as made:
        yield made


def watch(shown: Any, elements: int, unit: str) -> Callable[[Any], None]:
    """What shows a training's progress in a bar: both its numbers in bits a ``unit``, of so many elements."""
    begun = False

    def show(training: Any) -> None:
        nonlocal begun
        if not begun and training.iteration:
            shown.initial = shown.n = training.iteration
            total = training.recipe.iterations
            end = "; another --out trains anew" if training.iteration == total else ""
            print(f"resumed    at iteration {training.iteration} of {total}{end}")
        begun = True
        shown.update(training.iteration - shown.n)
        if training.iteration % 10 == 0 and training.iteration:
            held = "" if training.held is None else f", K held out {training.held[0]:.3f}"
            shown.set_postfix_str(
                f"sum of KL {training.running * elements:.3f}{held} bits a {unit}", refresh=False
            )

    return show
