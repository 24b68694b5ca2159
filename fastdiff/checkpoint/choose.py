"""Choosing the weights to load from a file with several sets: an average if there is one, or the set requested."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from fastdiff.checkpoint.save import METADATA_KEY, TRAINING_KEY
from fastdiff.errors import FastdiffError
from fastdiff.files import DamagedFile, parse_json

ANCHOR = "time_embed.0.weight"  # in every ADM-class network, and in it once
_WRAPPERS = {"module", "_orig_mod", "state_dict"}  # DistributedDataParallel, torch.compile, and files
_AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])|averag|shadow", re.IGNORECASE)
_LOG = logging.getLogger(__name__)


class WeightSet(NamedTuple):
    """One network's weights in a file."""

    label: str  # its name
    averaged: bool
    names: dict[str, str]  # the network's tensor names, and their names in the file


def choose(file: Path, names: Collection[str], weights: str | None) -> dict[str, str]:
    """The network's own names of the chosen tensors, and their names in the file.

    A set begins where a name ends in ANCHOR: what stands before that is its prefix, such as "ema." of a dict in a dict,
    "module." or "model._orig_mod.".

    Args:
        names: the names in the file; those in nested dicts are joined by dots.
        weights: "ema", "raw", or the label of a set; None: the average if there is one.

    Raises:
        FastdiffError: no such set, or several that match.
    """
    found = _sets(names)
    if not found:
        if weights is not None:
            raise FastdiffError(f"{file} is not an ADM-class model: it has no {ANCHOR}")
        return {name.removeprefix("module."): name for name in names}
    return pick(file, found, weights).names


def training_sets(file: Path, metadata: dict[str, str], names: Collection[str]) -> list[WeightSet]:
    """The averages, the first of them the run's main one, and the raw weights of a training checkpoint.

    Raises:
        DamagedFile: its description cannot be read.
    """
    raw = {name.removeprefix("model."): name for name in names if name.startswith("model.")}
    known, sets = set(names), []
    for i, decay in enumerate(_described(file, metadata)["identity"]["ema"]):
        averaged = {name: f"optimizer.{name}.ema_{i}" for name in raw}
        # Buffers have no average.
        chosen = {name: own if own in known else raw[name] for name, own in averaged.items()}
        sets.append(WeightSet(f"ema-{decay}", True, chosen))
    return [*sets, WeightSet("raw", False, raw)]


def training_configuration(file: Path, metadata: dict[str, str]) -> dict[str, str]:
    """The metadata that the model of a training checkpoint would have if it were saved by itself."""
    about = _described(file, metadata)
    model = about["identity"]["model"]
    stored = {
        "kind": "classifier" if "num_outputs" in model else "unet",
        "model": model,
        "diffusion": about["identity"].get("diffusion"),
        "class_names": about.get("class_names", ()),
    }
    return {METADATA_KEY: json.dumps(stored)}


def pick(file: Path, found: list[WeightSet], weights: str | None) -> WeightSet:
    """The requested set. If there was a choice, the set chosen is logged.

    Raises:
        FastdiffError: no such set, or several that match.
    """
    labels = ", ".join(s.label for s in found)
    averages, raw = ([s for s in found if s.averaged == kind] for kind in (True, False))
    wanted = {None: averages or raw, "ema": averages, "raw": raw}.get(weights)
    if wanted is None or not wanted:
        wanted = [s for s in found if weights in (s.label, s.label.removeprefix("ema-"))]
    if not wanted:
        raise FastdiffError(f"{file} has no weights {weights!r}; it holds {labels}")
    if len(wanted) > 1 and not wanted[0].label.startswith("ema-"):  # a run's first average is the main one
        raise FastdiffError(f"{file} holds several sets of weights; give weights, one of {labels}")
    if len(found) > 1 and weights is None:
        _LOG.warning("%s holds the weights %s: %s are loaded", file, labels, wanted[0].label)
    return wanted[0]


def _sets(names: Collection[str]) -> list[WeightSet]:
    prefixes = sorted(n.removesuffix(ANCHOR) for n in names if n == ANCHOR or n.endswith(f".{ANCHOR}"))
    groups: dict[str, dict[str, str]] = {prefix: {} for prefix in prefixes}
    longest_first = sorted(prefixes, key=len, reverse=True)
    for name in names:
        prefix = next((p for p in longest_first if name.startswith(p)), None)
        if prefix is not None:
            groups[prefix][name.removeprefix(prefix)] = name
    return [WeightSet(label := _label(p), bool(_AVERAGE.search(_last(label))), g) for p, g in groups.items()]


def _label(prefix: str) -> str:
    """ "ema" of "ema.module."; "model" if nothing is left."""
    return ".".join(part for part in prefix.split(".") if part and part not in _WRAPPERS) or "model"


def _last(label: str) -> str:
    """The distinctive part of a label: "online_model" for "ema.online_model"; "model" alone is not distinctive."""
    parts = label.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def _described(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        about = parse_json(metadata[TRAINING_KEY])
        if not isinstance(about["identity"]["model"], dict) or not isinstance(about["identity"]["ema"], list):
            raise TypeError("another form")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{file}: its description of the training cannot be read: {error}") from None
    return about
