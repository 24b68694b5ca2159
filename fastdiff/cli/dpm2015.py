"""``fastdiff dpm2015``: the experiments of Sohl-Dickstein et al. 2015 on points and sequences."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastdiff.cli.dpm2015_shared import FREE, Batch, Experiment, Steps, bar, watch
from fastdiff.cli.options import Out


@dataclass(frozen=True)
class SwissRoll(Experiment):
    """Gaussian diffusion of a spiral, with an RBF network and a learned schedule.

    Prints the bound K and draws OUT/swiss_roll.png, and K during training in OUT/swiss_roll_curve.png. The same command
    continues a stopped run.
    """

    iterations: int = 1500
    """Number of training iterations."""
    batch_size: Batch = 800
    """Number of points in an iteration, spread evenly over the diffusion steps."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    steps: Steps = 40
    """Number T of diffusion steps."""
    val_every: int = 100
    """Number of iterations between estimates of the bound K on held-out data."""
    units: int = 128
    """Number of radial basis functions; the paper has 16."""
    first_beta: float = 1e-6
    """Fixed noise variance beta_1 of the first step, which gives the curve a density."""
    noise: float = 0.0
    """Standard deviation of the noise added to the data."""
    out: Out = Path("out/swiss-roll")

    name: ClassVar[str] = "swiss-roll"

    def run(self) -> int:
        from fastdiff.dpm2015 import Recipe, experiments, plots

        plots.pyplot("train")  # raises an error now, before the work, if matplotlib is missing
        recipe = Recipe(self.iterations, self.batch_size, self.lr, seed=self.seed)
        start, run = time.perf_counter(), self.folder()
        with bar(self.progress, "training", self.iterations) as shown:
            trained = experiments.swiss_roll(
                recipe, steps=self.steps, units=self.units, first_beta=self.first_beta, noise=self.noise,
                watch=watch(shown, 2, "point"), run=run,
            )  # fmt: skip
        self.report(trained, run, start)
        with bar(self.progress, "sampling", self.steps) as shown:
            picture = plots.swiss_roll_picture(trained, seed=self.seed, progress=shown.update)
        self.save(picture, "swiss_roll.png")
        return 0


@dataclass(frozen=True)
class Heartbeat(Experiment):
    """Binomial diffusion of heartbeat sequences, with a multi-layer perceptron.

    Prints the bound K beside the best possible one and draws OUT/heartbeat.png, and K during training in
    OUT/heartbeat_curve.png. The same command continues a stopped run.
    """

    iterations: int = 4000
    """Number of training iterations."""
    batch_size: Batch = 1000
    """Number of sequences in an iteration, spread over the diffusion steps."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    steps: Steps = 2000
    """Number T of diffusion steps."""
    val_every: int = 250
    """Number of iterations between estimates of the bound K on held-out data."""
    rate: float = 0.2
    """Probability r of a one under the prior."""
    per_step_readout: bool = False
    """Use a readout layer for each step, as in the paper; it learns more slowly."""
    particles: int = 16
    """Number of particles for each sample that is drawn given that its third bit is a one."""
    trajectories: int = 64
    """Number of forward trajectories in the estimate of log p, equation 9."""
    out: Out = Path("out/heartbeat")

    name: ClassVar[str] = "heartbeat"
    free: ClassVar[frozenset[str]] = FREE | {"particles", "trajectories"}

    def run(self) -> int:
        from fastdiff.dpm2015 import HeartbeatOracle, Recipe, bound, experiments, plots

        plots.pyplot("train")
        recipe = Recipe(self.iterations, self.batch_size, self.lr, early=0.7, seed=self.seed)
        start, run = time.perf_counter(), self.folder()
        with bar(self.progress, "training", self.iterations) as shown:
            trained = experiments.heartbeat(
                recipe, steps=self.steps, rate=self.rate, per_step_readout=self.per_step_readout,
                watch=watch(shown, 20, "sequence"), run=run,
            )  # fmt: skip
        best = bound(trained.diffusion, HeartbeatOracle(trained.diffusion), trained.test, per_step=200)
        self.report(trained, run, start, best.k)
        print(
            f"best       K = {best.k:.4f} +- {best.error:.4f} for any factorised reverse kernel; log2(1/5) = -2.3219"
        )
        self.estimate(trained, trained.test, self.trajectories)
        self._given_a_bit(trained)
        with bar(self.progress, "sampling", self.steps) as shown:
            picture = plots.heartbeat_picture(trained, best.step_kl, seed=self.seed, progress=shown.update)
        self.save(picture, "heartbeat.png")
        return 0

    def _given_a_bit(self, trained: Any, count: int = 100) -> None:
        """Print how often samples drawn given x_2 = 1 are the only heartbeat that has a one there."""
        import torch

        from fastdiff.dpm2015 import heartbeat_sequences, sample

        wanted = heartbeat_sequences()[2].to(trained.test.dtype)
        like = wanted.expand(count, -1).contiguous()
        mask = torch.zeros_like(like, dtype=torch.bool)
        mask[:, 2] = True
        shares = []
        for number in (1, self.particles):
            made = sample(
                trained.diffusion,
                trained.network,
                like,
                seed=self.seed,
                known=like,
                mask=mask,
                particles=number,
            )[0]
            shares.append(float((made == wanted).all(1).double().mean()))
        print(
            f"given x_2 = 1  {shares[0]:.2f} are the one such heartbeat,"
            f" {shares[1]:.2f} with {self.particles} particles"
        )
