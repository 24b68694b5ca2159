"""The paper's figures: slices and drift of the swiss roll, heartbeats, images, and the KL of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.dpm2015.data import heartbeat_sequences
from fastdiff.dpm2015.experiments import Trained
from fastdiff.dpm2015.sampling import sample
from fastdiff.plots import BLUE, GRID, INK, ORANGE, STYLE, pyplot
from fastdiff.sampling.conditions import Denoise

FORWARD, REVERSE = BLUE, ORANGE
Progress = Callable[[int], None]


def swiss_roll_picture(trained: Trained, *, points: int = 2000, seed: int = 0, progress: Progress) -> Any:
    """A matplotlib figure after the paper's figure 1.

    Rows: q(x_t) from the data; p(x_t) from the prior; the drift f_mu(x_t, t) - x_t. Columns: t = 0, T/2, 3T/5, T;
    the drift of the first column is that of t = 2, the last learned step.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("train")
    diffusion, data = trained.diffusion, trained.test[:points]
    times = [0, diffusion.steps // 2, 3 * diffusion.steps // 5, diffusion.steps]
    generator = torch.Generator().manual_seed(seed)
    backward = sample(diffusion, trained.network, data, seed=seed, keep=times, progress=progress)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, 4, figsize=(9.2, 7.1), dpi=120, layout="constrained")
        for column, t in enumerate(times):
            steps = torch.full((len(data),), t)
            x_t = diffusion.diffuse(data, steps, diffusion.noise(data, generator)) if t else data
            for axis, x, color in ((axes[0, column], x_t, FORWARD), (axes[1, column], backward[t], REVERSE)):
                axis.scatter(*x.T.numpy(), s=2.2, color=color, alpha=0.55, linewidths=0)
            words = {0: "t = 0", diffusion.steps: f"t = T = {diffusion.steps}"}.get(t, f"t = {t}")
            axes[0, column].set_title(words, fontsize=10)
            _draw_drift(axes[2, column], trained, max(t, 2), backward[t])
        for axis in axes.flat:
            axis.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal", xticks=[], yticks=[])
            axis.spines[["left", "bottom"]].set_visible(False)
            axis.set_facecolor("#f7f8f9")
        for axis, words in zip(axes[:, 0], ("forward  $q(x_t)$", "reverse  $p(x_t)$", "drift"), strict=True):
            axis.set_ylabel(words)
    return figure


def _draw_drift(axis: Any, trained: Trained, t: int, points: Tensor) -> None:
    """Arrows f_mu(x, t) - x, scaled to be seen: their length tells only within one panel."""
    line = torch.linspace(-2.6, 2.6, 19, dtype=points.dtype)
    x = torch.cartesian_prod(line, line)
    steps = torch.full((len(x),), t)
    with torch.no_grad():
        kernel = trained.diffusion.reverse(trained.network(x, steps), x, steps)
    drift = kernel.mean - x
    axis.scatter(*points[:600].T.numpy(), s=2, color="#c3cad2", linewidths=0)
    axis.quiver(*x.T.numpy(), *drift.T.numpy(), color=INK, width=0.006, headwidth=4, pivot="tail")


def heartbeat_picture(
    trained: Trained, best_kl: Tensor | None, *, samples: int = 30, seed: int = 0, progress: Progress
) -> Any:
    """A matplotlib figure: sequences on their way from noise to heartbeats, and the KL of each step.

    Args:
        best_kl: [T - 1] the oracle's divergences, drawn as a line to reach.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("train")
    diffusion = trained.diffusion
    steps = diffusion.steps
    times = [steps, round(0.6 * steps), round(0.3 * steps), round(0.1 * steps), 0]
    like = trained.test.new_zeros(samples, trained.test.shape[1])
    reverse = sample(diffusion, trained.network, like, seed=seed, keep=times, progress=progress)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.2, 5.6), dpi=120, layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        for axis, t in zip(upper.subplots(1, len(times)), times, strict=True):
            x = reverse[t].numpy()
            if t == 0:  # by phase, so that the five sequences are seen
                x = x[np.lexsort(x.T)]
            axis.imshow(x, cmap="Blues", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"t = {t}")
            axis.title.set_fontsize(10)
            axis.spines[["left", "bottom"]].set_visible(False)
        known = {tuple(row.tolist()) for row in heartbeat_sequences()}
        hits = sum(tuple(row.tolist()) in known for row in reverse[0])
        upper.suptitle(f"{samples} samples, {hits} of them heartbeats", fontsize=10)
        axis = lower.subplots()
        _draw_kl(axis, trained.bound.step_kl, REVERSE, "trained", smooth=max(1, steps // 100))
        if best_kl is not None:
            _draw_kl(axis, best_kl, INK, "best factorised kernel", smooth=max(1, steps // 100))
        axis.set(yscale="linear", ylim=(0, None))
        axis.legend(frameon=False, loc="lower right")
    return figure


def curve_picture(lines: Sequence[Mapping[str, Any]], trained: Trained, known: Mapping[str, float]) -> Any:
    """A matplotlib figure: K on held-out data over the iterations of training, and the final bound.

    Args:
        lines: a run's log, see :class:`fastdiff.dpm2015.run.Run`.
        known: values to compare with, by name, drawn as dashed lines.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("train")
    step, k, error = (np.array([line[name] for line in lines]) for name in ("step", "val_k", "val_k_error"))
    final, spread = trained.bound.k / trained.units, trained.bound.error / trained.units
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 3.6), dpi=120, layout="constrained")
        axis.fill_between(step, k - error, k + error, color=BLUE, alpha=0.2, linewidth=0)
        axis.plot(
            step, k, color=BLUE, linewidth=1.6, marker="o", markersize=3, label="held-out data, some steps"
        )
        axis.errorbar(
            step[-1], final, spread, color=INK, marker="D", markersize=5, capsize=3, linestyle="",
            label=f"final, all steps: {final:.3f}",
        )  # fmt: skip
        for (name, value), color in zip(known.items(), (ORANGE, INK), strict=False):
            axis.axhline(value, color=color, linestyle="--", linewidth=1.2, label=f"{name}: {value:.3f}")
        top = max(final, float(k.max()), *known.values(), final)
        # The first iterations may lie far below all others, which would then look flat.
        low = min(final, float(np.quantile(k, 0.1)), *known.values(), final)
        axis.set(xlabel="iteration", ylabel=f"K, bits a {trained.unit}", xlim=(0, step[-1] * 1.03))
        axis.set_ylim(low - 0.1 * (top - low + 0.1), top + 0.1 * (top - low + 0.1))
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.legend(frameon=False)
    return figure


