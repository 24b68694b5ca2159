"""The tables of ``fastdiff bench v100-days``, in Markdown. Every figure's column says where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastdiff.bench import few_steps
from fastdiff.bench.count import count
from fastdiff.bench.measure import Result
from fastdiff.bench.published import SOURCE, TABLE_7, TABLE_10
from fastdiff.bench.v100 import images_per_v100_second
from fastdiff.choices import UTILISATION
from fastdiff.zoo import PRESETS


def counts() -> str:
    """Every preset's parameters, multiply-accumulates and training operations."""
    rows = []
    for name, preset in PRESETS.items():
        cost = count(preset.model)
        rows.append(
            (name, f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", f"{cost.training_flops / 1e9:.1f}")
        )
    return table(("model", "parameters", "GMACs forward", "GFLOPs of a training image"), rows)


def throughput() -> str:
    """Table 7 beside the figures that follow from the count."""
    head = (
        "model",
        "theoretical, counted",
        "theoretical, paper",
        "naive, paper",
        "optimized, paper",
        "of peak",
    )
    rows = []
    for name, row in TABLE_7.items():
        computed = images_per_v100_second(count(PRESETS[name].model).macs)
        naive, optimized = (
            f"{row.naive} (batch {row.naive_batch})",
            f"{row.optimized} ({row.optimized_batch})",
        )
        rows.append(
            (name, f"{computed:.1f}", f"{row.theoretical}", naive, optimized, f"{row.utilisation:.0%}")
        )
    return table(head, rows)


def training_days() -> str:
    """Table 10 beside iterations x batch / (images a second x 86400)."""
    rows = []
    for row in TABLE_10:
        computed = "" if row.computed_days is None else f"{row.computed_days:.1f}"
        parts = ("" if days is None else str(days) for days in (row.generator_days, row.classifier_days))
        rows.append((row.data, row.model, computed, *parts, row.total, str(row.fid), row.note))
    head = (
        *("data", "model", "generator, computed", "generator, paper", "classifier, paper"),
        *("total, paper", "FID, paper", "remark"),
    )
    return table(head, rows)


def few_step_training() -> str:
    """Training of EDM and consistency models, counted."""
    rows = []
    for run in few_steps.RUNS:
        whole = "" if run.images is None else f"{run.v100_days(run.images):.0f}"
        iterations = "" if run.iterations is None else f"{run.iterations // 1000}K"
        each = f"{run.v100_days(few_steps.IMAGES):.2f}"
        rows.append(
            (run.preset, run.method, f"{3 * run.passes:.0f}", str(run.batch), iterations, each, whole)
        )
    head = (
        *("model", "method", "passes of an image", "batch", "iterations"),
        *("V100-days of a million images, counted", "V100-days, counted"),
    )
    return table(head, rows)


def few_step_sampling(speeds: Mapping[str, float] | None = None, width: int | None = None) -> str:
    """Sampling a thousand images, in V100-seconds.

    Args:
        speeds: by preset, MACs a second that sampling was measured to reach on this device, for a column of seconds
            here; a classifier's are taken to be as fast.
        width: the channels to which the measured networks were reduced, if they were.
    """
    first, rows = few_steps.SAMPLING[0].macs, list[tuple[str, ...]]()
    for way in few_steps.SAMPLING:
        here = [] if speeds is None else [f"{1000 * way.macs / speeds[way.preset]:.0f}"]
        cheaper = f"{first / way.macs:.0f}x"
        rows.append((way.title, way.preset, str(way.calls), f"{way.v100_seconds():.1f}", cheaper, *here))
    head = ["sampling", "model", "calls", "V100-seconds of 1,000 images, counted", "cheaper"]
    whose = "" if width is None else f", at the speed of networks REDUCED to {width} channels"
    return table([*head, *([] if speeds is None else [f"seconds here{whose}"])], rows)


def measured(result: Result) -> str:
    """One preset's measurement; the caller prints the device."""
    options, config = result.options, result.config
    dtype = str(options.dtype).removeprefix("torch.")
    whose = "the real network" if options.width is None else f"REDUCED to {config.model_channels} channels"
    about = (
        f"{result.preset}, {whose}: {result.compute.parameters / 1e6:.2f} M parameters,"
        f" {result.compute.macs / 1e9:.2f} GMACs; batch {options.batch}, {dtype}, medians of {options.rounds}"
        f" turns; matrix peak, the fastest of the same turns: {result.peak / 1e9:.0f} GFLOP/s"
    )
    head = (
        *("measured here", "s a step", "images/s", "MFU", "(a) V100-days, equivalent work"),
        *("(b) V100-days, device-normalised", "(c) days on this device", "V100s, (a)/(c)"),
    )
    rows = [
        (
            *(row.side, f"{row.step_seconds:.3f}", f"{row.images_per_second:.2f}", f"{row.mfu:.1%}"),
            *(f"{row.equivalent:.4g}", f"{row.normalised:.4g}", f"{row.device_days:.4g}", f"{row.v100s:.3g}"),
        )
        for row in result.rows
    ]
    legend = (
        f"Days are for a million images; (a) and (b) take a V100 at {options.utilisation:.0%} of 120 TFLOP/s and"
        " agree by construction: MFU carries the comparison."
    )
    return "\n\n".join([about, table(head, rows), legend, *(f"Left out: {why}" for why in result.skipped)])


def published() -> str:
    """Counts and both of the paper's tables, with headings."""
    return "\n\n".join(
        (
            "Counted from the configurations:",
            counts(),
            f"Training images a second on one V100 ({SOURCE}, table 7; counted: 120e12 / (6 MACs)):",
            throughput(),
            f"V100-days ({SOURCE}, table 10; computed: iterations x batch / (optimized images/s x 86400)):",
            training_days(),
            f"EDM and consistency models (batch and iterations: {few_steps.SOURCE}; a V100 at {UTILISATION:.0%} of"
            " 120 TFLOP/s; without LPIPS's network; EDM's iterations are not published there):",
            few_step_training(),
            "Sampling ImageNet 64x64, on the same V100:",
            few_step_sampling(),
        )
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
