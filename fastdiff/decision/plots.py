"""Plots of the model: walks with their response times, quantile-probability plots, subjects, recovery."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastdiff.decision.density import pdf
from fastdiff.decision.fit import Fit
from fastdiff.decision.posterior import Posterior
from fastdiff.decision.simulate import simulate
from fastdiff.decision.subjects import SubjectFits
from fastdiff.plots import BLUE, GRID, INK, ORANGE, STYLE, pyplot

UPPER, LOWER = BLUE, ORANGE
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_SHADES = ("#9fd0c9", "#5fb0b3", "#2f8a9b", "#1d6384", "#173f63")  # fast to slow


def paths_picture(rt: Any, choice: Any, model: dict[str, Any], *, walks: int = 14, seed: int = 0) -> Any:
    """A matplotlib figure: simulated walks between the boundaries, and observed times above and below them.

    Args:
        rt, choice: [N] observed trials, drawn as histograms that share one scale.
        model: parameters as :meth:`Fit.of` gives them (z and sz as fractions of a, t0 the lower edge), drawn as
            densities and as ``walks`` simulated walks.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("decision")
    rt, upper = np.asarray(rt, dtype=float), np.asarray(choice) == 1
    end = float(np.quantile(rt, 0.985)) * 1.05
    grid = np.linspace(1e-3, end, 400)
    edges = np.linspace(0, end, 56)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            3,
            1,
            sharex=True,
            figsize=(8.2, 6.4),
            dpi=120,
            height_ratios=(1.15, 2, 1.15),
            layout="constrained",
        )
        figure.get_layout_engine().set(h_pad=0.005, hspace=0)
        top = 0.0
        for axis, side, color in ((axes[0], 1, UPPER), (axes[2], 0, LOWER)):
            counts, _ = np.histogram(rt[upper == side], edges)
            heights = counts / len(rt) / np.diff(edges)
            density = pdf(grid, side, **model).numpy()
            axis.stairs(heights, edges, fill=True, color=color, alpha=0.35, linewidth=0)
            axis.plot(grid, density, color=color, linewidth=2)
            top = max(top, heights.max(), density.max())
        _draw_walks(axes[1], model, walks, seed, end)
        for axis, side, name, color in ((axes[0], 1, "upper", UPPER), (axes[2], 0, "lower", LOWER)):
            axis.set_ylim((0, 1.08 * top) if side else (1.08 * top, 0))
            axis.spines[["left", "bottom"]].set_visible(False)
            axis.set_yticks([])
            axis.tick_params(axis="x", length=0)
            share = float((upper == side).mean())
            words = f"{name} boundary: {100 * share:.1f} %"
            axis.text(0.985, 0.62 if side else 0.38, words, transform=axis.transAxes, ha="right", va="center",
                      color=color, fontweight="bold")  # fmt: skip
        axes[2].tick_params(axis="x", length=3)
        axes[2].set(xlabel="response time (s)", xlim=(0, end))
    return figure


def _draw_walks(axis: Any, model: dict[str, Any], walks: int, seed: int, end: float) -> None:
    a, t0 = model["a"], model["t0"]
    dt = end / 900
    drawn = simulate(**model, n=walks, seed=seed, method="bridge", dt=dt, t_max=end, return_paths=True)
    times = np.arange(drawn.paths.shape[1]) * dt
    colors = {1: UPPER, 0: LOWER, -1: "#8a919c"}
    for i, path in enumerate(drawn.paths.numpy()):
        side = int(drawn.choice[i])
        last = int(np.flatnonzero(~np.isnan(path))[-1])
        arrival = float(drawn.rt[i]) if side >= 0 else np.inf
        shift = arrival - times[last] if side >= 0 else t0  # this trial's own non-decision time
        color = colors[side]
        axis.plot([0, shift], [path[0]] * 2, color="#8a919c", alpha=0.35, linewidth=0.7)
        axis.plot(shift + times[: last + 1], path[: last + 1], color=color, alpha=0.7, linewidth=0.8)
        if side >= 0:
            axis.plot([arrival], [a * side], "o", color=color, markersize=3.5, clip_on=False, zorder=3)
    mean = np.array([0.0, end])
    slope = model["v"]
    reach = ((a if slope > 0 else 0.0) - model["z"] * a) / slope if abs(slope) > 1e-9 else end
    tip = min(reach, end - t0) * 0.6
    axis.annotate(
        "", (t0 + tip, model["z"] * a + slope * tip), (t0, model["z"] * a),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}, zorder=4,
    )  # fmt: skip
    axis.text(t0 + tip, model["z"] * a + slope * tip + 0.03 * a, f" drift v = {slope:.2f}", va="bottom", ha="right",
              fontweight="bold", zorder=5,
              bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})  # fmt: skip
    axis.text(t0 / 2, model["z"] * a + 0.02 * a, f"$t_0$ = {t0:.2f} s", ha="center", va="bottom", fontsize=9)
    for level, color in ((a, UPPER), (0, LOWER)):
        axis.plot(mean, [level, level], color=color, linewidth=2.2, zorder=2, solid_capstyle="butt")
    axis.set_ylim(0, a)
    axis.set_yticks([0, model["z"] * a, a], ["0", "z", "a"])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="x", length=0)


