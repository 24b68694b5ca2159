"""Triton's launches, on its interpreter, where devices and sizes make a difference. Values: ``backends.each``.

The interpreter computes with NumPy what a GPU would. It cannot see races, nor how kernels are compiled
(test_triton_compiled.py).
"""

from __future__ import annotations

import importlib

import backends
import pytest
import torch

from fastdiff.backend import use_backend
from fastdiff.ops import first_passage, group_norm_silu
from fastdiff.ops.decision import METHODS, PARAMETERS

if not backends.INTERPRETED:
    pytest.skip("Triton does not interpret here", allow_module_level=True)
_triton = importlib.import_module("fastdiff.ops._triton")


def _trials(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = {"v": (-3, 3), "a": (0.5, 3), "z": (0.2, 1.2), "t0": (0.1, 0.3), "s": (0.5, 1)}
    rows |= {"sv": (0, 1), "sz": (0, 0.1), "st0": (0, 0.2)}
    p = {k: torch.linspace(*rows[k], n) for k in PARAMETERS}
    return torch.arange(n) * 2**33 - 5, p


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_is_the_same_in_any_launch(method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided, among fewer trials, and with one program for all of them, whose lanes take up several each."""
    seeds, p = _trials(75)
    with use_backend("triton"):
        whole = first_passage(seeds, **p, method=method, dt=0.02, t_max=0.4)
        part = first_passage(
            seeds[5::7], **{k: x[5::7] for k, x in p.items()}, method=method, dt=0.02, t_max=0.4
        )
        monkeypatch.setattr(_triton, "device_of", lambda device: _triton.Device(1))
        monkeypatch.setattr("fastdiff.ops.decision.triton._PROGRAMS", 1)
        monkeypatch.setattr("fastdiff.ops.decision.triton._LANES", 32)
        alone = first_passage(seeds, **p, method=method, dt=0.02, t_max=0.4)
    for a, b, c in zip(whole, part, alone, strict=True):
        torch.testing.assert_close(a[5::7], b, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(a, c, rtol=0, atol=0, equal_nan=True)
    with use_backend("triton"):
        assert len(first_passage(seeds[:0], **{k: x[:0] for k, x in p.items()}).rt) == 0


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_large_images_in_slices_for_the_cache(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of a few KB and two multiprocessors: several launches, each with chunks of several tiles."""
    monkeypatch.setattr(_triton, "device_of", lambda device: _triton.Device(2, 3 * 2**18))
    module = importlib.import_module("fastdiff.ops.group_norm_silu.triton")
    monkeypatch.setattr(module, "_WHOLE", 4096)
    module._plan.cache_clear()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 48, 23, 31, generator=g) + 100
    x = x.to(memory_format=torch.channels_last) if last else x
    leaves = [
        x,
        *(torch.randn(48, generator=g) for _ in range(2)),
        *(torch.randn(2, 48, generator=g) for _ in range(2)),
    ]
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        with use_backend(backend):
            x, w, b, s, t = (leaf.to(dtype).requires_grad_() for leaf in leaves)
            y = group_norm_silu(x, 8, w, b, scale=s, shift=t)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, w, b, s, t))])
    module._plan.cache_clear()
    for got, truth in zip(*results, strict=True):
        size = float(truth.detach().abs().max())
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=3e-5 * size)
