"""Files of low-rank adapters, which are read together with the checkpoint that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdiff.checkpoint.read import read
from fastdiff.checkpoint.save import METADATA_KEY, description
from fastdiff.errors import FastdiffError
from fastdiff.files import parse_json, write_tensors
from fastdiff.models import Classifier, UNet
from fastdiff.models.lora import added, split


def save_lora(file: Path, model: UNet | Classifier, trained: Mapping[str, Tensor], base: str) -> None:
    """Write what was trained: adapters, and parameters that the checkpoint ``base`` did not have in this form.

    Args:
        model: the network, for its configuration.
        trained: tensors by their names in the network with adapters.
        base: the checkpoint, a file or the name of a bundled model.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in split(trained).items()}
    write_tensors(file, tensors, {METADATA_KEY: json.dumps({**description(model), "base": base})})


def base_of(metadata: Mapping[str, str]) -> str | None:
    """The checkpoint that a file's adapters were trained on; None for a file of another kind."""
    try:
        base = parse_json(metadata[METADATA_KEY]).get("base")
    except (ValueError, KeyError, AttributeError):
        return None  # what is wrong with it is told when the configuration is read
    return base if isinstance(base, str) else None


def with_base(file: Path, tensors: Mapping[str, Tensor], base: Path) -> dict[str, Tensor]:
    """The whole network's tensors: those of ``base``, with the adapters added, and those that ``file`` has whole.

    Raises:
        FastdiffError: a base without the layers of the adapters, or with layers of another shape.
    """
    found = read(base)[0]
    for name, a in tensors.items():
        layer, adapted, _ = name.partition(".lora_A.weight")
        if adapted:
            weight, b = found.get(f"{layer}.weight"), tensors.get(f"{layer}.lora_B.weight")
            if weight is None or b is None or (len(weight), weight[0].shape) != (len(b), a.shape[1:]):
                raise FastdiffError(
                    f"{file} does not fit {base}: {layer}.weight is not what it was trained on"
                )
            found[f"{layer}.weight"] = added(weight.to(a.dtype), a, b)
    return found | {name: value for name, value in tensors.items() if ".lora_" not in name}
