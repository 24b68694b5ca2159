"""``fastdiff presets``: the models fastdiff knows by name."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.cli.options import Device


@dataclass(frozen=True)
class Presets:
    """List the models that fastdiff knows by name, with what a step costs.

    The columns are: image size, parameters, memory of the weights in float32, multiply-accumulates (MACs) of one
    image's forward pass, the estimated time of that on this device in float32, where the weights are, a description.
    """

    device: Device = "auto"

    def run(self) -> int:
        from fastdiff.backend import usable_device
        from fastdiff.bench.costs import costs, macs_per_second
        from fastdiff.bench.machine import device_name
        from fastdiff.bench.words import columns
        from fastdiff.checkpoint import bundled
        from fastdiff.checkpoint.released import RELEASED
        from fastdiff.scalars import duration
        from fastdiff.zoo import PRESETS

        rate = macs_per_second(str(usable_device(self.device)))
        rows = [("name", "image", "parameters", "weights", "GMACs", "a step", "checkpoint", "")]
        for name, preset in PRESETS.items():
            cost, row = costs()[name], RELEASED.get(name)
            where = "bundled" if name in bundled() else "-"
            if row is not None:
                where = "downloaded" if row.path.is_file() else f"fastdiff fetch {name}"
            rows.append(
                (
                    name,
                    f"{preset.model.image_size} px",
                    f"{cost.parameters / 1e6:.1f} M",
                    f"{4 * cost.parameters / 1e9:.3f} GB",
                    f"{cost.macs / 1e9:.1f}",
                    duration(cost.macs / rate),
                    where,
                    preset.note,
                )
            )
        print(columns(rows, right=(1, 2, 3, 4, 5)))
        print(
            f"\nA step: one image through the network on {device_name(self.device)}, estimated from the MACs at"
            f" {rate / 1e9:.0f} GMAC/s."
        )
        return 0
