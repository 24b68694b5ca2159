"""The bundled model draws what it is asked for, judged by a linear classifier of real Fashion-MNIST images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.checkpoint.load import ASSETS
from fastdiff.data.images import load_data

DATA = Path("/usr/share/datasets/fashion-mnist")
SAMPLES = 60


def test_size_and_description() -> None:
    assert (ASSETS / "fashion-mnist.safetensors").stat().st_size < 8_000_000
    model = fastdiff.load("fashion-mnist")
    assert model.config == fastdiff.PRESETS["fashion-mnist"].model
    assert model.diffusion == fastdiff.PRESETS["fashion-mnist"].diffusion
    assert len(model.class_names) == 10
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.5e6


def _features(images: Tensor) -> Tensor:
    """[N, 1, H, W] in [-1, 1] -> pixels and a constant, [N, H W + 1] float64."""
    pixels = images.double().flatten(1)
    return torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], dim=1)


@pytest.fixture(scope="module")
def classify():
    """Ridge regression onto one-hot labels, fitted to the 10 000 test images: about 4 of 5 are told right."""
    if not DATA.exists():
        pytest.skip(f"needs {DATA} (Debian package dataset-fashion-mnist)")
    data = load_data(DATA / "t10k-images-idx3-ubyte.gz", image_size=32, channels=1, num_classes=10, fit="pad")
    assert data.labels is not None
    x = _features(data.images.float() / 127.5 - 1)
    target = torch.nn.functional.one_hot(data.labels, 10).double()
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target)
    return lambda images: (_features(images) @ weights).argmax(dim=1)


@pytest.mark.parametrize(("guidance_scale", "right"), [(None, 0.7), (2.0, 0.75)])
def test_samples_are_told_apart(classify, guidance_scale, right) -> None:
    model = fastdiff.load("fashion-mnist")
    classes = torch.arange(SAMPLES) % 10
    images = fastdiff.sample(
        model,
        SAMPLES,
        classes=classes,
        sampler="dpmpp",
        steps=10,
        guidance_scale=guidance_scale,
        batch_size=30,
        progress=False,
    )
    accuracy = (classify(images) == classes).double().mean().item()
    print(f"guidance {guidance_scale}: {accuracy:.2f} of the samples are taken for their class")
    assert accuracy >= right


def test_classifier_is_small_and_described() -> None:
    name = "fashion-mnist-classifier"
    assert (ASSETS / f"{name}.safetensors").stat().st_size < 3_000_000
    classifier, denoiser = fastdiff.load(name), fastdiff.load("fashion-mnist")
    assert classifier.config == fastdiff.PRESETS[name].model
    assert classifier.class_names == denoiser.class_names
    steps = [fastdiff.GaussianDiffusion(model.diffusion).alphas_bar for model in (classifier, denoiser)]
    assert torch.equal(*steps), "it guides the bundled denoiser, so it must have seen the same noise"


@pytest.mark.skipif(not DATA.exists(), reason="needs the Debian package dataset-fashion-mnist")
@pytest.mark.parametrize(("t", "right"), [(0, 0.84), (500, 0.77), (900, 0.3)])
def test_classifier_is_right_at_every_noise_level(t: int, right: float) -> None:
    """Accuracy on 500 test images; docs/evaluation.md has it for all of them."""
    classifier = fastdiff.load("fashion-mnist-classifier")
    path = DATA / "t10k-images-idx3-ubyte.gz"
    data = load_data(path, image_size=32, channels=1, num_classes=10, fit="pad")
    assert data.labels is not None
    rows, times = torch.arange(500), torch.full((500,), t)
    x0 = data.fetch(rows).float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x_t = fastdiff.GaussianDiffusion(classifier.diffusion).q_sample(x0, times, noise)
    with torch.inference_mode():
        found = classifier(x_t, times).argmax(1)
    accuracy = (found == data.labels[rows]).double().mean().item()
    print(f"t = {t}: {accuracy:.1%} of the test images")
    assert accuracy >= right


def test_samples_differ() -> None:
    """Two samples of a class are different images, and no copies of the training images' mean."""
    model = fastdiff.load("fashion-mnist")
    images = fastdiff.sample(model, 8, classes=3, sampler="dpmpp", steps=10, progress=False)
    distances = torch.cdist(images.flatten(1), images.flatten(1))
    assert distances[~torch.eye(8, dtype=torch.bool)].min() > 1


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 60), (torch.bfloat16, 35)], ids=["f32", "bf16"])
def test_the_engine_draws_the_same_images(dtype: torch.dtype, least: float) -> None:
    """Against eager float32, as a signal-to-noise ratio with the range of a pixel as the peak."""
    model = fastdiff.load("fashion-mnist")
    options: dict = dict(classes=torch.arange(16) % 10, seed=1, sampler="dpmpp", steps=8, progress=False)
    with fastdiff.use_backend("eager"):
        wanted = fastdiff.sample(model, 16, **options)
    fastdiff.optimize(model, dtype)
    error = (fastdiff.sample(model, 16, **options) - wanted).double().square().mean()
    psnr = float(10 * torch.log10(2**2 / error))
    print(f"{dtype}: {psnr:.1f} dB")
    assert psnr >= least


# The model of few steps


def _few(steps: int, n: int, **options) -> Tensor:
    model = fastdiff.load("fashion-mnist-few")
    return fastdiff.sample(model, n, steps=steps, progress=False, **options)


def test_the_few_step_model_is_small_and_described() -> None:
    assert (ASSETS / "fashion-mnist-few.safetensors").stat().st_size < 8_000_000
    model, taught = fastdiff.load("fashion-mnist-few"), fastdiff.load("fashion-mnist")
    assert model.config == fastdiff.PRESETS["fashion-mnist-few"].model == taught.config
    assert model.diffusion == fastdiff.PRESETS["fashion-mnist-few"].diffusion
    assert model.class_names == taught.class_names
    usual = fastdiff.Sampler(model)
    assert (usual.sampler, usual.calls) == ("consistency", 2)


@pytest.mark.parametrize(("steps", "right"), [(1, 0.7), (2, 0.7), (4, 0.7)])
def test_few_steps_are_told_apart(classify, steps: int, right: float) -> None:
    classes = torch.arange(SAMPLES) % 10
    accuracy = (classify(_few(steps, SAMPLES, classes=classes)) == classes).double().mean().item()
    print(f"{steps} steps: {accuracy:.2f} of the samples are taken for their class")
    assert accuracy >= right


def test_a_sample_of_few_steps_is_the_same_in_any_batch() -> None:
    """Bit for bit beside other images; to the network's rounding, which depends on the shape, in a smaller batch."""
    classes, seeds = torch.arange(12) % 10, torch.arange(12) + 5
    whole = _few(2, 12, classes=classes, seeds=seeds, batch_size=4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = _few(2, 12, classes=classes[order], seeds=seeds[order], batch_size=4)
    assert torch.equal(mixed, whole[order])
    parts = _few(2, 12, classes=classes, seeds=seeds, batch_size=5)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    distances = torch.cdist(whole.flatten(1), whole.flatten(1))
    assert distances[~torch.eye(12, dtype=torch.bool)].min() > 1
