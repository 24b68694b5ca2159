"""The mirrored GaussianDiffusion against the published formulas: every type, every loop, the same random stream."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from guided_formulas import Formulas
from torch import Tensor

from fastdiff.interop.guided_diffusion import gaussian_diffusion as gd
from fastdiff.interop.guided_diffusion.resample import (
    LossSecondMomentResampler,
    create_named_schedule_sampler,
)
from fastdiff.interop.guided_diffusion.respace import SpacedDiffusion, space_timesteps

MEANS = {
    "epsilon": gd.ModelMeanType.EPSILON,
    "x0": gd.ModelMeanType.START_X,
    "previous": gd.ModelMeanType.PREVIOUS_X,
}
VARIANCES = {
    "fixed_small": gd.ModelVarType.FIXED_SMALL,
    "fixed_large": gd.ModelVarType.FIXED_LARGE,
    "learned": gd.ModelVarType.LEARNED,
    "learned_range": gd.ModelVarType.LEARNED_RANGE,
}
TYPES = list(itertools.product(MEANS, VARIANCES))
BETAS = gd.get_named_beta_schedule("cosine", 60)
SHAPE = (3, 2, 5, 4)


def _model(variance: str) -> Any:
    """Smooth in x and t; the second half of its channels, if any, varies between -1 and 1."""
    weight = torch.randn(4 if "learned" in variance else 2, 2, generator=torch.Generator().manual_seed(3))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(()))  # loops ask for its device

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            wave = torch.cos(t.to(x.dtype) / 170).reshape(-1, 1, 1, 1)
            return torch.tanh(torch.einsum("oc,nchw->nohw", weight.to(x.dtype), x) + wave)

    return Model()


def _guide(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return torch.sin(3 * x + t.to(x.dtype).reshape(-1, 1, 1, 1) / 9)


def _process(
    mean: str, variance: str, *, spaced: str = "", rescale: bool = False, loss: str = "MSE"
) -> tuple[Any, Formulas]:
    options = {
        "betas": BETAS,
        "model_mean_type": MEANS[mean],
        "model_var_type": VARIANCES[variance],
        "loss_type": gd.LossType[loss],
        "rescale_timesteps": rescale,
    }
    scale = 1000 / len(BETAS) if rescale else 1.0
    if not spaced:
        return gd.GaussianDiffusion(**options), Formulas(
            BETAS, list(range(len(BETAS))), mean, variance, scale
        )
    kept = sorted(space_timesteps(len(BETAS), spaced))
    abar = np.cumprod(1 - BETAS)[kept]
    betas = 1 - abar / np.append(1.0, abar[:-1])
    return SpacedDiffusion(set(kept), **options), Formulas(betas, kept, mean, variance, scale)


def _close(got: Tensor, truth: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), truth, rtol=tolerance, atol=tolerance * float(truth.abs().max()))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("mean", "variance"), TYPES)
@pytest.mark.parametrize("kind", ["ancestral", "ddim", "ddim-eta"])
@pytest.mark.parametrize(("spaced", "rescale"), [("", False), ("7,5", False), ("ddim20", True)])
def test_loops_draw_and_compute_the_same(mean, variance, clip, kind, spaced, rescale) -> None:
    """Each step from the loop's own state, so that errors are those of one step."""
    process, formulas = _process(mean, variance, spaced=spaced, rescale=rescale)
    model = _model(variance)
    eta = 0.6 if kind == "ddim-eta" else 0.0
    loop = process.p_sample_loop_progressive if kind == "ancestral" else process.ddim_sample_loop_progressive
    options = {} if kind == "ancestral" else {"eta": eta}
    torch.manual_seed(11)
    steps = list(loop(model, SHAPE, clip_denoised=clip, **options))
    torch.manual_seed(11)
    x = torch.randn(*SHAPE)
    for i, out in zip(reversed(range(len(formulas.betas))), steps, strict=True):
        noise = torch.randn_like(x).double()
        with torch.no_grad():
            if kind == "ancestral":
                sample, x0 = formulas.ancestral(model, x.double(), i, noise, clip)
            else:
                sample, x0 = formulas.ddim(model, x.double(), i, noise, clip, eta)
        tolerance = 1e-5 if clip else 1e-4  # far from the data, x_0 is a small difference of large numbers
        _close(out["sample"], sample, tolerance)
        _close(out["pred_xstart"], x0, tolerance)
        x = out["sample"]


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
@pytest.mark.parametrize("spaced", ["", "12"])
def test_guidance(kind: str, spaced: str) -> None:
    process, formulas = _process("epsilon", "learned_range", spaced=spaced)
    model = _model("learned_range")
    loop = process.p_sample_loop_progressive if kind == "ancestral" else process.ddim_sample_loop_progressive
    torch.manual_seed(2)
    steps = list(loop(model, SHAPE, cond_fn=_guide, model_kwargs={}))
    torch.manual_seed(2)
    x = torch.randn(*SHAPE)
    for i, out in zip(reversed(range(len(formulas.betas))), steps, strict=True):
        noise = torch.randn_like(x).double()
        with torch.no_grad():
            function = formulas.ancestral if kind == "ancestral" else formulas.ddim
            sample, _ = function(model, x.double(), i, noise, True, cond_fn=_guide)
        _close(out["sample"], sample)
        x = out["sample"]


