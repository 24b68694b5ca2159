"""The op first_passage_density: kernel against reference and mpmath, derivatives, shapes."""

from __future__ import annotations

import math

import backends
import pytest
import torch

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import first_passage_density as density
from fastdiff.ops.first_passage_density import first_passage_density_op as op
from fastdiff.ops.first_passage_density import reference
from fastdiff.ops.first_passage_density.reference import Arguments

mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")
each_backend = backends.each("first_passage_density")
NAMES = ("t", "v", "a", "w", "sv")


def _some(n: int, seed: int = 0) -> list[torch.Tensor]:
    """t, v, a, w, sv over what people fit and somewhat beyond, both sides of the split; [n] each, and upper."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=g, dtype=torch.float64)

    t, edge = uniform(math.log(1e-3), math.log(50)).exp(), uniform(-9, 0).exp()
    w = torch.where(torch.rand(n, generator=g) < 0.2, edge, uniform(0.01, 0.99))
    upper = torch.rand(n, generator=g) < 0.5
    return [t, uniform(-5, 5), uniform(0.3, 4), w, uniform(0, 2), upper]


def _exact(t: float, v: float, a: float, w: float, sv: float) -> float:
    """log f at the lower boundary with 60 digits, by reflections alone, however many that takes."""
    with mpmath.workdps(60):
        t, v, a, w, sv = map(mpmath.mpf, (t, v, a, w, sv))
        tau, growth = t / a**2, 1 + sv**2 * t
        total = mpmath.fsum((w + 2 * k) * mpmath.exp(-((w + 2 * k) ** 2) / 2 / tau) for k in range(-60, 61))
        series = total / mpmath.sqrt(2 * mpmath.pi * tau**3)
        exponent = ((sv * a * w) ** 2 - 2 * v * a * w - v**2 * t) / 2 / growth - mpmath.log(growth) / 2
        return exponent - 2 * mpmath.log(a) + mpmath.log(series)


@each_backend
def test_values_and_derivatives_are_exact(backend: Backend) -> None:
    """Against 60 digits; derivatives by mpmath's numerical differentiation of them."""
    *given, upper = _some(24)
    leaves = [x.clone().requires_grad_() for x in given]
    with use_backend(backend):
        values = density(*given, upper)
        slopes = torch.autograd.grad(density(*leaves, upper).sum(), leaves)
    for i in range(len(upper)):
        t, v, a, w, sv = (float(x[i]) for x in given)
        if t / a**2 > 8:
            continue  # 17 of the 60 digits cancel in the reflections, and more beyond
        at = (t, -v, a, 1 - w, sv) if upper[i] else (t, v, a, w, sv)
        signs = (1, -1, 1, -1, 1) if upper[i] else (1, 1, 1, 1, 1)
        wanted = _exact(*at)
        assert float(values[i]) == pytest.approx(float(wanted), rel=4e-14, abs=4e-14)
        for k, (sign, slope) in enumerate(zip(signs, slopes, strict=True)):
            with mpmath.workdps(60):
                exact = sign * mpmath.diff(
                    lambda x, k=k, at=at: _exact(*at[:k], x, *at[k + 1 :]), at[k], h=mpmath.mpf(10) ** -20
                )
            assert float(slope[i]) == pytest.approx(float(exact), rel=1e-10, abs=1e-10), NAMES[k]


