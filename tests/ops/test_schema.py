"""An op's named tuple, its operator and its public function say the same."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import pytest
import torch
from torch import Tensor

from fastdiff.ops._op import OPS, FusedOp
from fastdiff.ops._schema import schema_of
from fastdiff.ops.cases import CASES as CASES  # all ops are imported


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_the_operator_takes_the_tuples_fields(op: FusedOp) -> None:
    schema = getattr(torch.ops.fastdiff, op.name).default._schema
    assert tuple(argument.name for argument in schema.arguments) == op.arguments._fields
    assert not any(argument.has_default_value() for argument in schema.arguments)
    assert len(schema.returns) == op.results


class _Kinds(NamedTuple):
    x: Tensor
    y: Tensor | None
    many: list[Tensor]
    written: Annotated[list[Tensor], "Tensor(a!)[]"]
    n: int
    eps: float
    scale: float | None
    decays: list[float]
    silu: bool
    name: str
    dtype: torch.dtype


def test_kinds() -> None:
    assert schema_of(_Kinds) == (
        "Tensor x, Tensor? y, Tensor[] many, Tensor(a!)[] written, int n, float eps, float? scale, float[] decays,"
        " bool silu, str name, ScalarType dtype"
    )


def test_gradients_by_name() -> None:
    op = OPS["group_norm_silu"]
    dx, dweight = torch.ones(1), torch.ones(2)
    assert op.gradients(x=dx, weight=dweight) == (dx, None, dweight, None, None, None, None, None)
    with pytest.raises(TypeError, match="wieght"):
        op.gradients(wieght=dweight)
