"""Labels of images in folders and zips: from the first folder of their names, or from dataset.json."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from fastdiff.errors import FastdiffError

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


def labels_by_listing(text: bytes, names: Sequence[str], listing: str) -> np.ndarray | None:
    """Labels [N] int64 of dataset.json, {"labels": [[name, class], ...]}; None if it says null.

    Raises:
        FastdiffError: another form, or an image without a label.
    """
    try:
        pairs = json.loads(text)["labels"]
        labels = None if pairs is None else {name: label for name, label in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise FastdiffError(
            f'{listing} must hold {{"labels": [[name, class], ...]}}: {type(error).__name__} {error}'
        ) from None
    if labels is None:
        return None
    for name in names:
        label = labels.get(name)
        if type(label) is not int:
            given = "no label" if name not in labels else f"the label {label!r}"
            raise FastdiffError(f"{listing} has {given} for {name}; every image needs a whole number")
    return np.array([labels[name] for name in names])