def test_guidance_needs_no_model_kwargs() -> None:
    process, _ = _process("epsilon", "fixed_small", spaced="5")
    assert process.p_sample_loop(_model("fixed_small"), SHAPE, cond_fn=_guide).shape == SHAPE


def test_denoised_fn_comes_before_the_clamp() -> None:
    process, formulas = _process("epsilon", "fixed_large")
    model, x, noise = _model("fixed_large"), torch.randn(SHAPE), torch.randn(SHAPE)
    torch.manual_seed(0)
    out = process.p_sample(model, x, torch.full((3,), 9), denoised_fn=lambda x0: 2 * x0)
    torch.manual_seed(0)
    noise = torch.randn_like(x).double()
    with torch.no_grad():
        sample, x0 = formulas.ancestral(model, x.double(), 9, noise, True, denoised_fn=lambda x0: 2 * x0)
    _close(out["sample"], sample)
    _close(out["pred_xstart"], x0)


def test_samples_may_be_at_different_times() -> None:
    process, formulas = _process("epsilon", "learned_range")
    model, x = _model("learned_range"), torch.randn(SHAPE)
    with torch.no_grad():
        out = process.p_mean_variance(model, x, torch.tensor([0, 7, 59]))
        for n, i in enumerate((0, 7, 59)):
            truth = formulas.moments(model, x[n : n + 1].double(), i, True)
            _close(out["mean"][n : n + 1], truth["mean"])
            _close(out["log_variance"][n : n + 1], truth["log_variance"])


@pytest.mark.parametrize("spaced", ["", "ddim20"])
def test_ddim_reverse(spaced: str) -> None:
    process, formulas = _process("epsilon", "learned_range", spaced=spaced)
    model, x = _model("learned_range"), torch.randn(SHAPE)
    with torch.no_grad():
        for i in range(len(formulas.betas)):
            out = process.ddim_reverse_sample(model, x, torch.full((3,), i))
            _close(out["sample"], formulas.ddim_reverse(model, x.double(), i, True))


@pytest.mark.parametrize("loss", ["MSE", "RESCALED_MSE", "KL", "RESCALED_KL"])
@pytest.mark.parametrize(("mean", "variance"), TYPES)
@pytest.mark.parametrize("spaced", ["", "20"])
def test_training_losses(mean: str, variance: str, loss: str, spaced: str) -> None:
    process, formulas = _process(mean, variance, loss=loss, spaced=spaced)
    model = _model(variance)
    t = torch.tensor([0, 4, 19])
    # In float64: far from the data, float32 says little about a formula.
    x0 = torch.rand(SHAPE, dtype=torch.float64) * 2 - 1
    noise = torch.randn(SHAPE, dtype=torch.float64)
    terms = process.training_losses(model, x0, t, noise=noise)
    for n, i in enumerate(t.tolist()):
        a, z = x0[n : n + 1], noise[n : n + 1]
        x_t = formulas.q_sample(a, i, z)
        bits = formulas.bound_bits(model, a, x_t, i, False)
        m = formulas.moments(model, x_t, i, False)
        target = {"epsilon": z, "x0": a, "previous": m["c0"] * a + m["ct"] * x_t}[mean]
        mse = ((target - m["out"]) ** 2).flatten(1).mean(1)
        steps = len(formulas.betas)
        if "KL" in loss:
            expected = bits * (steps if loss == "RESCALED_KL" else 1)
        elif "learned" in variance:
            expected = mse + bits * (steps / 1000 if loss == "RESCALED_MSE" else 1)
        else:
            expected = mse
        _close(terms["loss"][n : n + 1], expected.detach(), 1e-8)
        assert ("vb" in terms) == ("KL" not in loss and "learned" in variance)


