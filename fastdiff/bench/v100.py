"""V100-days: the unit in which Dhariwal & Nichol 2021 (appendix A) compare what models cost to train."""

from __future__ import annotations

from fastdiff.bench.count import TRAINING_FLOPS_PER_MAC
from fastdiff.choices import UTILISATION
from fastdiff.errors import FastdiffError

V100_FLOPS = 120e12
"""Operations a second that the paper calls theoretical for a V100 in float16 (its data sheet: 125e12)."""
SECONDS_PER_DAY = 86400


def images_per_v100_second(macs: float, utilisation: float = 1.0) -> float:
    """Training throughput of one V100: u 120e12 / (6 macs), images a second.

    Args:
        macs: multiply-accumulates of one image's forward pass.
        utilisation: u; 1 gives table 7's theoretical column.

    Raises:
        FastdiffError: a number that is not positive.
    """
    _positive(macs=macs, utilisation=utilisation)
    return utilisation * V100_FLOPS / (TRAINING_FLOPS_PER_MAC * macs)


def v100_days(iterations: float, batch: float, images_per_second: float) -> float:
    """iterations x batch / (images per V100-second x 86400), the rule behind table 10.

    Raises:
        FastdiffError: a throughput that is not positive.
    """
    _positive(images_per_second=images_per_second)
    return iterations * batch / (images_per_second * SECONDS_PER_DAY)


def equivalent_v100_days(images: float, macs: float, utilisation: float = UTILISATION) -> float:
    """(a) Equivalent work: what ``images`` training images would take on a V100 that reaches ``utilisation``.

    images x 6 macs / (120e12 u) / 86400.

    Raises:
        FastdiffError: a number that is not positive.
    """
    return v100_days(images, 1, images_per_v100_second(macs, utilisation))


def normalised_v100_days(seconds: float, peak: float, mfu: float, utilisation: float = UTILISATION) -> float:
    """(b) Device-normalised: the time that was measured, weighted by what the device did in it.

    seconds x peak x mfu / (120e12 u) / 86400. With the mfu of :func:`model_flops_utilisation` over the same images
    this equals (a): the two differ only if one of the counts is wrong.

    Args:
        seconds: measured on the device.
        peak: the device's matrix peak, floating-point operations a second, measured.
        mfu: its model-FLOPs utilisation, from 0 to 1.

    Raises:
        FastdiffError: a utilisation that is not positive.
    """
    _positive(utilisation=utilisation)
    return seconds * peak * mfu / (V100_FLOPS * utilisation) / SECONDS_PER_DAY


def model_flops_utilisation(images_per_second: float, macs: float, peak: float) -> float:
    """images a second x 6 macs / peak: the share of the peak that the model's own arithmetic takes.

    More than the device executes is counted as if it were executed: Winograd's algorithm can exceed 1.

    Raises:
        FastdiffError: a peak that is not positive.
    """
    _positive(peak=peak)
    return images_per_second * TRAINING_FLOPS_PER_MAC * macs / peak


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise FastdiffError(f"{name} must be positive, got {value}")
