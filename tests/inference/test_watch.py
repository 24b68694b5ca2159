"""What `Weights` sees, of tensors in any layout and dtype, with the compiled comparison and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdiff.inference import watch
from fastdiff.inference.watch import Structure, Weights

TENSORS: dict[str, Callable[[], Tensor]] = {
    "convolution": lambda: torch.randn(48, 40, 3, 3),
    "channels_last": lambda: torch.randn(48, 40, 3, 3).to(memory_format=torch.channels_last),
    "bias": lambda: torch.randn(48),
    "scalar": lambda: torch.tensor(1.5),
    "transposed": lambda: torch.randn(64, 80).t(),
    "a part of another": lambda: torch.randn(64, 100)[:, :80],
    "every other row": lambda: torch.randn(128, 80)[::2],
    "bfloat16": lambda: torch.randn(64, 80).bfloat16(),
    "float64": lambda: torch.randn(64, 80).double(),
    "complex128": lambda: torch.randn(64, 80, dtype=torch.complex128),
    "bool": lambda: torch.rand(100) > 0.5,
    "int64": lambda: torch.arange(100),
}


@pytest.fixture(params=["compiled", "torch"])
def compared_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(watch, "_C", None)
    elif watch._C is None:
        pytest.skip("fastdiff._C is not built")


@pytest.mark.usefixtures("compared_by")
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS.keys())
def test_a_write_past_the_count_of_versions_is_seen(make: Callable[[], Tensor]) -> None:
    """A write to the first, last or another output channel is seen at the next look, which also names the tensor."""
    tensor, other = make(), torch.randn(30)
    weights = Weights([other, tensor])
    for row in (0, -1, len(tensor) // 3) if tensor.dim() else ((),):
        before = tensor.data[row].clone()
        assert not weights.have_changed()
        tensor.data[row] = ~before if before.dtype == torch.bool else before + 1
        assert weights.have_changed()
        assert weights.changed() == {id(tensor)}
        tensor.data[row] = before
        assert not weights.have_changed() and not weights.changed()


@pytest.mark.usefixtures("compared_by")
def test_each_input_channel_is_seen() -> None:
    weight = torch.randn(24, 56, 3, 3)
    weights = Weights([weight])
    for channel in range(56):
        before = weight.data[:, channel].clone()
        weight.data[:, channel] += 1
        assert weights.have_changed()
        weight.data[:, channel] = before


@pytest.mark.usefixtures("compared_by")
def test_other_memory_and_counted_writes_are_seen() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    weights = Weights([weight])
    same = weight.data.clone()
    weight.data = same
    assert weights.have_changed() and weights.changed() == {id(weight)}
    weights = Weights([weight])
    with torch.no_grad():
        weight.mul_(1)  # the same numbers, but nobody can know
    assert weights.have_changed() and weights.changed() == {id(weight)}


def test_structure() -> None:
    """Modules, parameters, classes, forwards, hooks: put in, taken away, replaced, each seen at the next look."""

    def changes(change: Callable[[nn.Sequential], object]) -> bool:
        model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Identity())
        hooked = model[2].register_forward_hook(lambda *_: None)
        structure = Structure(model)
        assert not structure.has_changed()
        nn.Linear(1, 1).register_forward_hook(lambda *_: None)  # on another
        assert not structure.has_changed()
        model.hooked = hooked.remove  # type: ignore[assignment]
        structure = Structure(model)
        change(model)
        return structure.has_changed()

    assert not changes(lambda m: None)
    assert changes(lambda m: m.__setitem__(0, nn.Linear(3, 4)))
    assert changes(lambda m: m[1].append(nn.ReLU()))
    assert changes(lambda m: m[2].add_module("new", nn.ReLU()))
    assert changes(lambda m: m[0].register_parameter("new", nn.Parameter(torch.ones(1))))
    assert changes(lambda m: setattr(m[0], "bias", None))
    assert changes(lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data)))
    assert changes(lambda m: setattr(m[1][0], "forward", lambda x: x))
    assert changes(lambda m: setattr(m[1][0], "__class__", nn.GELU))
    assert changes(lambda m: m[1][0].register_forward_hook(lambda *_: None))
    assert changes(lambda m: m[1][0].register_forward_pre_hook(lambda *_: None))
    assert changes(lambda m: m[2].register_forward_hook(lambda *_: None))
    assert changes(lambda m: m[1][0]._forward_hooks.update({7: print}))  # by whoever copies hooks
    assert changes(lambda m: m.hooked())
    assert changes(lambda m: m[1].eval())