def test_the_bound_trains_the_variance_alone() -> None:
    process, _ = _process("epsilon", "learned_range")
    x0, noise = torch.rand(SHAPE) * 2 - 1, torch.randn(SHAPE)
    out = torch.randn(3, 4, 5, 4, requires_grad=True)
    process.training_losses(lambda *_: out, x0, torch.tensor([3, 4, 5]), noise=noise)["vb"].sum().backward()
    assert out.grad is not None and not out.grad[:, :2].any() and out.grad[:, 2:].all()


def test_calc_bpd_loop() -> None:
    process, formulas = _process("epsilon", "learned_range", spaced="10")
    model, x0 = _model("learned_range"), torch.rand(SHAPE, dtype=torch.float64) * 2 - 1
    torch.manual_seed(8)
    got = process.calc_bpd_loop(model, x0)
    torch.manual_seed(8)
    columns = []
    with torch.no_grad():
        for i in reversed(range(10)):
            noise = torch.randn_like(x0)
            columns.append(formulas.bound_bits(model, x0, formulas.q_sample(x0, i, noise), i, True))
    _close(got["vb"], torch.stack(columns, dim=1), 1e-8)
    abar = np.cumprod(1 - formulas.betas)[-1]
    kl = 0.5 * (-1 - math.log(1 - abar) + (1 - abar) + abar * x0**2)
    _close(got["prior_bpd"], kl.flatten(1).mean(1) / math.log(2), 1e-8)
    _close(got["total_bpd"], got["vb"].sum(1) + got["prior_bpd"])
    assert got["mse"].shape == got["xstart_mse"].shape == (3, 10)


def test_q_mean_variance_and_posterior() -> None:
    process, formulas = _process("epsilon", "fixed_small")
    x0, x_t, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0, 5, 59])
    mean, variance, log_variance = process.q_mean_variance(x0, t)
    posterior = process.q_posterior_mean_variance(x0, x_t, t)
    for n, i in enumerate(t.tolist()):
        k = formulas.tables(i)
        _close(mean[n], math.sqrt(k["abar"]) * x0[n].double())
        _close(variance[n], torch.full(SHAPE[1:], 1 - k["abar"], dtype=torch.float64))
        _close(posterior[0][n], k["c0"] * x0[n].double() + k["ct"] * x_t[n].double())
        _close(posterior[2][n], torch.full(SHAPE[1:], k["log_small"], dtype=torch.float64))
    assert torch.equal(variance.log(), log_variance) or torch.allclose(
        variance.log(), log_variance, atol=1e-6
    )


def test_loops_upload_nothing_at_a_step() -> None:
    """After the first step no tensor is made from host data: no table goes to the device again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    process, _ = _process("epsilon", "learned_range", spaced="10")
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    loop = process.p_sample_loop_progressive(_model("learned_range"), SHAPE)
    next(loop)
    with Watch():
        next(loop)
    uploads = ("lift_fresh", "_to_copy", "_local_scalar_dense", "scalar_tensor")
    assert seen and not [
        name for name in seen if any(u in name for u in uploads) and "aten" in name and "int" in name
    ]
    assert any("reverse_step" in name for name in seen)


def test_space_timesteps_of_the_format() -> None:
    assert sorted(space_timesteps(100, "ddim25")) == list(range(0, 100, 4))
    assert sorted(space_timesteps(300, [10, 15, 20]))[:3] == [0, 11, 22]
    with pytest.raises(ValueError, match="whole stride"):
        space_timesteps(100, "ddim37")


def test_betas() -> None:
    cosine = gd.betas_for_alpha_bar(10, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)
    np.testing.assert_allclose(cosine, gd.get_named_beta_schedule("cosine", 10), rtol=1e-12)
    with pytest.raises(NotImplementedError):
        gd.get_named_beta_schedule("square", 10)


def test_schedule_samplers() -> None:
    process, _ = _process("epsilon", "fixed_small", spaced="5")
    np.random.seed(0)
    t, weights = create_named_schedule_sampler("uniform", process).sample(1000, "cpu")
    assert set(t.tolist()) == set(range(5)) and torch.equal(weights, torch.ones(1000))
    sampler = LossSecondMomentResampler(process, history_per_term=2)
    for value in (1.0, 3.0):
        sampler.update_with_local_losses(torch.arange(5), torch.tensor([value, 1, 1, 1, 1]))
    p = sampler.weights() / sampler.weights().sum()
    moments = np.array([math.sqrt(5), 1, 1, 1, 1])
    np.testing.assert_allclose(p, 0.999 * moments / moments.sum() + 0.001 / 5, rtol=1e-6)
    with pytest.raises(NotImplementedError):
        create_named_schedule_sampler("best", process)
