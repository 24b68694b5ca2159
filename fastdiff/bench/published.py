"""Published figures, as printed in Dhariwal & Nichol 2021 (arXiv 2105.05233), tables 7 and 10.

Where a table contradicts the paper's other tables the printed figure is kept, and ``note`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.bench.v100 import v100_days

SOURCE = "Dhariwal & Nichol 2021, arXiv 2105.05233"


@dataclass(frozen=True)
class Throughput:
    """A row of table 7: training images a second on one V100, float16, communication between machines included."""

    preset: str
    theoretical: float  # 120e12 operations a second, all of them used
    naive: float
    naive_batch: int  # per GPU
    optimized: float  # larger batch, fused GroupNorm-Swish, fused Adam
    optimized_batch: int

    @property
    def utilisation(self) -> float:
        """Share of the V100's peak, 120e12 operations a second, that the optimized training reaches."""
        return self.optimized / self.theoretical


TABLE_7 = {
    row.preset: row
    for row in (
        Throughput("adm-64", 182.3, 37.0, 32, 74.1, 96),
        Throughput("adm-128", 65.2, 11.5, 4, 24.8, 32),
        Throughput("adm-256", 17.9, 4.4, 4, 6.4, 8),
        Throughput("adm-64-256", 31.7, 6.3, 4, 9.5, 12),
        Throughput("adm-128-512", 8.0, 1.9, 2, 2.3, 2),
    )
}


@dataclass(frozen=True)
class Stage:
    """One network's training run."""

    preset: str
    iterations: int
    batch: int

    @property
    def throughput(self) -> Throughput:
        """The LSUN models are adm-256 without classes and were trained at its speed."""
        return TABLE_7["adm-256" if self.preset.startswith("adm-lsun") else self.preset]

    @property
    def v100_days(self) -> float:
        """V100-days at the optimized speed of table 7."""
        return v100_days(self.iterations, self.batch, self.throughput.optimized)


@dataclass(frozen=True)
class Training:
    """A row of table 10. Days are whole V100-days as printed, None where none are; ``fid`` is the printed FID."""

    data: str
    model: str
    total: str  # days as printed; BigGAN-deep's is a range
    fid: float
    stages: tuple[Stage, ...] = ()  # of the generator; none: not this paper's own model
    generator_days: int | None = None
    classifier_days: int | None = None
    note: str = ""

    @property
    def computed_days(self) -> float | None:
        """The generator's V100-days by iterations x batch / (images a second x 86400)."""
        return sum(stage.v100_days for stage in self.stages) if self.stages else None


def _adm(data: str, model: str, days: tuple[int, int, int], fid: float, *stages: Stage, note: str = ""):
    generator, classifier, total = days
    return Training(data, model, str(total), fid, stages, generator, classifier or None, note)


def _s(preset: str, thousands: int) -> Stage:
    """A stage of so many thousand iterations, with the batch of tables 11 and 12."""
    return Stage(f"adm-{preset}", 1000 * thousands, 2048 if preset == "64" else 256)


_TPU = "half of its TPUv3 core-days"
_STACK = "printed metrics are those of the 512x512 stack; table 6 gives FID 3.94"
_HORSE, _CAT = "LSUN horse 256", "LSUN cat 256"
_128, _256, _512 = "ImageNet 128", "ImageNet 256", "ImageNet 512"

TABLE_10 = (
    Training(_HORSE, "StyleGAN2", "130", 3.84),
    _adm(_HORSE, "ADM 250K", (116, 0, 116), 2.95, _s("lsun-horse-nodropout", 250)),
    _adm(_HORSE, "ADM dropout 250K", (116, 0, 116), 2.57, _s("lsun-horse", 250)),
    Training(_CAT, "StyleGAN2", "115", 7.25),
    _adm(_CAT, "ADM dropout 200K", (92, 0, 92), 5.57, _s("lsun-cat", 200)),
    Training(_128, "BigGAN-deep", "64-128", 6.02, note=_TPU),
    _adm(_128, "ADM-G 4360K", (521, 9, 530), 3.09, _s("128", 4360)),
    _adm(_128, "ADM-G 450K", (54, 9, 63), 5.67, _s("128", 450)),
    Training(_256, "BigGAN-deep", "128-256", 6.95, note=_TPU),
    _adm(_256, "ADM-G 1980K", (916, 46, 962), 4.59, _s("256", 1980)),
    _adm(_256, "ADM-G 750K", (347, 46, 393), 6.49, _s("256", 750)),
    _adm(_256, "ADM-G 750K, classifier 150K", (347, 14, 361), 6.68, _s("256", 750)),
    _adm(
        _256, "ADM-G 540K + ADM-U 500K", (329, 30, 359), 3.85, _s("64", 540), _s("64-256", 500), note=_STACK
    ),
    _adm(_256, "ADM-G 540K + ADM-U 150K", (219, 30, 249), 4.15, _s("64", 540), _s("64-256", 150)),
    _adm(
        _256,
        "ADM-G 200K + ADM-U 150K",
        (110, 10, 126),
        4.93,
        _s("64", 200),
        _s("64-256", 150),
        note="the printed parts add up to 120, not 126",
    ),
    Training(_512, "BigGAN-deep", "256-512", 8.43, note=_TPU),
    _adm(_512, "ADM-G 4360K + ADM-U 1050K", (1878, 36, 1914), 3.85, _s("128", 4360), _s("128-512", 1050)),
    _adm(_512, "ADM-G 500K + ADM-U 100K", (189, 9, 198), 7.59, _s("128", 500), _s("128-512", 100)),
)
