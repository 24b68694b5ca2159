from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.likelihood import discretized_gaussian_log_likelihood
from fastdiff.diffusion.loss import training_losses
from fastdiff.errors import FastdiffError

STEPS = 4000
T = torch.tensor([0, 1, 1500, 3999])


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 on 8-bit levels and noise [4,2,3,3], and an output with twice the channels; float64."""
    g = torch.Generator().manual_seed(3)
    x0 = torch.randint(0, 256, (4, 2, 3, 3), generator=g).double() * 2 / 255 - 1
    noise = torch.randn(4, 2, 3, 3, generator=g).double()
    output = 0.5 * torch.randn(4, 4, 3, 3, generator=g).double()
    return x0, noise, output


def expected_vb(diffusion, x0, noise, output) -> torch.Tensor:
    """The bound's terms from torch's own distributions, one sample at a time, with learned_range."""
    result = []
    for i, t in enumerate(T.tolist()):
        beta, abar = float(diffusion.betas[t]), float(diffusion.alphas_bar[t])
        prev = float(diffusion.alphas_bar_prev[t])
        small = float(diffusion.posterior_variance[max(t, 1)])
        x_t = math.sqrt(abar) * x0[i] + math.sqrt(1 - abar) * noise[i]
        c_0, c_t = beta * math.sqrt(prev) / (1 - abar), (1 - prev) * math.sqrt(1 - beta) / (1 - abar)
        x0_hat = (x_t - math.sqrt(1 - abar) * output[i, :2]) / math.sqrt(abar)
        mean, fraction = c_0 * x0_hat + c_t * x_t, (output[i, 2:] + 1) / 2
        std = torch.exp(0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(small)))
        if t == 0:
            bits = -discretized_gaussian_log_likelihood(x0[i], mean, 2 * std.log())
        else:
            bits = kl_divergence(Normal(c_0 * x0[i] + c_t * x_t, math.sqrt(small)), Normal(mean, std))
        result.append(bits.mean() / math.log(2))
    return torch.stack(result)


@pytest.mark.parametrize("loss", ["mse", "rescaled_mse", "hybrid", "rescaled_hybrid", "kl", "rescaled_kl"])
def test_learned_variance(loss) -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(STEPS, variance="learned_range"))
    x0, noise, output = make_batch()
    result = training_losses(diffusion, lambda x, t: output, x0, T, noise=noise, loss=loss)
    mse = ((output[:, :2] - noise) ** 2).mean((1, 2, 3))
    vb = expected_vb(diffusion, x0, noise, output)
    expected = {
        "mse": mse + vb,
        "rescaled_mse": mse + STEPS / 1000 * vb,
        "hybrid": mse + vb,
        "rescaled_hybrid": mse + STEPS / 1000 * vb,
        "kl": vb,
        "rescaled_kl": STEPS * vb,
    }[loss]
    torch.testing.assert_close(result["vb"], vb, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(result["loss"], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_fixed_variance_is_the_plain_mean_squared_error(prediction) -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(STEPS, prediction=prediction))
    x0, noise, output = make_batch()
    seen = {}

    def model(x, t, y):
        seen.update(x=x, t=t, y=y)
        return output[:, :2]

    result = training_losses(diffusion, model, x0, T, noise=noise, loss="mse", y="label")
    alpha_bar = diffusion.alphas_bar[T].reshape(-1, 1, 1, 1)
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    target = {"epsilon": noise, "x0": x0, "v": v}[prediction]
    torch.testing.assert_close(result["loss"], ((output[:, :2] - target) ** 2).mean((1, 2, 3)))
    assert set(result) == {"loss", "mse"}
    assert seen["y"] == "label"
    assert seen["t"].tolist() == T.tolist()
    torch.testing.assert_close(seen["x"], alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise)


def test_hybrid_bound_does_not_move_the_mean() -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(STEPS, variance="learned_range"))
    x0, noise, output = make_batch()
    output.requires_grad_()
    parts = training_losses(diffusion, lambda x, t: output, x0, T, noise=noise, loss="rescaled_hybrid")
    (gradient,) = torch.autograd.grad(parts["vb"].sum(), output)
    assert gradient[:, :2].abs().max() == 0
    assert gradient[:, 2:].abs().min() > 0


def test_errors() -> None:
    x0, noise, output = make_batch()
    diffusion = GaussianDiffusion()
    with pytest.raises(FastdiffError, match="unknown loss 'l1'; known: mse, rescaled_mse"):
        training_losses(diffusion, lambda x, t: x, x0, T, noise=noise, loss="l1")  # pyright: ignore
    with pytest.raises(FastdiffError, match="'hybrid' trains a learned variance, but .* 'fixed_small'"):
        training_losses(diffusion, lambda x, t: x, x0, T, noise=noise, loss="hybrid")
    with pytest.raises(FastdiffError, match=r"noise must have the shape of x0 \[4, 2, 3, 3\], got \[4, 1\]"):
        training_losses(diffusion, lambda x, t: x, x0, T, noise=noise[:, :1, 0, 0])
    with pytest.raises(FastdiffError, match="the model returned"):
        training_losses(diffusion, lambda x, t: output, x0, T % 1000, noise=noise)
