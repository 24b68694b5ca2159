"""An op's argument list, said once: a named tuple, whose annotations are the operator's schema."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

_NAMES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    int: "int",
    float: "float",
    float | None: "float?",
    list[float]: "float[]",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
}


def schema_of(arguments: type[Any]) -> str:
    """In PyTorch's schema language, without parentheses: "Tensor x, int num_groups, Tensor? weight".

    Args:
        arguments: a ``NamedTuple``. ``Annotated[..., "SymInt"]`` says the schema's type where Python's is not enough:
            sizes that may be symbolic, and ``"Tensor(a!)[]"`` for tensors that are written to.
    """
    kinds = get_type_hints(arguments, include_extras=True)
    return ", ".join(f"{_kind(kinds[name])} {name}" for name in arguments._fields)


def _kind(annotation: Any) -> str:
    return get_args(annotation)[1] if get_origin(annotation) is Annotated else _NAMES[annotation]