def quantile_probability_picture(fit: Fit, rt: Any, choice: Any, condition: list[str] | None) -> Any:
    """A matplotlib figure: quantiles of the response time over the probability of the response.

    Each condition stands twice, at the share of its upper responses and at that of its lower ones, as a column of
    five quantiles. Marks: the data. Lines: the fitted model, as the drift sweeps through the conditions; crosses where
    more than the drift differs between them.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("decision")
    rt, choice = np.asarray(rt, dtype=float), np.asarray(choice)
    labels = np.array(condition if condition is not None else ["all"] * len(rt))
    sweep = _only_drift_varies(fit)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8.2, 5.2), dpi=120, layout="constrained")
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        for side, line in ((1, "-"), (0, (0, (4, 2)))) if sweep else ():
            shares, quantiles = _model_curve(fit, side)
            for k, color in enumerate(_SHADES):
                axis.plot(shares, quantiles[:, k], color=color, linewidth=1.8, linestyle=line)
        for label in fit.conditions:
            here = labels == label
            if not sweep:
                _draw_predicted(axis, fit, label)
            for side, mark in ((1, "o"), (0, "s")):
                times = rt[here & (choice == side)]
                if len(times) < 10:
                    continue  # quantiles of so few mean nothing
                x, y = np.full(5, len(times) / here.sum()), np.quantile(times, QUANTILES)
                face = [color if side else "white" for color in _SHADES]
                axis.scatter(x, y, c=face, edgecolors=_SHADES, marker=mark, s=34, linewidths=1.4, zorder=3)
        for mark, face, line, words in (
            ("o", INK, "-", "upper boundary: data" + ", model" * sweep),
            ("s", "white", "--", "lower boundary: data" + ", model" * sweep),
        ):
            axis.plot(
                [],
                [],
                color=INK,
                marker=mark,
                markerfacecolor=face,
                linestyle=line if sweep else "",
                label=words,
            )
        if not sweep:
            axis.plot([], [], color=INK, marker="x", linestyle="", label="model")
        axis.legend(frameon=False, loc="lower right")
        axis.set_title(f"{fit.trials} trials, {len(fit.conditions)} conditions", loc="left", fontsize=10)
        axis.set(xlabel="response probability", ylabel="quantiles of the response time (s)", xlim=(0, 1))
        axis.set_ylim(bottom=0)
        first = _model_curve(fit, 1)[1][-1] if sweep else np.quantile(rt[choice == 1], QUANTILES)
        for k, q in enumerate(QUANTILES):
            axis.annotate(f"{q:g}", (1, first[k]), xytext=(5, 0), textcoords="offset points", va="center",
                          color=_SHADES[k], fontsize=9, annotation_clip=False)  # fmt: skip
    return figure


def _only_drift_varies(fit: Fit) -> bool:
    return (
        not fit.links
        and all(t.name == "v" or t.index is None for t in fit.problem.terms)
        and isinstance(fit.estimates["v"], list)
    )


def _draw_predicted(axis: Any, fit: Fit, label: str, trials: int = 100_000) -> None:
    """Draw crosses at the simulated model's quantiles of a condition, with the parameters of its observed trials."""
    here = np.flatnonzero(fit.problem.trials.codes.numpy() == fit.conditions.index(label))
    drawn = np.resize(here, max(trials, len(here)))
    model = {n: np.asarray(x)[drawn] if np.ndim(x) else x for n, x in fit.trial_parameters().items()}
    rt, choice = (x.numpy() for x in simulate(**model, n=len(drawn), seed=0))
    for side in (1, 0):
        times = rt[choice == side]
        if len(times) > 1000:
            x, y = np.full(5, len(times) / len(rt)), np.quantile(times, QUANTILES)
            axis.scatter(x, y, c=_SHADES, marker="x", s=40, linewidths=1.6, zorder=4)


