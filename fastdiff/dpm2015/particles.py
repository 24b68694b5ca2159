"""Conditional sampling of bits by weighted and resampled particles.

If each reverse kernel is multiplied by r (section 2.5), r has almost no effect far from the data, because each noisy
bit by itself says little about r: the chain settles on a mode before r counts. Here r's expectation,

    r_t(x_t) = prod_i [ f_i d_i + (1 - f_i) (1 - d_i) ],    f_i = P(x_0,i = 1 | x_t), the network's

is the weight of several particles for each sample at every step (a twisted particle filter), which is exact in the
limit of many particles.
Source: Wu, Trippe, Naesseth, Blei & Cunningham 2023, "Practical and asymptotically exact conditional sampling in
diffusion models".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.diffusion.binomial import BinomialDiffusion
from fastdiff.dpm2015.bound import Network
from fastdiff.ops import bernoulli_step
from fastdiff.ops.philox import sample_seeds

_SMALLEST = 1e-30


def sample_weighted(
    diffusion: BinomialDiffusion,
    network: Network,
    like: Tensor,
    chance: Tensor,
    *,
    particles: int,
    seed: int,
    progress: Callable[[int], None],
) -> Tensor:
    """x_0 [N,*] from the model times r. chance: d [N,*], what r says of each bit; 1/2 says nothing."""
    n, shape = len(like), like.shape[1:]
    total = n * particles
    seeds = sample_seeds(total, seed)
    generator = torch.Generator().manual_seed(seed)
    d = chance.to(like.dtype).repeat_interleave(particles, 0)
    wide = like.new_zeros(total, *shape)

    def bits(probability: Tensor, step: int) -> Tensor:
        return bernoulli_step(probability.float().contiguous(), seeds, torch.tensor(step)).to(like.dtype)

    x = bits(diffusion.prior(wide).probs, diffusion.steps)
    output = network(x, torch.full((total,), diffusion.steps))
    expected = _log_chance(torch.sigmoid(output), d)
    log_weight = expected.clone()
    for step in range(diffusion.steps, 1, -1):
        x, output, expected, log_weight = _resampled(
            (x, output, expected), log_weight.reshape(n, particles), generator
        )
        x = bits(diffusion.reverse(output, x, torch.full((total,), step)).probs, step - 1)
        output = network(x, torch.full((total,), step - 1))
        new = _log_chance(torch.sigmoid(output), d)
        log_weight = log_weight + new - expected
        expected = new
        progress(1)
    # The last kernel is known in closed form, and so is what r makes of it.
    last = diffusion.forward(x, torch.full((total,), 1)).probs
    one, zero = last * d, (1 - last) * (1 - d)
    log_weight = log_weight + _log_chance(last, d) - expected
    x = bits(one / (one + zero).clamp_min(_SMALLEST), 0)
    progress(1)
    weights = torch.softmax(log_weight.reshape(n, particles), 1)
    chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return x.reshape(n, particles, *shape)[torch.arange(n), chosen]


def _log_chance(f: Tensor, d: Tensor) -> Tensor:
    """log r_t, [N]; bits of which nothing is known count as 1."""
    each = torch.where(d == 0.5, 1.0, f * d + (1 - f) * (1 - d))
    return each.clamp_min(_SMALLEST).log().flatten(1).sum(1)


def _resampled(
    state: tuple[Tensor, ...], log_weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Systematic resampling of the samples whose particles' effective number is below half of them."""
    n, particles = log_weight.shape
    weights = torch.softmax(log_weight, 1)
    few = 1 / (weights**2).sum(1) < particles / 2
    at = (torch.arange(particles) + torch.rand(n, 1, generator=generator)) / particles
    chosen = torch.searchsorted(weights.cumsum(1).to(at.dtype).contiguous(), at).clamp_max(particles - 1)
    chosen = torch.where(few[:, None], chosen, torch.arange(particles))
    rows = (chosen + particles * torch.arange(n)[:, None]).flatten()
    level = torch.where(few[:, None], 0.0, log_weight).flatten()
    return (*(x[rows] for x in state), level)
