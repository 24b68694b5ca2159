"""A run's options as a JSON file: OUT/config.json, which ``--config`` and :func:`read_config` read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffError, nearest, reason
from fastdiff.files import atomic_path, parse_json
from fastdiff.training.config import TrainConfig

NAME = "config.json"


def write_config(config: TrainConfig) -> None:
    """Write every option, as resolved, to OUT/config.json. Relative paths stay so, as on the command line."""
    values = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    with atomic_path(config.out / NAME, durable=False) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=str, ensure_ascii=False) + "\n", "utf-8")


def read_options(path: Path) -> dict[str, Any]:
    """The options in a JSON file {"data": "photos", "steps": 20000, ...}, by the names of :class:`TrainConfig`.

    Raises:
        FastdiffError: no such file, another form, or an unknown option, with the nearest known one.
    """
    try:
        options = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FastdiffError(f"cannot read {path}: {reason(error)}") from None
    if not isinstance(options, dict):
        raise FastdiffError(
            f'{path} must hold options: {{"data": "photos", "out": "run", "steps": 20000, ...}}'
        )
    known = [field.name for field in fields(TrainConfig)]
    for name in options:
        if name not in known:
            raise FastdiffError(f"{path} has the unknown option {name!r}{nearest(name, known, cutoff=0.0)}")
    return options


def read_config(path: Path | str, **changes: Any) -> TrainConfig:
    """The settings in a JSON file, such as the config.json of a run, with changes.

        train(read_config("run/config.json", steps=200_000))

    Raises:
        FastdiffError: a file that cannot be read, an unknown option, a value outside its range.
    """
    options = {**read_options(Path(path)), **changes}
    try:
        return TrainConfig(**options)
    except TypeError as error:
        raise FastdiffError(f"{path}: {error}") from None
    except FastdiffError as error:
        raise FastdiffError(f"{path}: {error}") from None
