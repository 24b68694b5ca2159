"""``fastdiff presets``: the models fastdiff knows by name."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.zoo import PRESETS


@dataclass(frozen=True)
class Presets:
    """List the models fastdiff knows by name, with their size and the released file they describe."""

    def run(self) -> int:
        width = max(map(len, PRESETS))
        for name, preset in PRESETS.items():
            print(
                f"{name:<{width}}  {preset.model.image_size:>4} px  {preset.released or '-':<34} {preset.note}"
            )
        return 0
