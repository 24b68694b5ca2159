"""``fastdiff presets``: the models fastdiff knows by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Presets:
    """List the models that fastdiff knows by name, with their image size, weights and description."""

    def run(self) -> int:
        from fastdiff.checkpoint import bundled
        from fastdiff.zoo import PRESETS

        width = max(map(len, PRESETS))
        here = bundled()
        for name, preset in PRESETS.items():
            weights = "bundled" if name in here else preset.released or "-"
            print(f"{name:<{width}}  {preset.model.image_size:>4} px  {weights:<34} {preset.note}".rstrip())
        return 0