def _model_curve(
    fit: Fit, side: int, drifts: int = 33, trials: int = 300_000
) -> tuple[np.ndarray, np.ndarray]:
    """Shares [M] and quantiles [M, 5] of one boundary over a sweep of drifts, from exact simulation."""
    low, high = min(fit.estimates["v"]), max(fit.estimates["v"])
    margin = 0.15 * (high - low) + 0.1 * fit.problem.design.s
    drift = np.linspace(low - margin, high + margin, drifts)
    model = {**fit.of(), "v": torch.from_numpy(drift).repeat_interleave(trials)}
    rt, choice = (x.numpy().reshape(drifts, trials) for x in simulate(**model, seed=0))
    shares, quantiles = [], []
    for times, chosen in zip(rt, choice, strict=True):
        times = times[chosen == side]
        if len(times) > 3000:
            shares.append(len(times) / trials)
            quantiles.append(np.quantile(times, QUANTILES))
    return np.array(shares), np.array(quantiles).reshape(-1, len(QUANTILES))


def subjects_picture(found: SubjectFits) -> Any:
    """A matplotlib figure: each parameter of each subject with its standard error, sorted, over the subjects' mean.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("decision")
    parts = list(found.columns().items())
    across = min(len(parts), 3)
    down = -(-len(parts) // across)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(down, across, figsize=(3.1 * across, 0.6 + 2.6 * down), dpi=120,
                                    layout="constrained", squeeze=False)  # fmt: skip
        for axis, ((name, label), (values, errors)) in zip(axes.flat, parts, strict=False):
            order = np.argsort(values)
            order = order[np.isfinite(values[order])]
            place = np.arange(len(order))
            axis.axhline(values[order].mean(), color=LOWER, linewidth=1.5)
            axis.errorbar(place, values[order], np.nan_to_num(errors[order]), fmt="o", color=UPPER, ecolor="#9db8cc",
                          markersize=3, linewidth=1)  # fmt: skip
            axis.set_title(f"{name} ({label})" if label else name, loc="left", fontsize=10)
            axis.set_xticks([])
            axis.set_xlabel(f"{len(order)} subjects, sorted")
        for axis in axes.flat[len(parts) :]:
            axis.set_visible(False)
    return figure


def posterior_picture(found: Posterior) -> Any:
    """A matplotlib figure by ArviZ: the posterior of each parameter (a group's, but not its subjects'), and the chains.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    import arviz as az  # pyright: ignore[reportMissingImports]

    with pyplot("posterior").rc_context(STYLE):
        axes = az.plot_trace(found.data, var_names=found.names, compact=False, combined=True,
                             backend_kwargs={"layout": "constrained"})  # fmt: skip
    return axes.ravel()[0].figure


def recovery_picture(
    true: dict[str, Any], found: dict[str, Any], errors: dict[str, Any] | None = None
) -> Any:
    """A matplotlib figure: recovered over true parameters, one panel each, with the correlation.

    Args:
        true, found: name -> [M] values, one for each simulated and fitted data set.
        errors: name -> [M] standard errors, drawn as bars.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    plt = pyplot("decision")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(true), figsize=(3 * len(true), 3.2), dpi=120, layout="constrained",
                                    squeeze=False)  # fmt: skip
        for axis, (name, values) in zip(axes[0], true.items(), strict=True):
            x, y = np.asarray(values, dtype=float), np.asarray(found[name], dtype=float)
            bars = None if errors is None else np.nan_to_num(np.asarray(errors[name], dtype=float))
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axis.plot(ends, ends, color=GRID, linewidth=2)
            axis.errorbar(x, y, bars, fmt="o", color=UPPER, ecolor="#9db8cc", markersize=3, linewidth=1)
            axis.set_title(f"{name}: r = {np.corrcoef(x, y)[0, 1]:.3f}", loc="left", fontsize=10)
            axis.set(xlabel="true", ylabel="recovered")
    return figure