@pytest.mark.parametrize("n", [1, 7, 8, 17, 20003])
def test_kernel_is_the_reference(n: int) -> None:
    """Lanes that are left over, both boundaries, times before the beginning."""
    t, *rest, upper = _some(n, seed=n)
    t[::5] *= -1
    t[n // 2] = 0
    found, slopes = op(t, *rest, upper, True)
    wanted, by = reference.first_passage_density(Arguments(t, *rest, upper, slopes=True))
    finite = wanted.isfinite()
    assert torch.equal(found.isneginf(), ~finite) and bool((t[~finite] <= 0).all())
    torch.testing.assert_close(found[finite], wanted[finite], rtol=2e-14, atol=2e-14)
    torch.testing.assert_close(slopes, by, rtol=1e-11, atol=1e-11)
    assert torch.equal(op(t, *rest, upper, False)[0], found)


def test_extreme_times_are_finite_or_nothing() -> None:
    t = torch.tensor([5e-324, 1e-300, 1e-100, 1e-5, 1e5, 1e300], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    found, slopes = op(t, 0 * one, one, 0.5 * one, 0 * one, None, True)
    assert not found.isnan().any()
    assert found[0] < -1e270 and float(found[4]) == pytest.approx(
        math.log(math.pi) - math.pi**2 / 2 * 1e5, rel=1e-12
    )
    assert not slopes[:, 2:].isnan().any()


def test_scalars_rows_and_strides_broadcast() -> None:
    """A parameter without dimension, rows, columns, and views that lie apart."""
    t, v, a, w, sv, upper = _some(60)
    full = density(t, v[:1].expand(60), a, w[0].expand(60), sv, upper)
    torch.testing.assert_close(density(t, v[0], a, w[0], sv, upper), full, rtol=0, atol=0)
    table = density(t[:, None], v[None, :5], a[0], w[0], sv[0], upper[:, None])
    assert table.shape == (60, 5)
    torch.testing.assert_close(table[:, 3], density(t, v[3], a[0], w[0], sv[0], upper), rtol=0, atol=0)
    wide = torch.stack([t, v, a, w, sv], dim=1)
    torch.testing.assert_close(
        density(*wide.unbind(1), upper), density(t, v, a, w, sv, upper), rtol=0, atol=0
    )
    assert density(t[0], v[0], a[0], w[0], sv[0]).shape == ()
    assert density(t[:0], v[0], a[0], w[0], sv[0]).shape == (0,)
    with pytest.raises(FastdiffError, match=r"must broadcast against one another, got \[60\], \[7\]"):
        density(t, v[:7], a, w, sv)


@each_backend
def test_derivatives_of_any_order(backend: Backend) -> None:
    t, *rest, upper = _some(300, seed=3)
    mild = ((t > 0.2) & (t < 3) & (rest[2] > 0.1) & (rest[2] < 0.9)).nonzero()[
        :6, 0
    ]  # for finite differences
    t, *rest, upper = (x[mild] for x in (t, *rest, upper))
    leaves = [
        x.requires_grad_() for x in (t, rest[0], rest[1][0], rest[2], rest[3][0])
    ]  # two without dimension
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *p: density(*p, upper), leaves)
        assert torch.autograd.gradgradcheck(lambda *p: density(*p, upper), leaves)
        tangents = [torch.randn_like(x) for x in leaves]
        forward = torch.func.jvp(lambda *p: density(*p, upper), tuple(leaves), tuple(tangents))[1]
        backward = sum(
            (g * d).sum()
            for g, d in zip(torch.autograd.grad(density(*leaves, upper).sum(), leaves), tangents, strict=True)
        )
        torch.testing.assert_close(forward.sum(), backward)
        inner = torch.autograd.grad(density(*leaves, upper).sum(), leaves, create_graph=True)
        assert all(x is not None for x in torch.autograd.grad(sum(g.sum() for g in inner), leaves))


def test_what_does_not_fit_is_refused() -> None:
    t, *rest, upper = _some(4)
    with pytest.raises(FastdiffError, match="v is torch.float32, t is torch.float64"):
        density(t, rest[0].float(), *rest[1:], upper)
    with pytest.raises(FastdiffError, match="upper is torch.float64"):
        density(t, *rest, upper.double())
    with pytest.raises(FastdiffError, match=r"w must have shape \[4\], got \[2\]"):
        op(t, *rest[:2], rest[2][:2], rest[3], upper, False)


def test_float32_runs_on_the_reference() -> None:
    t, *rest, upper = _some(50)
    assert "float32 is not float64" in (op.why_not(Backend.CPU, t.float(), *rest, upper, False) or "")
    found = density(t.float(), *(x.float() for x in rest), upper)
    torch.testing.assert_close(found.double(), density(t, *rest, upper), rtol=1e-3, atol=1e-3)


def test_threads_change_nothing() -> None:
    *given, upper = _some(40_000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = op(*given, upper, True)
        torch.set_num_threads(4)
        together = op(*given, upper, True)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))


def test_the_reference_needs_no_kernel() -> None:
    *given, upper = _some(100)
    with use_backend("reference"):
        plain = density(*given, upper)
    torch.testing.assert_close(plain, density(*given, upper), rtol=2e-14, atol=2e-14)
