"""The paper's experiments: data, process, network and training recipe, to a trained model and its bound K."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastdiff.diffusion.binomial import BinomialDiffusion
from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion
from fastdiff.dpm2015 import data
from fastdiff.dpm2015.bound import Bound, bound
from fastdiff.dpm2015.multiscale import MultiScaleConfig, MultiScaleNet
from fastdiff.dpm2015.networks import RBFNet, SequenceMLP, spread
from fastdiff.dpm2015.training import LearnedSchedule, Recipe, Training, train
from fastdiff.dpm2015.validation import quick_k
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.dpm2015.run import Run

# Table 1 of the paper, (K, K - L_null): bits, of images bits a pixel
PAPER: dict[str, tuple[float, float]] = {
    "swiss-roll": (2.35, 6.45),
    "heartbeat": (-2.414, 12.024),
    "bark": (-0.55, 1.5),
    "dead-leaves": (1.489, 3.536),
    "cifar10": (5.4, 11.5),
}
Watch = Callable[[Training], None]


@dataclass(frozen=True)
class Trained:
    """A trained model, and its bound on data that it was not trained on."""

    diffusion: Any
    network: nn.Module
    bound: Bound
    test: Tensor
    """[M,*], as the network takes them."""
    unit: str
    """What K is stated for: a point, a sequence, a pixel."""
    scale: data.Standardised | None = None
    """For images: the transformation back to grey values."""

    @property
    def units(self) -> int:
        """Number of units in a sample."""
        return self.test[0, 0].numel() if self.scale else 1


def swiss_roll(
    recipe: Recipe,
    *,
    steps: int = 40,
    units: int = 128,
    first_beta: float = 1e-6,
    noise: float = 0.0,
    per_step: int = 2000,
    watch: Watch = lambda training: None,
    run: Run | None = None,
) -> Trained:
    """Gaussian diffusion of the swiss roll with a normalised RBF net and a learned schedule (section 3.1.1).

    ``run``, in all experiments: the folder that training continues from and is recorded in.

    Raises:
        FastdiffError: see :class:`LearnedSchedule`, :func:`fastdiff.dpm2015.data.swiss_roll`.
    """
    points, test = (data.swiss_roll(100_000, noise=noise, seed=recipe.seed + s) for s in (1, 2))
    centres = spread(points[:5000], units)
    width = 13 / units  # the roll's length over the units: the spacing of the centres
    network = RBFNet(steps, centres, width)
    schedule = LearnedSchedule(steps, first_beta)
    start = DiagonalGaussianDiffusion(betas=schedule().detach())
    network.fit(start, points[:4000], torch.Generator().manual_seed(recipe.seed))
    network, diffusion = train(
        start, network, lambda n, g: _pick(points, n, g), recipe, schedule=schedule, progress=watch, run=run,
        validate=lambda network, diffusion: quick_k(diffusion, network, test, samples=16_000, batch=2000),
    )  # fmt: skip
    return Trained(diffusion, network, bound(diffusion, network, test, per_step=per_step), test, "point")


def heartbeat(
    recipe: Recipe,
    *,
    steps: int = 2000,
    rate: float = 0.2,
    per_step_readout: bool = False,
    per_step: int = 200,
    watch: Watch = lambda training: None,
    run: Run | None = None,
) -> Trained:
    """Binomial diffusion of the heartbeat with a sigmoid MLP (section 3.1.2).

    Raises:
        FastdiffError: see :class:`BinomialDiffusion`.
    """
    torch.manual_seed(recipe.seed)
    diffusion = BinomialDiffusion(steps, rate)
    network = SequenceMLP(diffusion, data.HEARTBEAT_LENGTH, per_step=per_step_readout)
    sequences = data.heartbeat_sequences()
    single = sequences.float()

    def validate(network: nn.Module, diffusion: Any) -> tuple[float, float]:
        network = copy.deepcopy(network).double()  # for probabilities near 0 and 1
        return quick_k(diffusion, network, sequences, samples=32_000, early=0, batch=4000)

    network, _ = train(
        diffusion,
        network,
        lambda n, g: _pick(single, n, g),
        recipe,
        progress=watch,
        run=run,
        validate=validate,
    )
    network = network.double()
    found = bound(diffusion, network, sequences, per_step=per_step)
    return Trained(diffusion, network, found, sequences, "sequence")


def images(
    train_set: Tensor,
    test_set: Tensor,
    recipe: Recipe,
    config: MultiScaleConfig,
    *,
    steps: int = 1000,
    crop: int = 16,
    per_step: int = 2,
    weights: dict[str, Tensor] | None = None,
    watch: Watch = lambda training: None,
    run: Run | None = None,
    watch_bound: Callable[[int], None] = lambda steps: None,
) -> Trained:
    """Gaussian diffusion of images [N,C,H,W] uint8 with the multi-scale network (section 3.2).

    Args:
        crop: side of the random squares that the network is trained on; the images' own with a dense pathway.
        weights: of a network trained before, in place of training.

    Raises:
        FastdiffError: see :class:`fastdiff.dpm2015.data.Standardised`; weights of another network.
    """
    torch.manual_seed(recipe.seed)
    scale = data.Standardised(train_set)
    side = min(train_set.shape[-2:])
    crop = side if config.dense else min(crop, side)

    def squares(n: int, generator: torch.Generator) -> Tensor:
        some = _pick(train_set, n, generator)
        y, x = torch.randint(side - crop + 1, (2,), generator=generator).tolist()
        return scale(some[:, :, y : y + crop, x : x + crop], generator)

    diffusion = DiagonalGaussianDiffusion(steps)
    network = MultiScaleNet(diffusion, config)
    test = scale(test_set, torch.Generator().manual_seed(recipe.seed))
    pixels = test[0, 0].numel()

    def validate(network: nn.Module, diffusion: Any) -> tuple[float, float]:
        k, error = quick_k(diffusion, network, test)
        return k / pixels, error / pixels

    if weights is None:
        network, _ = train(diffusion, network, squares, recipe, progress=watch, run=run, validate=validate)
    else:
        try:
            network.load_state_dict(weights)
        except RuntimeError:
            raise FastdiffError("the weights are of a network of another kind or size") from None
    found = bound(
        diffusion, network, test, per_step=per_step, batch=64, seed=recipe.seed, progress=watch_bound
    )
    return Trained(diffusion, network, found, test, "pixel", scale)


def gaussian_bits(train_set: Tensor, test_set: Tensor, side: int = 8) -> float:
    """Log-likelihood, bits an element, of standardised test patches under a Gaussian with the training covariance.

    This is a baseline for K of images, which uses second moments only. Patches are side x side, of [N,C,H,W] floats.
    """
    fitted, tested = (_patches(x.double(), side) for x in (train_set, test_set))
    # The added diagonal keeps the covariance regular with few patches, too.
    covariance = torch.cov(fitted.T) + 1e-3 * torch.eye(fitted.shape[1], dtype=torch.float64)
    gaussian = torch.distributions.MultivariateNormal(fitted.mean(0), covariance)
    return float(gaussian.log_prob(tested).mean()) / math.log(2) / fitted.shape[1]


def _patches(x: Tensor, side: int) -> Tensor:
    return (
        x.unfold(2, side, side)
        .unfold(3, side, side)
        .permute(0, 2, 3, 1, 4, 5)
        .reshape(-1, x.shape[1] * side**2)
    )


def _pick(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return x[torch.randint(len(x), (n,), generator=generator)]
