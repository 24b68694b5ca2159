"""``fastdiff dpm2015``: the experiments of Sohl-Dickstein et al. 2015, trained, bounded and drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from fastdiff.cli.shared import check_folder
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path, open_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package installs it


@dataclass(frozen=True)
class SwissRoll:
    """Gaussian diffusion of a spiral, with an RBF network and a learned schedule.

    Prints the bound K and draws OUT/swiss_roll.png.
    """

    iterations: int = 1500
    """Number of training iterations."""
    batch: int = 800
    """Number of points in an iteration, spread evenly over the diffusion steps."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    steps: int = 40
    """Number T of diffusion steps."""
    units: int = 128
    """Number of radial basis functions; the paper has 16."""
    first_beta: float = 1e-6
    """Fixed noise variance beta_1 of the first step, which gives the curve a density."""
    noise: float = 0.0
    """Standard deviation of the noise added to the data."""
    seed: int = 0
    """Random seed."""
    out: Path = Path("out")
    """Folder for the picture; it is created if it does not exist."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> int:
        from fastdiff.dpm2015 import Recipe, experiments, plots

        plots.pyplot("train")  # raises an error now, before the work, if matplotlib is missing
        recipe = Recipe(self.iterations, self.batch, self.lr, seed=self.seed)
        start = time.perf_counter()
        with _bar(self.progress, "training", self.iterations) as bar:
            trained = experiments.swiss_roll(
                recipe, steps=self.steps, units=self.units, first_beta=self.first_beta, noise=self.noise,
                watch=_watch(bar),
            )  # fmt: skip
        _report("swiss-roll", trained, start)
        with _bar(self.progress, "sampling", self.steps) as bar:
            picture = plots.swiss_roll_picture(trained, seed=self.seed, progress=bar.update)
        _save(picture, self.out, "swiss_roll.png")
        return 0


@dataclass(frozen=True)
class Heartbeat:
    """Binomial diffusion of heartbeat sequences, with a multi-layer perceptron.

    Prints the bound K beside the best possible one and draws OUT/heartbeat.png.
    """

    iterations: int = 4000
    """Number of training iterations."""
    batch: int = 1000
    """Number of sequences in an iteration, spread over the diffusion steps."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    steps: int = 2000
    """Number T of diffusion steps."""
    rate: float = 0.2
    """Probability r of a one under the prior."""
    per_step_readout: bool = False
    """Use a readout layer for each step, as in the paper; it learns more slowly."""
    particles: int = 16
    """Number of particles for each sample that is drawn given that its third bit is a one."""
    trajectories: int = 64
    """Number of forward trajectories in the estimate of log p, equation 9."""
    seed: int = 0
    """Random seed."""
    out: Path = Path("out")
    """Folder for the picture; it is created if it does not exist."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> int:
        from fastdiff.dpm2015 import HeartbeatOracle, Recipe, bound, experiments, plots

        plots.pyplot("train")
        recipe = Recipe(self.iterations, self.batch, self.lr, early=0.7, seed=self.seed)
        start = time.perf_counter()
        with _bar(self.progress, "training", self.iterations) as bar:
            trained = experiments.heartbeat(
                recipe, steps=self.steps, rate=self.rate, per_step_readout=self.per_step_readout,
                watch=_watch(bar, trained_elements=20),
            )  # fmt: skip
        best = bound(trained.diffusion, HeartbeatOracle(trained.diffusion), trained.test, per_step=200)
        _report("heartbeat", trained, start)
        print(
            f"best       K = {best.k:.4f} +- {best.error:.4f} for any factorised reverse kernel; log2(1/5) = -2.3219"
        )
        _estimate(trained, trained.test, self.trajectories, self.seed, self.progress)
        _given_a_bit(trained, self.particles, self.seed)
        with _bar(self.progress, "sampling", self.steps) as bar:
            picture = plots.heartbeat_picture(trained, best.step_kl, seed=self.seed, progress=bar.update)
        _save(picture, self.out, "heartbeat.png")
        return 0


@dataclass(frozen=True)
class _Images:
    iterations: int = 8000
    """Number of training iterations."""
    batch: int = 12
    """Number of image crops in an iteration, spread over the diffusion steps."""
    crop: int = 16
    """Side of the crops that the network is trained on, in pixels."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    steps: int = 1000
    """Number T of diffusion steps."""
    width: int = 32
    """Number of features of the multi-scale convolutions."""
    layers: int = 5
    """Number of multi-scale convolutions after the first."""
    dense: int = 0
    """Features per pixel of the dense pathway, which needs whole images in place of crops. 0: no dense pathway."""
    hide: Literal["centre", "left", "right", "top", "bottom"] = "centre"
    """Part of the images that is hidden and inpainted."""
    repeats: int = 5
    """Times each step of inpainting is repeated."""
    noise: float = 1.0
    """Standard deviation of the noise in the denoising example, relative to the data's standard deviation."""
    trajectories: int = 0
    """Number of forward trajectories in the estimate of log p, equation 9, for 50 test images. 0: no estimate."""
    weights: Path | None = None
    """Trained network to use in place of training, from an earlier run (OUT/NAME.safetensors)."""
    seed: int = 0
    """Random seed."""
    out: Path = Path("out")
    """Folder for the picture and the network; it is created if it does not exist."""
    progress: bool = True
    """Show progress bars."""

    def _run(self, name: str, train_set: torch.Tensor, test_set: torch.Tensor) -> int:
        from fastdiff.dpm2015 import MultiScaleConfig, Recipe, experiments, plots

        plots.pyplot("train")
        recipe = Recipe(self.iterations, self.batch, self.lr, ema=0.995, early=0.7, seed=self.seed)
        config = MultiScaleConfig(
            channels=train_set.shape[1], width=self.width, layers=self.layers, dense=self.dense,
            size=train_set.shape[2],
        )  # fmt: skip
        start = time.perf_counter()
        weights = None if self.weights is None else _read_weights(self.weights)
        with (
            _bar(self.progress and weights is None, "training", self.iterations) as bar,
            _bar(self.progress, "bound", self.steps - 1) as bar_bound,
        ):
            trained = experiments.images(
                train_set, test_set, recipe, config, steps=self.steps, crop=self.crop, weights=weights,
                watch=_watch(bar), watch_bound=bar_bound.update,
            )  # fmt: skip
        file = name.replace("-", "_")
        if weights is None:
            check_folder(self.out)
            state = {k: v.contiguous() for k, v in trained.network.state_dict().items()}
            write_tensors(self.out / f"{file}.safetensors", state, {})
        _report(name, trained, start)
        _compare_with_gaussian(trained, train_set)
        if self.trajectories:
            _estimate(trained, trained.test[:50], self.trajectories, self.seed, self.progress)
        with _bar(self.progress, "sampling", self.steps) as bar:
            picture = plots.images_picture(
                trained,
                hide=self.hide,
                repeats=self.repeats,
                noise=self.noise,
                seed=self.seed,
                progress=bar.update,
            )
        _save(picture, self.out, f"{file}.png")
        return 0


