from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError

VARIANCES = ["fixed_small", "fixed_large", "learned", "learned_range"]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 and noise [4,3,2,5] float64, and steps that include both ends."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 2, 5, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(4, 3, 2, 5, generator=generator, dtype=torch.float64)
    return x0, noise, torch.tensor([0, 1, 500, 999])


def scalar_tables(diffusion: GaussianDiffusion) -> list[dict[str, float]]:
    """DDPM's equations, one timestep at a time."""
    rows, alpha_bar = [], 1.0
    for beta in diffusion.betas.tolist():
        previous, alpha_bar = alpha_bar, alpha_bar * (1 - beta)
        variance = (1 - previous) / (1 - alpha_bar) * beta
        rows.append({"beta": beta, "abar": alpha_bar, "prev": previous, "variance": variance})
    return rows


def test_q_sample_and_posterior(batch) -> None:
    x0, noise, t = batch
    diffusion = GaussianDiffusion()
    x_t = diffusion.q_sample(x0, t, noise)
    moments, posterior = diffusion.q_mean_variance(x0, t), diffusion.q_posterior(x0, x_t, t)
    rows = scalar_tables(diffusion)
    for i, step in enumerate(t.tolist()):
        r = rows[step]
        expected = math.sqrt(r["abar"]) * x0[i] + math.sqrt(1 - r["abar"]) * noise[i]
        torch.testing.assert_close(x_t[i], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments.mean[i], math.sqrt(r["abar"]) * x0[i])
        assert moments.variance[i].item() == pytest.approx(1 - r["abar"], rel=1e-12)
        assert moments.log_variance[i].item() == pytest.approx(math.log(1 - r["abar"]), rel=1e-12)
        # Bayes: precisions add; q(x_{t-1} | x_0) has variance 1 - prev, q(x_t | x_{t-1}) has variance beta.
        expected = x0[i]
        if step:
            precision = 1 / (1 - r["prev"]) + (1 - r["beta"]) / r["beta"]
            pull = math.sqrt(r["prev"]) / (1 - r["prev"]) * x0[i]
            pull = pull + math.sqrt(1 - r["beta"]) / r["beta"] * x_t[i]
            expected = pull / precision
            assert posterior.variance[i].item() == pytest.approx(1 / precision, rel=1e-10)
        torch.testing.assert_close(posterior.mean[i], expected, rtol=1e-10, atol=1e-10)
    assert posterior.variance[0] == 0  # one known point
    assert posterior.log_variance[0].item() == pytest.approx(math.log(rows[1]["variance"]), rel=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_target_and_predict_x0_are_inverse(batch, prediction) -> None:
    x0, noise, t = batch
    diffusion = GaussianDiffusion(DiffusionConfig(prediction=prediction))
    x_t = diffusion.q_sample(x0, t, noise)
    recovered = diffusion.predict_x0(diffusion.target(x0, t, noise), x_t, t)
    torch.testing.assert_close(recovered, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(diffusion.predict_epsilon(x0, x_t, t), noise, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variance", VARIANCES)
def test_reverse_variance(batch, variance) -> None:
    x0, noise, t = batch
    diffusion = GaussianDiffusion(DiffusionConfig(prediction="x0", variance=variance))
    v = torch.linspace(-1, 1, x0.numel(), dtype=torch.float64).reshape(x0.shape)
    output = torch.cat([x0, v], 1) if diffusion.config.learns_variance else x0
    x_t = diffusion.q_sample(x0, t, noise)
    moments = diffusion.p_mean_variance(lambda x, t: output, x_t, t)
    rows = scalar_tables(diffusion)
    for i, step in enumerate(t.tolist()):
        small, beta = rows[max(step, 1)]["variance"], rows[step]["beta"]
        expected = {
            "fixed_small": torch.tensor(math.log(small)),
            "fixed_large": torch.tensor(math.log(beta if step else small)),
            "learned": v[i],
            "learned_range": (v[i] + 1) / 2 * math.log(beta) + (1 - (v[i] + 1) / 2) * math.log(small),
        }[variance].double()
        torch.testing.assert_close(moments.log_variance[i], expected.expand_as(moments.log_variance[i]))
        if step or variance != "fixed_small":  # its variance at step 0 is 0, only the log is clipped
            torch.testing.assert_close(moments.variance[i], moments.log_variance[i].exp())
    torch.testing.assert_close(moments.mean, diffusion.q_posterior(x0, x_t, t).mean)


def test_clip() -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(prediction="x0"))
    x, t = torch.zeros(2, 1), torch.tensor([3, 7])
    clipped = diffusion.p_mean_variance(lambda x, t: torch.tensor([[3.0], [-2.0]]), x, t)
    free = diffusion.p_mean_variance(lambda x, t: torch.tensor([[3.0], [-2.0]]), x, t, clip=False)
    assert clipped.x0.tolist() == [[1], [-1]]
    assert free.x0.tolist() == [[3], [-2]]


def test_respaced_keeps_the_marginals_and_the_model_times() -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(rescale_timesteps=True, steps=4000))
    short = diffusion.respaced("ddim50")
    kept = torch.arange(0, 4000, 80)
    assert short.steps == 50
    torch.testing.assert_close(short.alphas_bar, diffusion.alphas_bar[kept], rtol=1e-12, atol=0)
    assert short.model_time(torch.tensor([0, 1, 49])).tolist() == [0, 20, 980]  # 80 x 1000/4000
    again = short.respaced(25)
    assert again.timestep_map.tolist() == kept[short.respaced(25).timestep_map // 80].tolist()
    assert again.config == diffusion.config


def test_model_time_is_whole_without_rescaling() -> None:
    time = GaussianDiffusion().respaced(10).model_time(torch.tensor([9, 0]))
    assert time.dtype == torch.int64
    assert time.tolist() == [999, 0]


def test_one_step_process() -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(variance="learned_range")).respaced(1)
    x, t = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    moments = diffusion.p_mean_variance(lambda x, t: torch.zeros(1, 2), x, t)
    assert moments.variance.item() == pytest.approx(diffusion.betas[0].item())


def test_precision_follows_x_and_half_outputs_are_widened(batch) -> None:
    x0, _, t = batch
    diffusion = GaussianDiffusion()
    for dtype in (torch.float32, torch.float64):
        x = x0.to(dtype)
        moments = diffusion.p_mean_variance(lambda x, t: x.bfloat16(), x, t)
        assert {value.dtype for value in moments} == {dtype}


def test_errors() -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(variance="learned_range"))
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(FastdiffError, match=r"returned \[2, 3, 4, 4\].*'learned_range' needs \[2, 6, 4, 4\]"):
        diffusion.p_mean_variance(lambda x, t: x, x, torch.tensor([1, 2]))
    with pytest.raises(FastdiffError, match=r"one per sample, \[2\], got torch.int64 \[3\]"):
        diffusion.q_sample(x, torch.tensor([1, 2, 3]), x)
    with pytest.raises(FastdiffError, match="whole numbers"):
        diffusion.q_sample(x, torch.tensor([1.0, 2.0]), x)
