"""fastdiff.nn.Conv2d: PyTorch's layer in all but speed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastdiff.nn.layers as module
from fastdiff.backend import use_backend
from fastdiff.nn import Conv2d

CHANNELS_LAST = torch.channels_last


def _layers(channels: int = 32, out_channels: int = 48) -> tuple[Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    own = Conv2d(channels, out_channels).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
    plain = nn.Conv2d(channels, out_channels, 3, padding=1)
    plain.load_state_dict(own.state_dict())
    return own, plain


def _image(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=CHANNELS_LAST)


def _gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.float().square().mean().backward()
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]  # pyright: ignore[reportReturnType]


def test_is_torchs_layer_and_as_close_to_the_truth() -> None:
    own, plain = _layers()
    x = _image(4, 32, 16, 16)
    truth = _gradients(copy.deepcopy(plain).double(), x.double())
    for got, eager, true in zip(_gradients(own, x), _gradients(plain, x), truth, strict=True):
        size = float(true.abs().max())
        error, bound = (float((r.double() - true).abs().max()) for r in (got, eager))
        assert error <= 2 * bound + 8 * torch.finfo(torch.float32).eps * size
        assert got.shape == eager.shape and got.dtype == eager.dtype


def test_autocast_gives_its_dtype_and_float32_gradients() -> None:
    own, plain = _layers()
    x = _image(4, 32, 16, 16)
    truth = _gradients(copy.deepcopy(plain).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        got, eager = _gradients(own, x), _gradients(plain, x)
    assert [t.dtype for t in got] == [t.dtype for t in eager]
    for g, e, true in zip(got, eager, truth, strict=True):
        error, bound = (float((r.double() - true).norm() / true.norm()) for r in (g, e))
        assert error <= 2 * bound


@pytest.mark.parametrize(
    ("x", "layers", "backend"),
    [
        pytest.param(_image(2, 32, 6, 6).contiguous(), (32, 48), None, id="contiguous"),
        pytest.param(_image(2, 32, 6, 6).double(), (32, 48), None, id="float64"),
        pytest.param(_image(2, 3, 6, 6), (3, 48), None, id="image"),
        pytest.param(_image(2, 32, 6, 6), (32, 48), "eager", id="eager"),
    ],
)
def test_elsewhere_it_is_pytorch_to_the_bit(
    x: Tensor, layers: tuple[int, int], backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plain = (layer.to(x.dtype) for layer in _layers(*layers))
    monkeypatch.setattr(module, "conv2d", None)  # a call would fail
    with use_backend(backend or "cpu"):
        assert torch.equal(own(x), plain.to(memory_format=CHANNELS_LAST)(x))  # pyright: ignore[reportCallIssue]


def test_frozen_weights_still_pass_gradients_on() -> None:
    own, plain = _layers()
    for layer in (own, plain):
        layer.requires_grad_(False)
    x = _image(2, 32, 8, 8).requires_grad_()
    got, expected = (torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (own, plain))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("further", "options"),
    [((1,), {}), ((3, 2, 1), {"bias": False}), ((3,), {"padding": 2, "dilation": 2}), ((3, 1, 1, 1, 2), {})]
    + [
        ((5,), {"padding": 2}),
        ((3,), {"padding": 1, "padding_mode": "circular"}),
        (((1, 1), (1, 1)), {"bias": False}),
    ],
)
def test_other_convolutions_are_torchs(further: tuple, options: dict) -> None:
    """As libraries of adapters make them, of the class of the layer that they adapt."""
    own, plain = Conv2d(32, 48, *further, **options), nn.Conv2d(32, 48, *further, **options)
    plain.load_state_dict(own.state_dict())
    x = _image(2, 32, 12, 12)
    assert torch.equal(own(x), plain(x))


def test_a_geometry_that_is_changed_counts() -> None:
    own, plain = _layers()
    own.stride = plain.stride = (2, 2)
    x = _image(2, 32, 12, 12)
    torch.testing.assert_close(own(x), plain(x))
