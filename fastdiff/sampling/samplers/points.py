"""Single noise levels, and rows made of updates of y = x / signal, in which most samplers are published."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row

# Above this sigma the state is pure noise, and y has no digits of the image left that a second stage could correct.
PURE_NOISE = 1e6
_NOTHING = (History.NONE, 0.0)
_LEAST_SIGNAL = 1e-8  # of pure noise, in place of 0, for which y would be infinite


class Point(NamedTuple):
    """One level: x = signal x_0 + noise z, which the model is given with ``time``."""

    signal: float
    noise: float
    time: float

    @property
    def sigma(self) -> float:
        return self.noise / self.signal


class Past(NamedTuple):
    """A history as a term of an update of y: ``coefficient`` times x_0, mix, or, with its ``point``, a state y."""

    kind: History
    coefficient: float
    point: Point | None = None


def points(levels: Levels) -> list[Point]:
    """The levels one by one."""
    signal = np.maximum(levels.signal, _LEAST_SIGNAL)
    return [
        Point(float(a), float(b), float(t))
        for a, b, t in zip(signal, levels.noise, levels.times, strict=True)
    ]


def point_at(levels: Levels, sigma: float) -> Point:
    """The level of the same process at another sigma above 0."""
    (point,) = points(levels.at(np.array([sigma])))
    return point


def has_one_stage(now: Point, after_sigma: float) -> bool:
    """True if a step of several model calls is a single first-order one: to the clean image, and from pure noise."""
    return after_sigma <= 0 or now.sigma > PURE_NOISE


def update(now: Point, after: Point, *past: Past, y: float, x0: float, std: float = 0.0) -> Row:
    """The row y' = y y + x0 x_0 + past + std z, where y' = x' / signal'.

    Args:
        now: the level of the state that the model is given.
        after: the level of y'.
        past: at most two histories.
    """
    terms = [
        (kind, coefficient * after.signal / (1.0 if point is None else point.signal))
        for kind, coefficient, point in past
        if coefficient
    ]
    (first, h1), (second, h2) = (*terms, _NOTHING, _NOTHING)[:2]
    return Row(
        time=now.time,
        signal=now.signal,
        noise=now.noise,
        x=y * after.signal / now.signal,
        x0=x0 * after.signal,
        h1=h1,
        history=first,
        h2=h2,
        history2=second,
        std=std * after.signal,
    )


def euler_step(now: Point, sigma: float, after: Point, std: float = 0.0) -> Row:
    """An Euler step dy = (y - x_0) / sigma dsigma from ``now`` to ``sigma``, then noise on the way to ``after``."""
    ratio = sigma / now.sigma
    return update(now, after, y=ratio, x0=1 - ratio, std=std)


def ancestral_split(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(down, up): a step from sigma to ``after`` as one down to sigma_down, and noise of deviation sigma_up.

        sigma_up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma),    sigma_down^2 = sigma'^2 - sigma_up^2

    eta = 1 is the posterior of DDPM's reverse chain.
    """
    up = min(after, eta * after * np.sqrt(sigma**2 - after**2) / sigma)
    return float(np.sqrt(after**2 - up**2)), float(up)
