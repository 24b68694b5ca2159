"""``fastdiff dpm2015``: the experiments of Sohl-Dickstein et al. 2015 on images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from fastdiff.cli.dpm2015_shared import FREE, Batch, Experiment, Steps, bar, watch
from fastdiff.cli.options import Out
from fastdiff.cli.shared import check_folder
from fastdiff.errors import FastdiffError
from fastdiff.files import crc32, open_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package installs it


@dataclass(frozen=True)
class _Images(Experiment):
    crop: int = 16
    """Side of the crops that the network is trained on, in pixels."""
    width: int = 32
    """Number of features of the multi-scale convolutions."""
    layers: int = 5
    """Number of multi-scale convolutions after the first."""
    dense: int = 0
    """Features per pixel of the dense pathway, which needs whole images in place of crops. 0: no dense pathway."""
    hide: Literal["centre", "left", "right", "top", "bottom"] = "centre"
    """Part of the images that is hidden and inpainted."""
    repeats: int = 5
    """Number of times each step of inpainting is repeated."""
    noise: float = 1.0
    """Standard deviation of the noise in the denoising example, relative to the data's standard deviation."""
    trajectories: int = 0
    """Number of forward trajectories in the estimate of log p, equation 9, for 50 test images. 0: no estimate."""
    weights: Path | None = None
    """Trained network to use in place of training, from an earlier run (OUT/NAME.safetensors)."""

    # The training images are compared by their checksum.
    free: ClassVar[frozenset[str]] = FREE | {"hide", "repeats", "noise", "trajectories", "weights", "data"}

    def _run(self, train_set: torch.Tensor, test_set: torch.Tensor) -> int:
        from fastdiff.dpm2015 import MultiScaleConfig, Recipe, experiments, plots

        plots.pyplot("train")  # raises an error now, before the work, if matplotlib is missing
        recipe = Recipe(self.iterations, self.batch_size, self.lr, ema=0.995, early=0.7, seed=self.seed)
        channels = train_set.shape[1]
        config = MultiScaleConfig(
            channels=channels, width=self.width, layers=self.layers, dense=self.dense, size=train_set.shape[2]
        )
        start = time.perf_counter()
        weights = None if self.weights is None else _read_weights(self.weights)
        data = f"{len(train_set)} images with checksum {crc32('', train_set):08x}"
        run = self.folder(data=data) if weights is None else None
        with (
            bar(self.progress and weights is None, "training", self.iterations) as shown,
            bar(self.progress, "bound", self.steps - 1) as bounding,
        ):
            trained = experiments.images(
                train_set, test_set, recipe, config, steps=self.steps, crop=self.crop, weights=weights,
                watch=watch(shown, channels, "pixel"), watch_bound=bounding.update, run=run,
            )  # fmt: skip
        if weights is None:
            check_folder(self.out)
            state = {k: v.contiguous() for k, v in trained.network.state_dict().items()}
            write_tensors(self.out / f"{self.file}.safetensors", state, {})
        self.report(trained, run, start)
        _compare_with_gaussian(trained, train_set)
        if self.trajectories:
            self.estimate(trained, trained.test[:50], self.trajectories)
        with bar(self.progress, "sampling", 3 * self.steps) as shown:
            picture = plots.images_picture(
                trained, hide=self.hide, repeats=self.repeats, noise=self.noise, seed=self.seed, progress=shown.update
            )  # fmt: skip
        self.save(picture, f"{self.file}.png")
        return 0


@dataclass(frozen=True)
class DeadLeaves(_Images):
    """Gaussian diffusion of generated images of dead leaves.

    Prints the bound K per pixel and draws OUT/dead_leaves.png, with samples and inpainted images, and K during training
    in OUT/dead_leaves_curve.png. The same command continues a stopped run.
    """

    images: int = 8000
    """Number of training images, which the command generates."""
    size: int = 32
    """Side of the images, in pixels."""
    out: Out = Path("out/dead-leaves")

    name: ClassVar[str] = "dead-leaves"

    def run(self) -> int:
        from fastdiff.dpm2015 import dead_leaves

        train_set = dead_leaves(self.images, size=self.size, seed=self.seed + 1)
        return self._run(train_set, dead_leaves(400, size=self.size, seed=self.seed + 2))


