"""The types of an option's values: one check for Python, the command line and files."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from fastdiff.errors import FastdiffError
from fastdiff.scalars import plain


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value as the annotation ``kind`` says: texts become paths, lists tuples, NumPy's numbers Python's.

    Raises:
        FastdiffError: a value of another type.
    """
    value = plain(value)
    arms = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and type(None) in arms:
        return None
    arm = next(a for a in arms if a is not type(None))
    if get_origin(arm) is tuple:
        item = get_args(arm)[0]
        if not isinstance(value, tuple):
            raise FastdiffError(f"{name} must be a list of {_NAMES[item]}s, got {value!r}")
        return tuple(typed(name, one, item) for one in value)
    if get_origin(arm) is Literal:
        if value not in get_args(arm):
            raise FastdiffError(f"{name} must be one of {', '.join(get_args(arm))}, got {value!r}")
        return value
    if arm is Path and isinstance(value, str):
        return Path(value)
    accepted = (int, float) if arm is float else arm
    if not isinstance(value, accepted) or isinstance(value, bool) and arm is not bool:
        raise FastdiffError(f"{name} must be {_article(_NAMES[arm])}, got {value!r}")
    return value


_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}


def _article(words: str) -> str:
    return words if words == _NAMES[bool] else f"a {words}"
