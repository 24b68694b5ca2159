"""Consistency training against data whose denoiser and consistency function are known: a Gaussian, and one point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastdiff import DiffusionConfig
from fastdiff.diffusion.consistency import LevelPairs, consistency_losses, continuous_losses
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError

STD = 0.7  # of the data, N(0, STD^2)
CONFIGS = {
    "v": DiffusionConfig(schedule="cosine", prediction="v"),
    "epsilon": DiffusionConfig(),
    "edm": DiffusionConfig(parametrisation="edm"),
    "consistency": DiffusionConfig(parametrisation="consistency"),
    "flow": DiffusionConfig(parametrisation="flow"),
}


class Known:
    """A model whose estimate of x_0 at level sigma is ``factor(sigma)`` times x / signal."""

    def __init__(self, process: Process, factor) -> None:
        self.process, self.factor = process, factor
        # The time of each level, to find the level again.
        self.seen: list[Tensor] = []

    def at(self, t: Tensor) -> Known:
        self._t = t
        return self

    def __call__(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        self.seen.append(time)
        sigma = _sigma_of(self.process, time)
        levels = self.process.levels(sigma.numpy())
        signal, noise = (torch.from_numpy(v)[:, None] for v in (levels.signal, levels.noise))
        u, w = self.process.to_x0(signal, noise)  # pyright: ignore[reportArgumentType]
        return (self.factor(sigma)[:, None] * x / signal - u * x) / w


def _sigma_of(process: Process, time: Tensor) -> Tensor:
    time = time.double()
    kind = process.config.parametrisation
    if kind == "flow":
        return time / (1 - time)
    return process.sigmas(time.long()) if kind == "discrete" else torch.exp(time / 250)


def denoiser(sigma: Tensor) -> Tensor:
    return STD**2 / (STD**2 + sigma**2)


def consistent(sigma: Tensor) -> Tensor:
    """The end of the probability-flow ODE that begins at x: the scale of y falls as the standard deviation does."""
    return STD / torch.sqrt(STD**2 + sigma**2)


def make_batch(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, n, 5, generator=generator, dtype=torch.float64))  # pyright: ignore


@pytest.mark.parametrize("kind", CONFIGS)
def test_distilling_the_exact_denoiser_asks_for_the_exact_consistency_function(kind) -> None:
    """The loss of the exact function is the error of one Heun step, of third order in the step."""
    process, (x0, noise) = make_process(CONFIGS[kind]), make_batch()
    model, teacher = Known(process, consistent), Known(process, denoiser)
    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=torch.float64)
    if kind in ("v", "epsilon"):
        sigma = process.sigmas(process.nearest(sigma))

    def loss(share: float) -> Tensor:
        lower = process.sigmas(process.nearest(sigma * (1 - share)))
        found = consistency_losses(
            process, model, x0, (sigma, lower), noise=noise, teacher=(process, teacher), distance="l1"
        )
        return found * (sigma - lower), (sigma - lower) / sigma  # pyright: ignore

    (coarse, wide), (fine, narrow) = loss(0.2), loss(0.1)
    assert (coarse < 1e-2).all() and (fine < coarse).all()
    order = torch.log(coarse / fine) / torch.log(wide / narrow)
    assert (order > 2.6).all() and (order < 3.6).all()
    # and what is not the consistency function has a loss of first order
    wrong = consistency_losses(
        process, teacher, x0, (sigma, sigma * 0.9), noise=noise, teacher=(process, teacher), distance="l1"
    )
    assert (wrong * 0.1 * sigma > 5 * fine).all()


@pytest.mark.parametrize("distance", ["l1", "l2", "pseudo-huber"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_value_by_hand(kind, distance) -> None:
    """D(x) = y / 2 everywhere: the difference is (sigma - sigma') z / 2, and x_0 itself where sigma' is 0."""
    process, (x0, noise) = make_process(CONFIGS[kind]), make_batch()
    model = Known(process, lambda sigma: torch.full_like(sigma, 0.5))
    sigma = process.sigmas(
        process.nearest(torch.tensor([0.05, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=torch.float64))
    )
    lower = process.sigmas(process.nearest(sigma / 3)) * torch.tensor([1, 0, 1, 0, 1, 1])
    found = consistency_losses(process, model, x0, (sigma, lower), noise=noise, distance=distance)
    below = torch.where(lower[:, None] > 0, (x0 + lower[:, None] * noise) / 2, x0)
    difference = (x0 + sigma[:, None] * noise) / 2 - below
    square = (difference**2).mean(1)
    expected = {
        "l1": difference.abs().mean(1),
        "l2": square,
        "pseudo-huber": torch.sqrt(square + 0.00054**2) - 0.00054,
    }[distance]
    torch.testing.assert_close(found, expected / (sigma - lower), rtol=1e-9, atol=1e-12)


def test_the_gradient_flows_through_the_higher_level_alone() -> None:
    process, (x0, noise) = make_process(CONFIGS["edm"]), make_batch()
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    model = Known(process, lambda sigma: scale * torch.ones_like(sigma))
    sigma = torch.full((6,), 2.0, dtype=torch.float64)
    loss = consistency_losses(process, model, x0, (sigma, sigma / 2), noise=noise, distance="l2").sum()
    (gradient,) = torch.autograd.grad(loss, scale)
    y, y_lower = x0 + 2 * noise, x0 + noise
    expected = (2 * (scale * y - scale * y_lower) * y).mean(1).sum()
    torch.testing.assert_close(gradient, expected.detach())


def test_both_calls_drop_the_same_units() -> None:
    process, (x0, noise) = make_process(CONFIGS["edm"]), make_batch()
    masks = []

    def model(x: Tensor, time: Tensor) -> Tensor:
        masks.append(torch.nn.functional.dropout(torch.ones_like(x), 0.5))
        return x

    sigma = torch.full((6,), 2.0, dtype=torch.float64)
    consistency_losses(process, model, x0, (sigma, sigma / 2), noise=noise)
    assert torch.equal(*masks) and not masks[0].eq(2).all()


def test_a_step_nearest_to_both_levels_is_told_apart() -> None:
    """In discrete steps the lower level is at least one step down; below the first step it is the clean image."""
    process, (x0, noise) = make_process(CONFIGS["epsilon"]), make_batch(2)
    model = Known(process, denoiser)
    sigma = process.sigmas(torch.tensor([0, 500]))
    consistency_losses(process, model, x0, (sigma, sigma * 0.9999), noise=noise)
    lower, upper = model.seen
    assert upper.tolist() == [0, 500] and lower[1] == 499


def test_pairs() -> None:
    sigma = torch.tensor([0.001, 0.05, 1.0, 100.0])
    halving = LevelPairs("halving", 0.002, 80.0)
    for progress, stage in ((0.0, 1), (0.124, 1), (0.126, 2), (0.999, 8)):
        high, low = halving(sigma, progress)
        assert high.tolist() == pytest.approx([0.002, 0.05, 1.0, 80.0])
        gap = [min(1, (1 + 8 / (1 + math.exp(s))) / 2**stage) for s in high.tolist()]
        assert ((high - low) / high).tolist() == pytest.approx(gap)
    doubling = LevelPairs("doubling", 0.002, 80.0)
    assert [doubling.grid_size(k / 8) for k in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    high, low = LevelPairs("grid", 0.002, 80.0, levels=3)(sigma, 0.5)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7  # Karras et al. 2022, equation 5
    assert high.tolist() == pytest.approx([middle, middle, middle, 80])
    assert low.tolist() == pytest.approx([0.002, 0.002, 0.002, middle])
    with pytest.raises(FastdiffError, match="unknown pairs 'all'; known: halving, doubling, grid"):
        LevelPairs("all", 0.002, 80.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FastdiffError, match="at least 2 levels, got 1"):
        LevelPairs("grid", 0.002, 80.0, levels=1)


# Another network for the target, other distances


def test_the_lower_image_is_the_targets() -> None:
    process, (x0, noise) = make_process(CONFIGS["edm"]), make_batch()
    model, target = (Known(process, lambda s, f=f: torch.full_like(s, f)) for f in (0.5, 0.25))
    sigma = torch.full((6,), 2.0, dtype=torch.float64)
    found = consistency_losses(
        process, model, x0, (sigma, sigma / 2), noise=noise, target=target, distance="l1"
    )
    expected = ((x0 + 2 * noise) / 2 - (x0 + noise) / 4).abs().mean(1)
    torch.testing.assert_close(found, expected)
    assert len(model.seen) == len(target.seen) == 1


def test_a_distance_of_ones_own() -> None:
    process, (x0, noise) = make_process(CONFIGS["edm"]), make_batch()
    model = Known(process, lambda s: torch.full_like(s, 0.5))
    sigma = torch.full((6,), 2.0, dtype=torch.float64)
    found = consistency_losses(
        process, model, x0, (sigma, sigma / 2), noise=noise, distance=lambda a, b: (a - b).abs().amax(1)
    )
    torch.testing.assert_close(found, (noise / 2).abs().amax(1))
    with pytest.raises(FastdiffError, match="distance 'lpips' is none of pseudo-huber, l2 and l1, nor a fun"):
        consistency_losses(process, model, x0, (sigma, sigma / 2), noise=noise, distance="lpips")


# The continuous form

CONTINUOUS = ("edm", "consistency", "flow")


class Smooth(torch.nn.Module):
    """A small network of x and the time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.mix = torch.nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64) / 3)
        self.of_time = torch.nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(x @ self.mix + torch.sin(time[:, None] / 200) * self.of_time)


