"""Importance sampling of diffusion times (IDDPM, section 3.3)."""

from __future__ import annotations

import torch

from fastdiff.training.timesteps import HISTORY, UNIFORM_SHARE, LossSecondMomentTimes, UniformTimes


def filled(losses: torch.Tensor) -> LossSecondMomentTimes:
    times = LossSecondMomentTimes(len(losses))
    for _ in range(HISTORY):
        times.update(torch.arange(len(losses)), losses)
    return times


def test_uniform_until_every_time_has_its_history() -> None:
    times = LossSecondMomentTimes(3)
    for _ in range(HISTORY):
        times.update(torch.tensor([0, 1]), torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(times.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_probabilities_are_the_root_second_moment() -> None:
    p = filled(torch.tensor([1.0, 2.0, 5.0])).probabilities()
    expected = (1 - UNIFORM_SHARE) * torch.tensor([1, 2, 5], dtype=torch.float64) / 8 + UNIFORM_SHARE / 3
    torch.testing.assert_close(p, expected)


def test_only_the_last_losses_count() -> None:
    times = filled(torch.tensor([9.0, 9.0]))
    for _ in range(HISTORY):
        times.update(torch.arange(2), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(
        times.probabilities()[1] / times.probabilities()[0], torch.tensor(2.9960).double(), atol=1e-3, rtol=0
    )


def test_weights_keep_the_loss_unbiased() -> None:
    losses = torch.tensor([0.5, 1.0, 3.0, 0.1])
    t, weight = filled(losses).draw(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close((losses[t] * weight).mean(), losses.mean(), rtol=0.01, atol=0)
    share = torch.bincount(t, minlength=4).double() / len(t)
    torch.testing.assert_close(share, filled(losses).probabilities(), atol=0.005, rtol=0)


def test_state_round_trip() -> None:
    times, other = filled(torch.tensor([1.0, 4.0])), LossSecondMomentTimes(2)
    other.load_state_dict({k: v.clone() for k, v in times.state_dict().items()})
    torch.testing.assert_close(times.probabilities(), other.probabilities(), rtol=0, atol=0)


def test_uniform() -> None:
    t, weight = UniformTimes(7).draw(5000, torch.Generator().manual_seed(0))
    assert t.unique().tolist() == list(range(7)) and (weight == 1).all()