HIDDEN = ("centre", "left", "right", "top", "bottom")


def hidden_part(like: Tensor, part: str) -> Tensor:
    """True where a picture [N,C,H,W] is hidden: its centre (half of its side), or one half."""
    height, width = like.shape[-2:]
    rows = {
        "top": (0, height // 2),
        "bottom": (height // 2, height),
        "centre": (height // 4, height - height // 4),
    }
    columns = {
        "left": (0, width // 2),
        "right": (width // 2, width),
        "centre": (width // 4, width - width // 4),
    }
    (y, end_y), (x, end_x) = rows.get(part, (0, height)), columns.get(part, (0, width))
    hidden = torch.zeros_like(like, dtype=torch.bool)
    hidden[..., y:end_y, x:end_x] = True
    return hidden


def images_picture(
    trained: Trained, *, rows: int = 3, hide: str = "centre", repeats: int = 5, noise: float = 1.0, seed: int = 0,
    progress: Progress,
) -> Any:  # fmt: skip
    """A matplotlib figure: data, samples, inpaintings of a hidden part, denoised pictures, and the KL of each step.

    Beside an inpainting are the image as it was and, as in the paper's figure 3, with noise in place of what is hidden.

    Args:
        hide: what is hidden, of HIDDEN; repeats: of each step, see :func:`fastdiff.dpm2015.sampling.sample`.
        noise: deviation of the Gaussian noise that is taken out again, in units of the data's (section 2.5).
        progress: called with 1 after each step, 3 T times.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("train")
    assert trained.scale is not None
    diffusion, network = trained.diffusion, trained.network
    count = 4 * rows
    data = trained.test[torch.arange(count + rows) % len(trained.test)]  # in turn, where there are few
    held = data[count:]
    hidden = hidden_part(held, hide)
    noisy = held + noise * torch.randn(held.shape, generator=torch.Generator().manual_seed(seed))
    made = sample(diffusion, network, torch.zeros_like(data[:count]), seed=seed, progress=progress)[0]
    inside = sample(
        diffusion, network, held, seed=seed, known=held, mask=~hidden, repeats=repeats, progress=progress
    )[0]
    denoise = Denoise(noisy, noise)
    clean = sample(diffusion, network, held, seed=seed, condition=denoise, progress=progress)[0]
    static = torch.randn(held.shape, generator=torch.Generator().manual_seed(seed + 1))
    cut = torch.where(hidden, static, held)
    grids = tuple(
        (words, _grid(_colour(trained.scale.to_grey(torch.stack(images, 1).flatten(0, 1))), rows, columns))
        for words, columns, images in (
            ("data", 4, [data[:count]]),
            ("samples", 4, [made]),
            (f"{hide} hidden, filled in", 3, [held, cut, inside]),
            ("noisy, denoised", 2, [noisy, clean]),
        )
    )
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.2, 4.6), dpi=120, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08)
        upper, lower = figure.subfigures(2, 1, height_ratios=(2.1, 1))
        panels = upper.subplots(1, 4, width_ratios=(4, 4, 3, 2))
        for axis, (words, grid) in zip(panels, grids, strict=True):
            axis.imshow(grid, interpolation="nearest")
            axis.set_title(words, fontsize=10)
            axis.axis("off")
        axis = lower.subplots()
        _draw_kl(axis, trained.bound.step_kl / trained.units, REVERSE, "", smooth=1)
        axis.set(xscale="log", ylabel="KL, bits a pixel")
    return figure


def _colour(images: Tensor) -> Tensor:
    """[N,1 or 3,H,W] to [N,3,H,W]."""
    return images.expand(-1, 3, -1, -1)


def _grid(images: Tensor, rows: int, columns: int) -> np.ndarray:
    """[rows * columns,C,H,W] to one picture [*,*,C], with white lines between."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=255)
    n, c, h, w = padded.shape
    return (
        padded.reshape(rows, columns, c, h, w)
        .permute(0, 3, 1, 4, 2)
        .reshape(rows * h, columns * w, c)
        .numpy()
    )


def _draw_kl(axis: Any, step_kl: Tensor, color: str, label: str, smooth: int) -> None:
    """Divergences over t, averaged over ``smooth`` neighbours."""
    kl = step_kl[: len(step_kl) // smooth * smooth].reshape(-1, smooth).mean(1).numpy()
    t = 2 + np.arange(len(kl)) * smooth + (smooth - 1) / 2
    axis.plot(t, kl, color=color, linewidth=1.6, label=label)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set(xlabel="step t", ylabel="KL, bits", yscale="log", xlim=(2, len(step_kl) + 1))