def _gradient(model: Smooth, losses: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), list(model.parameters()))])


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_continuous_gradient_is_the_limit_of_the_discrete_one(kind, taught: bool) -> None:
    """sigma times the gradient of the discrete l2 loss, whose error falls with the gap."""
    process, (x0, noise) = make_process(CONFIGS[kind]), make_batch()
    model = Smooth()
    teacher = (process, Exact(process)) if taught else None
    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=torch.float64)
    found = _gradient(
        model, continuous_losses(process, model, x0, sigma, noise=noise, teacher=teacher, steady=None)
    )
    errors = []
    for gap in (1e-3, 5e-4):
        pair = sigma, sigma * (1 - gap)
        losses = consistency_losses(process, model, x0, pair, noise=noise, teacher=teacher, distance="l2")
        errors.append(float((_gradient(model, sigma * losses) - found).norm() / found.norm()))
    assert errors[0] < 1e-2 and errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


class Exact:
    """The exact denoiser of N(0, STD^2), in operations that forward mode knows."""

    def __init__(self, process: Process, consistency: bool = False) -> None:
        self._process, self._consistency = process, consistency

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        flow = self._process.config.parametrisation == "flow"
        sigma = (time / (1 - time) if flow else torch.exp(time / 250))[:, None]
        signal = self._process.q_sample(torch.ones_like(x), sigma[:, 0], torch.zeros_like(x))
        u, w = self._process.to_x0(signal, sigma * signal)  # pyright: ignore[reportArgumentType]
        factor = STD / torch.sqrt(STD**2 + sigma**2) if self._consistency else STD**2 / (STD**2 + sigma**2)
        return (factor * x / signal - u * x) / w


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_exact_consistency_function_has_no_tangent(kind) -> None:
    process, (x0, noise) = make_process(CONFIGS[kind]), make_batch()
    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=torch.float64)
    options = {"noise": noise, "teacher": (process, Exact(process)), "steady": None}
    assert continuous_losses(process, Exact(process, True), x0, sigma, **options).max() < 1e-18
    assert continuous_losses(process, Exact(process), x0, sigma, **options).min() > 1e-6


def test_the_tangent_is_kept_small() -> None:
    """D = y / 2 has g = sigma z / 2; the loss is (rms / (rms + 0.1))^2."""
    process, (x0, noise) = make_process(CONFIGS["edm"]), make_batch()

    def half(x: Tensor, time: Tensor) -> Tensor:
        sigma = torch.exp(time / 250)[:, None]
        u, w = process.to_x0(torch.rsqrt(sigma**2 + 0.25), sigma * torch.rsqrt(sigma**2 + 0.25))  # pyright: ignore
        return (x * torch.sqrt(sigma**2 + 0.25) / 2 - u * x) / w

    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=torch.float64)
    rms = sigma / 2 * (noise**2).mean(1).sqrt()
    found = continuous_losses(process, half, x0, sigma, noise=noise)
    torch.testing.assert_close(found, (rms / (rms + 0.1)) ** 2)