@dataclass(frozen=True)
class DeadLeaves(_Images):
    """Gaussian diffusion of generated images of dead leaves.

    Prints the bound K per pixel and draws OUT/dead_leaves.png, with samples and inpainted images.
    """

    images: int = 8000
    """Number of training images, which the command generates."""
    size: int = 32
    """Side of the images, in pixels."""

    def run(self) -> int:
        from fastdiff.dpm2015 import dead_leaves

        train_set = dead_leaves(self.images, size=self.size, seed=self.seed + 1)
        return self._run("dead-leaves", train_set, dead_leaves(400, size=self.size, seed=self.seed + 2))


@dataclass(frozen=True)
class Fashion(_Images):
    """Gaussian diffusion of Fashion-MNIST, padded to 32x32.

    Prints the bound K per pixel and draws OUT/fashion.png.
    """

    data: Path = FASHION
    """Folder with the published files; on Debian and Ubuntu: apt-get install dataset-fashion-mnist."""
    name: ClassVar[str] = "fashion"
    iterations: int = 3000
    """Number of training iterations."""
    crop: int = 32
    """Side of the crops that the network is trained on, in pixels."""
    batch: int = 4
    """Number of image crops in an iteration, spread over the diffusion steps."""

    def run(self) -> int:
        from fastdiff.dpm2015.data import read_images

        pair = [self.data / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
        train_set, test_set = (read_images(path, 32, 1) for path in pair)
        return self._run(self.name, train_set, test_set[:1000])


@dataclass(frozen=True)
class Mnist(Fashion):
    """Gaussian diffusion of MNIST, padded to 32x32.

    Prints the bound K per pixel and draws OUT/mnist.png.
    """

    data: Path = Path("mnist")
    """Folder with train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz, as MNIST is published."""
    name: ClassVar[str] = "mnist"


@dataclass(frozen=True)
class Cifar10(_Images):
    """Gaussian diffusion of CIFAR-10, from local files.

    Prints the bound K per pixel and draws OUT/cifar10.png.
    """

    data: Positional[tuple[Path, ...]] = ()
    """Training files of CIFAR-10's binary version (data_batch_1.bin ...)."""

    def run(self) -> int:
        import torch

        from fastdiff.dpm2015.data import read_cifar10

        if not self.data:
            raise FastdiffError(
                "give at least one file of CIFAR-10's binary version, such as data_batch_1.bin"
            )
        all_images = torch.cat([read_cifar10(path) for path in self.data])
        if len(all_images) < 2:
            raise FastdiffError("the files hold one image; training and testing need at least two")
        held = max(1, min(1000, len(all_images) // 10))
        return self._run("cifar10", all_images[:-held], all_images[-held:])


def _report(name: str, trained: Any, start: float) -> None:
    """Print K, K - L_null and their parts beside the paper's Table 1."""
    from fastdiff.bench.machine import device_name
    from fastdiff.dpm2015.experiments import PAPER

    found = trained.bound
    per, unit = (found.dimensions, "pixel") if trained.scale else (1, "sample")
    if trained.scale:
        per //= trained.test.shape[1]
    paper = [f"{x:8.3f}" for x in PAPER[name]] if name in PAPER else ["       -"] * 2
    print(f"bits a {unit:<8}     here             paper")
    print(f"K           {found.k / per:9.4f} +- {found.error / per:.4f}  {paper[0]}")
    print(f"K - L_null  {found.gain / per:9.4f}            {paper[1]}")
    print(
        f"K = -{float(found.step_kl.sum()) / per:.4f} (sum of KL) + {found.last_entropy / per:.4f} (H_T)"
        f" - {found.first_entropy / per:.4f} (H_1) - {found.prior_entropy / per:.4f} (H_p)"
    )
    print(f"device     {device_name()}, {time.perf_counter() - start:.0f} s")


def _compare_with_gaussian(trained: Any, train_set: torch.Tensor) -> None:
    import torch

    from fastdiff.dpm2015.experiments import gaussian_bits

    some = trained.scale(train_set[:4000], torch.Generator().manual_seed(0))
    bits = gaussian_bits(some, trained.test) * trained.test.shape[1]
    print(f"yardstick  {bits:.4f} bits a pixel: a Gaussian with the covariance of 8x8 patches")


def _estimate(trained: Any, x_0: torch.Tensor, trajectories: int, seed: int, progress: bool) -> None:
    """Print the estimate of log p by equation 9, of which K is a lower bound."""
    from fastdiff.dpm2015 import log_likelihood

    with _bar(progress, "log p", trained.diffusion.steps) as bar:
        bits = log_likelihood(
            trained.diffusion, trained.network, x_0, trajectories=trajectories, seed=seed, progress=bar.update
        )
    per, unit = (x_0[0, 0].numel(), "pixel") if trained.scale else (1, "sample")
    of = f"(equation 9, {trajectories} trajectories of {len(x_0)})"
    print(f"log p      {float(bits.mean()) / per:.4f} bits a {unit} {of}")


def _given_a_bit(trained: Any, particles: int, seed: int, count: int = 100) -> None:
    """Print how often samples drawn given x_2 = 1 are the only heartbeat that has a one there."""
    import torch

    from fastdiff.dpm2015 import heartbeat_sequences, sample

    wanted = heartbeat_sequences()[2].to(trained.test.dtype)
    like = wanted.expand(count, -1).contiguous()
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[:, 2] = True
    shares = []
    for number in (1, particles):
        made = sample(
            trained.diffusion, trained.network, like, seed=seed, known=like, mask=mask, particles=number
        )[0]
        shares.append(float((made == wanted).all(1).double().mean()))
    print(
        f"given x_2 = 1  {shares[0]:.2f} are the one such heartbeat, {shares[1]:.2f} with {particles} particles"
    )


@contextmanager
def _bar(shown: bool, words: str, total: int) -> Iterator[Any]:
    from tqdm import tqdm

    unit = "iteration" if words == "training" else "step"
    with tqdm(desc=words, total=total, unit=unit, disable=not shown, leave=False, delay=0.5) as bar:
        yield bar


def _watch(bar: Any, trained_elements: int = 1) -> Callable[[int, float], None]:
    def show(iteration: int, bits: float) -> None:
        bar.update(iteration - bar.n)
        if iteration % 10 == 0:
            per = "sequence" if trained_elements > 1 else "dimension"
            bar.set_postfix_str(f"sum of KL {bits * trained_elements:.3f} bits a {per}", refresh=False)

    return show


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FastdiffError(f"cannot read {path}: there is no such file")
    with open_tensors(path) as stored:
        return {name: stored.read(name) for name in stored.names}


def _save(picture: Any, folder: Path, name: str) -> None:
    check_folder(folder)
    with atomic_path(folder / name) as path:
        picture.savefig(path, format="png")
    print(f"wrote      {folder / name}")
