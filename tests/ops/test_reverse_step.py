"""reverse_step beyond the cases: a value by hand, flags, errors, and results that depend on nothing they should not."""

from __future__ import annotations

import math
from typing import Any

import backends
import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import normal, reverse_step
from fastdiff.ops._case import by_name
from fastdiff.ops.reverse_step import eager, reference, step_op
from fastdiff.ops.reverse_step.reference import Arguments

each_backend = backends.each("reverse_step")
both_layouts = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def _arguments(shape: tuple[int, ...] = (3, 3, 7, 5), **changes: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    n, c, *rest = shape
    kwargs: dict[str, Any] = {
        "x": torch.randn(shape, generator=g),
        "model_output": torch.randn(n, 2 * c, *rest, generator=g),
        "table": 0.3 + torch.rand(4, 12, generator=g),
        "index": torch.tensor(2),
        "seeds": torch.arange(n) - 1,
        "variance": "learned_range",
        "clip": True,
    }
    return kwargs | changes


def _to(layout: torch.memory_format, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.to(memory_format=layout) if isinstance(v, Tensor) and v.dim() == 4 else v
        for k, v in kwargs.items()
    }


@each_backend
@pytest.mark.parametrize(("variance", "clip"), [("none", False), ("learned", False), ("learned_range", True)])
def test_by_hand(backend: Backend, variance: str, clip: bool) -> None:
    row = [2.0, -0.5, 0.25, 0.75, 0.1, -0.2, 0.3, -3.0, -1.0, 0.9, 4.0, 0.0]
    x, m, u, v, h1, h2, z = 0.8, 0.4, 0.3, -0.2, 0.7, -0.6, 1.5
    guided = u + 4.0 * (m - u)
    x0 = 2.0 * x - 0.5 * guided  # 1.25
    x0 = min(1.0, x0) if clip else x0
    std = {
        "none": 0.3,
        "learned": 0.9 * math.exp(v / 2),
        "learned_range": 0.9 * math.exp((0.4 * -1.0 + 0.6 * -3.0) / 2),
    }[variance]
    expected = 0.25 * x + 0.75 * x0 + 0.1 * h1 - 0.2 * h2 + std * z

    def full(*values: float) -> Tensor:
        return torch.tensor(values).reshape(1, -1, 1, 1)

    second = () if variance == "none" else (v,)
    with use_backend(backend):
        x_next, got_x0, nonfinite = reverse_step(
            full(x),
            full(m, *second),
            torch.tensor([[0.0] * 12, row]),
            torch.tensor(1),
            uncond=full(u, *second),
            h1=full(h1),
            h2=full(h2),
            noise=full(z),
            clip=clip,
            variance=variance,
        )
    assert float(x_next) == pytest.approx(expected, rel=1e-6)
    assert float(got_x0) == pytest.approx(x0, rel=1e-6)
    assert nonfinite.tolist() == [0]


@each_backend
@both_layouts
def test_drawn_noise_is_that_of_normal(backend: Backend, layout: torch.memory_format) -> None:
    """With a = b = 0 and s = 1 the step is the noise; its elements are numbered alike in both layouts."""
    kwargs = _arguments(
        variance="none", stream=3, table=torch.zeros(4, 12).index_fill(1, torch.tensor(6), 1.0)
    )
    with use_backend(backend):
        got = reverse_step(**_to(layout, kwargs))[0]
        assert torch.equal(got, normal(kwargs["seeds"], (3, 7, 5), step=2, stream=3))


@both_layouts
@pytest.mark.parametrize("shape", [(3, 3, 7, 5), (2, 3, 96, 96), (25, 1, 28, 28), (5, 4, 61, 71)], ids=str)
def test_nothing_depends_on_threads_or_batch(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    kwargs = _to(layout, _arguments(shape))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(reverse_step(**kwargs))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    per_sample = ("x", "model_output", "seeds")
    alone = reverse_step(**(kwargs | {k: kwargs[k][-1:] for k in per_sample}))
    for one, batch in zip(alone, results[0], strict=True):
        assert torch.equal(one, batch[-1:])


@backends.each_kernel("reverse_step")
@pytest.mark.parametrize("seeded", [True, False], ids=["seeds", "deterministic"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_layouts_agree_to_the_bit(backend: Backend, channels: int, seeded: bool) -> None:
    kwargs = _arguments((3, channels, 19, 23))
    if not seeded:
        kwargs |= {"seeds": None, "variance": "none", "model_output": kwargs["model_output"][:, :channels]}
    with use_backend(backend):
        contiguous = reverse_step(**_to(torch.contiguous_format, kwargs))
        for mixed in (("x", "model_output"), ("x",), ("model_output",)):
            last = _to(torch.channels_last, {k: kwargs[k] for k in mixed})
            got = reverse_step(**(kwargs | last))
            assert all(torch.equal(a, b) for a, b in zip(got, contiguous, strict=True))
            assert got[0].stride() == torch.empty_like(last.get("x", kwargs["x"])).stride()


@each_backend
def test_views_with_gaps(backend: Backend) -> None:
    kwargs = _arguments((3, 3, 8, 8))
    expected = reverse_step(**kwargs)
    wide = torch.zeros(5, 5, 8, 8)
    wide[::2, 1:4] = kwargs["x"]
    for big in (wide, wide.to(memory_format=torch.channels_last)):
        with use_backend(backend):
            got = reverse_step(**(kwargs | {"x": big[::2, 1:4]}))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_rows_and_columns_apart_fall_back() -> None:
    kwargs = _arguments((2, 3, 8, 8))
    crop = torch.randn(2, 3, 9, 9)[..., :8, :8]
    got = reverse_step(**(kwargs | {"x": crop}))
    expected = reverse_step(**(kwargs | {"x": crop.contiguous()}))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    with use_backend("cpu"), pytest.raises(FastdiffError, match="neither contiguous nor channels_last"):
        reverse_step(**(kwargs | {"x": crop}))


@each_backend
@both_layouts
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("where", ["prediction", "variance", "uncond", "uncond-variance"])
@pytest.mark.parametrize("variance", ["none", "learned_range"])
def test_nonfinite_outputs_are_flagged(
    backend: Backend, layout: torch.memory_format, bad: float, where: str, variance: str
) -> None:
    kwargs = _arguments(variance=variance)
    kwargs["uncond"] = kwargs["model_output"].clone()
    channel = 4 if "variance" in where else 1
    kwargs["uncond" if "uncond" in where else "model_output"][1, channel, 6, 4] = bad
    with use_backend(backend):
        assert reverse_step(**_to(layout, kwargs))[2].tolist() == [0, 1, 0]


@each_backend
def test_several_programs_share_a_flag(backend: Backend) -> None:
    """A GPU's blocks each see a part of a sample."""
    x, out = torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 40)
    out[1, 2, 39, 39] = math.inf
    with use_backend(backend):
        assert reverse_step(**_arguments((2, 3, 40, 40), x=x, model_output=out, seeds=None, variance="none"))[
            2
        ].tolist() == [0, 1]


@each_backend
def test_state_alone_raises_no_flag_and_nan_passes_the_clamp(backend: Backend) -> None:
    kwargs = _arguments()
    kwargs["x"][2, 0, 0, 0] = math.nan
    with use_backend(backend):
        x_next, x0, nonfinite = reverse_step(**kwargs)
    assert nonfinite.tolist() == [0, 0, 0]
    assert x_next[2, 0, 0, 0].isnan() and x0[2, 0, 0, 0].isnan()
    assert int(x_next.isnan().sum()) == int(x0.isnan().sum()) == 1


@pytest.mark.parametrize("index", [-1, 4, 2**40])
@each_backend
def test_index_that_is_no_row(backend: Backend, index: int) -> None:
    """On a GPU the host does not look at it, as that would wait for the device; the result is NaN instead."""
    arguments = _arguments(index=torch.tensor(index))
    with use_backend(backend):
        if backend in backends.SIMULATED:
            assert reverse_step(**arguments)[0].isnan().all()
        else:
            with pytest.raises(FastdiffError, match=f"index {index} is not a row"):
                reverse_step(**arguments)


ERRORS = {
    "x-integer": ({"x": torch.zeros(3, 3, 7, 5, dtype=torch.int64)}, "x must be a floating-point"),
    "x-one-dimension": ({"x": torch.zeros(3)}, "x must be a floating-point"),
    "model-shape": ({"model_output": torch.zeros(3, 4, 7, 5)}, "model_output must be"),
    "model-integer": ({"model_output": torch.zeros(3, 6, 7, 5, dtype=torch.int32)}, "model_output must be"),
    "uncond-shape": ({"uncond": torch.zeros(3, 3, 7, 5)}, "uncond must be"),
    "h1-shape": ({"h1": torch.zeros(3, 6, 7, 5)}, "h1 must have x's shape"),
    "h2-dtype": ({"h2": torch.zeros(3, 3, 7, 5).half()}, "h2 must be float32"),
    "noise-shape": ({"noise": torch.zeros(1, 3, 7, 5), "seeds": None}, "noise must have x's shape"),
    "noise-and-seeds": ({"noise": torch.zeros(3, 3, 7, 5)}, "noise or seeds, not both"),
    "table-empty": ({"table": torch.zeros(0, 12)}, "table must be"),
    "table-columns": ({"table": torch.zeros(4, 11)}, "table must be"),
    "table-dtype": ({"table": torch.zeros(4, 12).half()}, "table must be"),
    "index-dtype": ({"index": torch.tensor(2, dtype=torch.int32)}, "index must be an int64 scalar"),
    "index-shape": ({"index": torch.tensor([2])}, "index must be an int64 scalar"),
    "variance-name": ({"variance": "fixed"}, "variance must be one of"),
    "variance-channels": ({"model_output": torch.zeros(3, 3, 7, 5)}, "needs 6 channels"),
    "seeds-dtype": ({"seeds": torch.zeros(3)}, "seeds must be int64"),
    "seeds-shape": ({"seeds": torch.zeros(2, dtype=torch.int64)}, r"seeds must have shape \[3\]"),
    "stream": ({"stream": -1}, "stream must be in"),
    "device": ({"h1": torch.zeros(3, 3, 7, 5, device="meta")}, "h1 is on meta"),
    "table-device": ({"table": torch.zeros(4, 12, device="meta")}, "table is on meta"),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FastdiffError, match=message):
        reverse_step(**_arguments(**changes))


NAMES = (
    *("x", "model_output", "table", "index", "uncond", "h1", "h2", "noise", "seeds"),
    *("stream", "clip", "variance"),
)


def _positional(kwargs: dict[str, Any]) -> list[Any]:
    """As the operator takes them."""
    return [({"stream": 0, "clip": False} | kwargs).get(name) for name in NAMES]


def _beyond_its_storage(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(4)
    return x


@pytest.mark.parametrize("key", [key for key in ERRORS if "device" not in key])
def test_kernels_decline_mistakes(key: str) -> None:
    """Before the check, which says what is wrong, has been asked."""
    assert step_op.why_not(Backend.CPU, *_positional(_arguments(**ERRORS[key][0])))


@pytest.mark.parametrize("name", ["x", "model_output", "table", "index", "seeds", "uncond", "h1", "h2"])
def test_kernels_decline_tensors_beyond_their_storage(name: str) -> None:
    kwargs = _arguments()
    kwargs |= {"uncond": kwargs["model_output"], "h1": kwargs["x"], "h2": kwargs["x"]}
    assert step_op.why_not(Backend.CPU, *_positional(kwargs)) is None
    kwargs[name] = _beyond_its_storage(kwargs[name])
    assert "reaches beyond its storage" in str(step_op.why_not(Backend.CPU, *_positional(kwargs)))


def _differentiable(noise: str, variance: str, clip: bool) -> dict[str, Any]:
    kwargs = _arguments((2, 3, 4, 5), variance=variance, clip=clip)
    if variance == "none":
        kwargs["model_output"] = kwargs["model_output"][:, :3]
    kwargs |= {"uncond": kwargs["model_output"].flip(2), "h1": kwargs["x"].flip(1), "h2": kwargs["x"].flip(3)}
    if noise == "given":
        kwargs |= {"seeds": None, "noise": kwargs["x"].flip(2)}
    return kwargs


LEAVES = ("x", "model_output", "table", "uncond", "h1", "h2", "noise")


@each_backend
@pytest.mark.parametrize("noise", ["given", "seeds"])
@pytest.mark.parametrize(("variance", "clip"), [("none", False), ("learned", False), ("learned_range", True)])
def test_gradients(backend: Backend, variance: str, clip: bool, noise: str) -> None:
    """Gradients of x' and x_0, against autograd through the plain operations in float64."""
    kwargs = _differentiable(noise, variance, clip)
    weights = [torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]

    def gradients(function: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {k: kwargs[k].to(dtype).requires_grad_() for k in LEAVES if kwargs.get(k) is not None}
        x_next, x0, _ = function(**kwargs | leaves)
        loss = (x_next * weights[0].to(dtype)).sum() + (x0 * weights[1].to(dtype)).sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    with use_backend(backend):
        got = gradients(reverse_step, torch.float32)
    expected = gradients(by_name(eager.reverse_step, Arguments), torch.float64)
    assert got.keys() == expected.keys() and len(got) == (7 if noise == "given" else 6)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-4, atol=1e-5)


def test_only_x0_wanted() -> None:
    kwargs = _differentiable("seeds", "learned", False)
    x = kwargs["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reverse_step(**kwargs | {"x": x})[1].sum(), x)
    torch.testing.assert_close(gradient, kwargs["table"][2, 0].expand_as(x))


def test_transforms_of_torch_func() -> None:
    """Forward mode, a batch of seeds, of models for one state with their gradients, and of steps."""
    kwargs = _differentiable("seeds", "learned_range", False)
    x, model = kwargs.pop("x"), kwargs.pop("model_output")

    def next_of(function: Any, **changes: Any) -> Any:
        return lambda x, model: function(x=x, model_output=model, **kwargs | changes)[0]

    exact = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in kwargs.items()
    }
    tangents = x.flip(1), model.flip(2)
    _, got = torch.func.jvp(next_of(reverse_step), (x, model), tangents)
    doubles = tuple(t.double() for t in (x, model, *tangents))
    _, expected = torch.func.jvp(
        next_of(by_name(eager.reverse_step, Arguments), **exact), doubles[:2], doubles[2:]
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)

    seeds = torch.arange(6).reshape(3, 2)
    many = torch.func.vmap(lambda s: next_of(reverse_step, seeds=s)(x, model))(seeds)
    assert torch.equal(many, torch.stack([next_of(reverse_step, seeds=s)(x, model) for s in seeds]))
    steps = torch.arange(4)
    many = torch.func.vmap(lambda i: next_of(reverse_step, index=i)(x, model))(steps)
    assert torch.equal(many, torch.stack([next_of(reverse_step, index=i)(x, model) for i in steps]))

    models = torch.stack([model, model.flip(1), 2 * model])
    of_x = torch.func.grad(lambda x, m: next_of(reverse_step)(x, m).square().sum())
    got = torch.func.vmap(of_x, in_dims=(None, 0))(x, models)
    torch.testing.assert_close(got, torch.stack([of_x(x, m) for m in models]), rtol=1e-5, atol=1e-5)


def test_reference_takes_batches_of_steps() -> None:
    """vmap of the specification itself: no value of a batch is asked for, none is written into what is no batch."""
    given = Arguments(*_positional(_arguments((2, 3, 4, 5))))
    steps = torch.arange(4)
    many = torch.func.vmap(lambda i: reference.reverse_step(given._replace(index=i))[0])(steps)
    one_by_one = [reference.reverse_step(given._replace(index=i))[0] for i in steps]
    torch.testing.assert_close(many, torch.stack(one_by_one))


def test_float64_falls_back() -> None:
    kwargs = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in _arguments().items()
    }
    assert reverse_step(**kwargs)[0].dtype == torch.float64
    with use_backend("cpu"), pytest.raises(FastdiffError, match="x is torch.float64"):
        reverse_step(**kwargs)


def test_eager_backend_takes_users_noise() -> None:
    """The deterministic step is the same; a stochastic one draws from torch's generator."""
    kwargs = _arguments(seeds=None)
    expected = reverse_step(**kwargs)[0]
    with use_backend("eager"):
        torch.testing.assert_close(reverse_step(**kwargs)[0], expected, rtol=1e-5, atol=1e-5)
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(reverse_step(**_arguments())[0])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