@dataclass(frozen=True)
class Bark(_Images):
    """Gaussian diffusion of bark: textures that the command generates, or your own photographs.

    Prints the bound K per pixel and draws OUT/bark.png, with samples and inpainted images as in the paper's figure 3,
    and K during training in OUT/bark_curve.png. The same command continues a stopped run.
    """

    iterations: int = 3000
    """Number of training iterations."""
    batch_size: Batch = 4
    """Number of image crops in an iteration, spread over the diffusion steps."""
    steps: Steps = 500
    """Number T of diffusion steps."""
    crop: int = 32
    """Side of the crops that the network is trained on, in pixels."""
    data: Path | None = None
    """Photographs to cut the images from: a folder, .zip or webdataset shards. Default: bark-like textures."""
    images: int = 4000
    """Number of training images, generated or cut from DATA at random places."""
    size: int = 48
    """Side of the images, in pixels."""
    out: Out = Path("out/bark")

    name: ClassVar[str] = "bark"

    def run(self) -> int:
        from fastdiff.dpm2015 import bark
        from fastdiff.dpm2015.data import read_textures

        if self.data is not None:
            return self._run(*read_textures(self.data, self.images, self.size, seed=self.seed))
        train_set = bark(self.images, size=self.size, seed=self.seed + 1)
        return self._run(train_set, bark(400, size=self.size, seed=self.seed + 2))


@dataclass(frozen=True)
class Fashion(_Images):
    """Gaussian diffusion of Fashion-MNIST, padded to 32x32.

    Prints the bound K per pixel and draws OUT/fashion.png, and K during training in OUT/fashion_curve.png. The same
    command continues a stopped run.
    """

    iterations: int = 3000
    """Number of training iterations."""
    batch_size: Batch = 4
    """Number of images in an iteration, spread over the diffusion steps."""
    crop: int = 32
    """Side of the crops that the network is trained on, in pixels."""
    data: Path = FASHION
    """Folder with the published files; on Debian and Ubuntu: apt-get install dataset-fashion-mnist."""
    out: Out = Path("out/fashion")

    name: ClassVar[str] = "fashion"

    def run(self) -> int:
        from fastdiff.dpm2015.data import read_images

        pair = [self.data / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
        train_set, test_set = (read_images(path, 32, 1) for path in pair)
        return self._run(train_set, test_set[:1000])


@dataclass(frozen=True)
class Mnist(Fashion):
    """Gaussian diffusion of MNIST, padded to 32x32.

    Prints the bound K per pixel and draws OUT/mnist.png, and K during training in OUT/mnist_curve.png. The same command
    continues a stopped run.
    """

    data: Path = Path("mnist")
    """Folder with train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz, as MNIST is published."""
    out: Out = Path("out/mnist")

    name: ClassVar[str] = "mnist"


@dataclass(frozen=True)
class Cifar10(_Images):
    """Gaussian diffusion of CIFAR-10, from local files.

    Prints the bound K per pixel and draws OUT/cifar10.png, and K during training in OUT/cifar10_curve.png. The same
    command continues a stopped run.
    """

    data: Positional[tuple[Path, ...]] = ()
    """Training files of CIFAR-10's binary version (data_batch_1.bin ...)."""
    out: Out = Path("out/cifar10")

    name: ClassVar[str] = "cifar10"

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
        return self._run(all_images[:-held], all_images[-held:])


def _compare_with_gaussian(trained: Any, train_set: torch.Tensor) -> None:
    import torch

    from fastdiff.dpm2015.experiments import gaussian_bits

    some = trained.scale(train_set[:4000], torch.Generator().manual_seed(0))
    bits = gaussian_bits(some, trained.test) * trained.test.shape[1]
    print(f"yardstick  {bits:.4f} bits a pixel: a Gaussian with the covariance of 8x8 patches")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FastdiffError(f"cannot read {path}: there is no such file")
    with open_tensors(path) as stored:
        return {name: stored.read(name) for name in stored.names}
