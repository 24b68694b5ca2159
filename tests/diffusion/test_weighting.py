"""min-SNR-gamma and P2: the papers' formulas, hand-computed numbers, and one loss for every kind of prediction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.loss import training_losses
from fastdiff.diffusion.weighting import LossWeighting
from fastdiff.errors import FastdiffError

# alphas_bar 0.9, 0.5, 0.1: signal-to-noise ratios 9, 1 and 1/9
BETAS = [1 - 0.9, 1 - 0.5 / 0.9, 1 - 0.1 / 0.5]
T = torch.arange(3)
WEIGHTS = {
    ("min-snr", "epsilon"): [5 / 9, 1, 1],
    ("min-snr", "x0"): [5, 1, 1 / 9],
    ("min-snr", "v"): [5 / 10, 1 / 2, 1 / 10],
    ("p2", "epsilon"): [1 / 10, 1 / 2, 9 / 10],
    ("p2", "x0"): [9 / 10, 1 / 2, 1 / 10],
    ("p2", "v"): [0.9 / 10, 0.5 / 2, 0.1 * 9 / 10],
}


def process(prediction: Any, **options: Any) -> GaussianDiffusion:
    return GaussianDiffusion(DiffusionConfig(prediction=prediction, **options), betas=BETAS)


@pytest.mark.parametrize(("kind", "prediction"), WEIGHTS)
def test_weights_are_those_of_the_papers(kind: Any, prediction: Any) -> None:
    found = LossWeighting(kind)(process(prediction), T, torch.zeros(3, 1, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(WEIGHTS[kind, prediction], dtype=torch.float64))


@pytest.mark.parametrize("k", [0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_p2_is_its_published_codes(k: float, gamma: float) -> None:
    """jychoi118/P2-weighting, guided_diffusion/gaussian_diffusion.py: 1 / (p2_k + snr)**p2_gamma."""
    diffusion = GaussianDiffusion(DiffusionConfig())
    times = torch.tensor([0, 3, 500, 999])
    snr = 1.0 / (1 - diffusion.alphas_bar[times]) - 1
    weighting = LossWeighting("p2", p2_gamma=gamma, p2_k=k)
    found = weighting(diffusion, times, torch.zeros(4, 1, dtype=torch.float64))
    torch.testing.assert_close(found, 1 / (k + snr) ** gamma)


@pytest.mark.parametrize("weighting", [LossWeighting("min-snr", 3.0), LossWeighting("p2", p2_gamma=0.5)])
def test_the_loss_is_the_same_whatever_is_predicted(weighting: LossWeighting) -> None:
    """The same estimate of x_0, told as noise, x_0 or v."""
    g = torch.Generator().manual_seed(0)
    x0, noise, guess = torch.randn(3, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    abar = process("x0").alphas_bar.reshape(-1, 1, 1, 1)
    losses = []
    for prediction in ("epsilon", "x0", "v"):
        diffusion = process(prediction)
        eps = diffusion.predict_epsilon(guess, diffusion.q_sample(x0, T, noise), T)
        output = {"epsilon": eps, "x0": guess, "v": abar.sqrt() * eps - (1 - abar).sqrt() * guess}[prediction]
        found = training_losses(diffusion, lambda *_, y=output: y, x0, T, noise=noise, weighting=weighting)
        losses.append(found["loss"])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_the_bound_of_a_learned_variance_has_no_weight() -> None:
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    output = torch.rand(3, 4, 4, 4, generator=g, dtype=torch.float64)
    diffusion = process("epsilon", variance="learned_range")
    plain, weighted = (
        training_losses(diffusion, lambda *_: output, x0, T, noise=noise, weighting=weighting)
        for weighting in (None, LossWeighting("min-snr"))
    )
    assert torch.equal(weighted["vb"], plain["vb"])
    expected = plain["mse"] * torch.tensor([5 / 9, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(weighted["mse"], expected)
    torch.testing.assert_close(weighted["loss"], expected + plain["vb"])


def test_errors() -> None:
    x = torch.zeros(3, 1, 2, 2)
    diffusion = process("epsilon", variance="learned_range")
    with pytest.raises(FastdiffError, match="loss weighting 'p2' is of the squared error, and loss 'kl'"):
        training_losses(diffusion, lambda *_: x, x, T, noise=x, loss="kl", weighting=LossWeighting("p2"))
    with pytest.raises(FastdiffError, match="unknown loss weighting 'p3'; known: none, min-snr, p2"):
        LossWeighting("p3")  # pyright: ignore
    for option, value in (("min_snr_gamma", 0), ("p2_k", 0), ("p2_gamma", -1), ("p2_gamma", math.nan)):
        with pytest.raises(FastdiffError, match=f"{option} must be"):
            LossWeighting(**{option: value})
