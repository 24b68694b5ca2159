"""Labels of images in folders and zips: from the first folder of their names, or from dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastdiff.errors import FastdiffError
from fastdiff.files import parse_json

LISTING = "dataset.json"  # StyleGAN's and EDM's data sets


def labels_by_folder(names: Sequence[str], root: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels [N] and class names of images under ``root``: class = first folder, numbered in sorted order.

    None and no names if all images lie in ``root`` itself.

    Raises:
        FastdiffError: some images lie in folders and some do not.
    """
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    if not classes:
        return None, ()
    if None in folders:
        stray = names[folders.index(None)]
        raise FastdiffError(
            f"{stray} in {root} lies beside the class folders {', '.join(classes[:5])}; move it into one"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[folder] for folder in folders if folder is not None]), tuple(classes)


def read_listing(text: bytes, listing: str) -> dict[str, object] | None:
    """Labels by name of dataset.json, {"labels": [[name, class], ...]}; None if it says null.

    Raises:
        FastdiffError: another form, or a name with two labels.
    """
    try:
        pairs = parse_json(text)["labels"]
        if pairs is None:
            return None
        labels: dict[str, object] = {name: label for name, label in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise FastdiffError(
            f'{listing} must hold {{"labels": [[name, class], ...]}}: {type(error).__name__} {error}'
        ) from None
    for name, label in pairs:
        if labels[name] != label:
            raise FastdiffError(f"{listing} has two labels for {name}: {label!r} and {labels[name]!r}")
    return labels


def labels_by_listing(
    labels: Mapping[str, object] | None, names: Sequence[str], listing: str
) -> np.ndarray | None:
    """Labels [N] int64 of images, as :func:`read_listing` found them.

    Raises:
        FastdiffError: an image without a label.
    """
    if labels is None:
        return None
    found = []
    for name in names:
        label = labels.get(name)
        if type(label) is not int:
            given = "no label" if name not in labels else f"the label {label!r}"
            raise FastdiffError(f"{listing} has {given} for {name}; every image needs a whole number")
        found.append(label)
    try:
        return np.array(found, np.int64)
    except OverflowError:
        raise FastdiffError(f"{listing} has labels beyond 64 bits") from None
