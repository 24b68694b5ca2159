"""Run by test_triton_interpreter.py in a process of its own, where Triton interprets."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from fastdiff.backend import use_backend
from fastdiff.ops import _triton, first_passage, group_norm_silu, normal, random_bits, reverse_step
from fastdiff.ops.decision import METHODS, PARAMETERS
from fastdiff.ops.philox import reference

assert _triton.INTERPRETED


def test_known_answers_of_philox() -> None:
    """Random123's, for the counter and key made of the digits of pi."""
    seeds = torch.tensor([0x299F31D0 << 32 | 0xA4093822])
    block = 0x03707344 << 32 | 0x243F6A88
    with use_backend("triton"):
        words = random_bits(seeds, 4, step=0x85A308D3, stream=0x13198A2E, first_block=block)
    assert words.tolist() == [[0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]]


def test_normals_are_within_a_few_units_in_the_last_place() -> None:
    seeds = torch.tensor([3, -4])
    with use_backend("triton"):
        got = normal(seeds, (20_001,), step=9).double()
    truth = reference.normal(seeds, (20_001,), step=9, dtype=torch.float64)
    unit = torch.exp2(torch.floor(torch.log2(truth.abs())) - 23)
    assert float(((got - truth).abs() / unit).max()) < 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    seeds = torch.tensor([5])
    with use_backend("triton"):
        assert torch.equal(normal(seeds, (999,), dtype=dtype), normal(seeds, (999,)).to(dtype))


def _trials(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = {"v": (-3, 3), "a": (0.5, 3), "z": (0.2, 1.2), "t0": (0.1, 0.3), "s": (0.5, 1)}
    rows |= {"sv": (0, 1), "sz": (0, 0.1), "st0": (0, 0.2)}
    p = {k: torch.linspace(*rows[k], n) for k in PARAMETERS}
    return torch.arange(n) * 2**33 - 5, p


@pytest.mark.parametrize(
    ("method", "every_step"), [("exact", False), ("bridge", False), ("bridge", True), ("euler", False)]
)
def test_walks_agree_with_the_reference(method, every_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.ops.decision.triton._LANES", 128)  # fewer and longer programs to interpret
    seeds, p = _trials(250)
    p["z"][3], p["z"][4], p["v"][5], p["a"][6], p["s"][7] = -1, 10, math.nan, math.nan, 0  # cannot begin
    ends = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            ends.append(first_passage(seeds, **p, method=method, dt=0.02, t_max=0.8, every_step=every_step))
    one, two = ends
    assert one.rt.isnan().nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    same = one.choice == two.choice
    assert float(same.float().mean()) > 0.99  # rounding may tip a decision, rarely
    torch.testing.assert_close(one.rt[same], two.rt[same], rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(one.position[same], two.position[same], rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("v", "s"), [(1e9, 1e-4), (-1e9, 1e-4), (0.0, 1e-12), (2500.0, 1.0)])
def test_walks_that_would_not_end_are_the_references(method, every_step: bool, v: float, s: float) -> None:
    values = {"v": v, "a": 1.4, "z": 0.75, "s": s}
    p = {name: torch.tensor(values.get(name, 0.0)).expand(9) for name in PARAMETERS}
    ends = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            ends.append(first_passage(torch.arange(9), **p, method=method, every_step=every_step))
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-10, equal_nan=True)


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


def _step(**changes) -> dict:
    g = torch.Generator().manual_seed(0)
    kwargs = {
        "x": torch.randn(3, 3, 7, 5, generator=g),
        "model_output": torch.randn(3, 6, 7, 5, generator=g),
        "table": 0.3 + torch.rand(4, 12, generator=g),
        "index": torch.tensor(2),
        "seeds": torch.arange(3) - 1,
        "variance": "learned_range",
        "clip": True,
    }
    return kwargs | changes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["model_output", "uncond"])
@pytest.mark.parametrize("channel", [1, 4])
def test_nonfinite_outputs_are_flagged(layout, bad: float, where: str, channel: int) -> None:
    kwargs = _step()
    kwargs["uncond"] = kwargs["model_output"].clone()
    kwargs[where][1, channel, 6, 4] = bad
    kwargs["model_output"] = kwargs["model_output"].to(memory_format=layout)
    with use_backend("triton"):
        assert reverse_step(**kwargs)[2].tolist() == [0, 1, 0]


def test_several_programs_share_a_flag_and_nan_passes_the_clamp() -> None:
    x, out = torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 40)
    x[0, 1, 1, 1], out[1, 2, 39, 39] = math.nan, math.inf
    with use_backend("triton"):
        x_next, x0, nonfinite = reverse_step(**_step(x=x, model_output=out, seeds=None, variance="none"))
    assert nonfinite.tolist() == [0, 1]
    assert x_next[0, 1, 1, 1].isnan() and int(x0.isnan().sum()) == 1


@pytest.mark.parametrize("index", [-1, 4, 2**40])
def test_an_index_that_is_no_row_reads_nothing_else(index: int) -> None:
    """The host does not look at it, as that would wait for the device; the result is NaN instead."""
    with use_backend("triton"):
        assert reverse_step(**_step(index=torch.tensor(index)))[0].isnan().all()


def test_drawn_noise_is_that_of_normal() -> None:
    """A table that gives the noise alone."""
    table = torch.zeros(2**8, 12)
    table[200, 6] = 1.0
    kwargs = _step(table=table, index=torch.tensor(200), stream=3, variance="none", clip=False)
    with use_backend("triton"):
        z = reverse_step(**kwargs)[0]
        assert torch.equal(z, normal(kwargs["seeds"], (3, 7, 5), step=200, stream=3))
    with use_backend("cpu"):
        torch.testing.assert_close(
            z, normal(kwargs["seeds"], (3, 7, 5), step=200, stream=3), rtol=1e-6, atol=1e-7
        )


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
