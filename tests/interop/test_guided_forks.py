"""What forks of guided-diffusion do with it: override, patch, pass on, import by name, bring modules of their own."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastdiff.cli.run import run_script
from fastdiff.diffusion import likelihood
from fastdiff.interop.guided_diffusion import fp16_util, image_datasets, logger, script_util, unet
from fastdiff.interop.guided_diffusion import gaussian_diffusion as gd
from fastdiff.interop.guided_diffusion.respace import SpacedDiffusion

OPTIONS: dict[str, Any] = {
    "betas": gd.get_named_beta_schedule("cosine", 8),
    "model_mean_type": gd.ModelMeanType.EPSILON,
    "model_var_type": gd.ModelVarType.FIXED_SMALL,
    "loss_type": gd.LossType.MSE,
}
SHAPE = (2, 3, 4, 4)
METHODS = ("p_mean_variance", "q_posterior_mean_variance", "_predict_xstart_from_eps", "_scale_timesteps")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t.float().reshape(-1, 1, 1, 1) / 100)


def _process(kind: str) -> Any:
    return gd.GaussianDiffusion(**OPTIONS) if kind == "plain" else SpacedDiffusion(range(8), **OPTIONS)


def _changed(method: Any, calls: list[str]) -> Any:
    """The method with its result moved a little."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        calls.append("called")
        result = method(*args, **kwargs)
        if isinstance(result, dict):
            return {**result, "mean": result["mean"] + 0.1, "pred_xstart": result["pred_xstart"] + 0.1}
        if isinstance(result, Tensor) and not result.is_floating_point():
            return result // 2  # a time step
        return (result[0] + 0.1, *result[1:]) if isinstance(result, tuple) else result + 0.1

    return changed


@pytest.mark.parametrize("how", ["overridden", "patched in the object", "patched in the class"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
@pytest.mark.parametrize("kind", ["plain", "spaced"])
def test_a_changed_formula_is_called_and_counts(
    kind: str, loop: str, method: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, calls = _process(kind), []
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def run(process: Any) -> Tensor:
        torch.manual_seed(1)
        return getattr(process, loop)(Model(), SHAPE, noise=noise)

    before = run(process)
    base = type(process)
    if how == "overridden":
        override = _changed(getattr(base, method), calls)
        process.__class__ = type("Fork", (base,), {method: override})
    elif how == "patched in the object":
        setattr(process, method, _changed(getattr(process, method), calls))
    else:
        monkeypatch.setattr(base, method, _changed(getattr(base, method), calls))
    after = run(process)
    assert len(calls) >= 8
    if loop == "p_sample_loop" or method != "q_posterior_mean_variance":  # DDIM has no use for the mean
        assert (after - before).abs().max() > 1e-3


def test_keywords_go_on_to_what_has_been_overridden() -> None:
    seen: list[Any] = []

    class Fork(SpacedDiffusion):
        def p_mean_variance(self, model: Any, *args: Any, conf: Any = None, **kwargs: Any) -> Any:
            seen.append(conf)
            return super().p_mean_variance(model, *args, **kwargs)

    class Whole(SpacedDiffusion):
        def p_sample(self, model: Any, *args: Any, resizers: Any = None, **kwargs: Any) -> Any:
            seen.append(resizers)
            return super().p_sample(model, *args, **kwargs)

    Fork(range(8), **OPTIONS).p_sample_loop(Model(), SHAPE, conf="a")
    Fork(range(8), **OPTIONS).ddim_sample_loop(Model(), SHAPE, conf="b")
    Whole(range(8), **OPTIONS).p_sample_loop(Model(), SHAPE, resizers="c")
    assert seen == ["a"] * 8 + ["b"] * 8 + ["c"] * 8
    with pytest.raises(TypeError, match="conf"):
        _process("spaced").p_sample_loop(Model(), SHAPE, conf="a")


@pytest.mark.parametrize(
    "betas", [OPTIONS["betas"], gd.get_named_beta_schedule("linear", 1000)], ids=["cosine", "linear"]
)
def test_the_prior_keeps_its_digits(betas: np.ndarray) -> None:
    """KL(q(x_T | x_0) || N(0, 1)) = (abar x_0^2 - abar - ln(1 - abar)) / 2, a small difference from 1."""
    process = gd.GaussianDiffusion(**{**OPTIONS, "betas": betas})
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    abar = float(np.prod(1 - betas))
    exact = (abar * x.double() ** 2 - abar - math.log1p(-abar)).flatten(1).mean(1) / 2 / math.log(2)
    torch.testing.assert_close(process._prior_bpd(x).double(), exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(likelihood.prior_bits(process._process, x).double(), exact, rtol=2e-5, atol=0)


def test_networks_tell_what_they_were_built_of() -> None:
    options = script_util.model_and_diffusion_defaults() | {
        "num_channels": 32,
        "num_res_blocks": 1,
        "learn_sigma": True,
    }
    model, _ = script_util.create_model_and_diffusion(**script_util.select_args(options, options))
    told = (
        model.image_size,
        model.in_channels,
        model.model_channels,
        model.out_channels,
        model.num_res_blocks,
    )
    assert told == (64, 3, 32, 6, 1)
    assert (model.attention_resolutions, model.channel_mult, model.conv_resample) == (
        (4, 8),
        (1, 2, 3, 4),
        True,
    )
    assert (model.num_heads, model.num_head_channels, model.num_heads_upsample, model.dropout) == (
        4,
        -1,
        4,
        0.0,
    )
    assert model.num_classes is None and model.dtype == torch.float32 and not model.use_checkpoint
    names = script_util.classifier_defaults() | {"classifier_width": 64, "classifier_depth": 1}
    classifier = script_util.create_classifier(**names)
    assert (classifier.model_channels, classifier.pool, classifier.out_channels) == (64, "attention", 1000)


def test_networks_of_its_layers() -> None:
    block = unet.TimestepEmbedSequential(
        unet.ResBlock(32, 64, 0.1, 64, use_scale_shift_norm=True, up=True, use_checkpoint=True),
        unet.AttentionBlock(64, num_head_channels=16, use_new_attention_order=True),
        unet.Upsample(64, True, out_channels=96),
        unet.Downsample(96, False),
        unet.ResBlock(96, 64, 0.0, 32, use_conv=True),
    )
    x = torch.randn(2, 32, 4, 4, requires_grad=True)
    y = block(x, torch.randn(2, 64))
    y.sum().backward()
    assert y.shape == (2, 32, 8, 8) and x.grad is not None
    assert block[4].skip_connection.kernel_size == (3, 3) and block[0].out_channels == 64
    model = script_util.create_model(64, 32, 1, attention_resolutions="8")
    kinds = unet.ResBlock, unet.TimestepBlock, unet.AttentionBlock, unet.TimestepEmbedSequential
    assert all(any(isinstance(m, kind) for m in model.modules()) for kind in kinds)
    assert not isinstance(model, unet.TimestepBlock) and isinstance(block[0], unet.TimestepBlock)
    derived = type("Derived", (unet.ResBlock,), {})
    assert not any(isinstance(m, derived) for m in model.modules())
    qkv = torch.randn(2, 3 * 8, 5)
    q, k, v = (t.reshape(4, 4, 5) for t in qkv.chunk(3, dim=1))
    truth = torch.einsum("bts,bcs->bct", (torch.einsum("bct,bcs->bts", q, k) / 2).softmax(-1), v)
    torch.testing.assert_close(unet.QKVAttention(2)(qkv), truth.reshape(2, 8, 5))
    legacy = qkv.reshape(2, 3, 2, 4, 5).transpose(1, 2).reshape(2, 24, 5)
    torch.testing.assert_close(unet.QKVAttentionLegacy(2)(legacy), truth.reshape(2, 8, 5))


def test_master_parameters_by_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = fp16_util.get_param_groups_and_shapes(model.named_parameters())
    masters = fp16_util.make_master_params(groups)
    assert [m.shape for m in masters] == [(6,), (1, 20)]
    model(torch.ones(1, 3)).sum().backward()
    fp16_util.model_grads_to_master_grads(groups, masters)
    with torch.no_grad():
        for m in masters:
            assert m.grad is not None
            m -= 0.1 * m.grad
    wanted = [p.detach() - 0.1 * fp16_util.param_grad_or_zeros(p) for p in model.parameters()]
    fp16_util.master_params_to_model_params(groups, masters)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted, strict=True))
    state = fp16_util.master_params_to_state_dict(model, groups, masters, True)
    assert all(torch.equal(state[name], p) for name, p in model.named_parameters())
    again = fp16_util.state_dict_to_master_params(model, state, True)
    assert all(torch.equal(a, b) for a, b in zip(again, masters, strict=True))
    fp16_util.zero_master_grads(masters)
    fp16_util.zero_grad(model.parameters())
    assert masters[0].grad is None and all(not p.grad.any() for p in model.parameters())
    assert [fp16_util.check_overflow(v) for v in (1.0, math.inf, -math.inf, math.nan)] == [
        False,
        True,
        True,
        True,
    ]


def test_a_logger_of_ones_own(tmp_path: Path) -> None:
    class Kept(logger.KVWriter):
        rows: list[dict[str, Any]] = []  # noqa: RUF012

        def writekvs(self, kvs: Any) -> None:
            self.rows.append(dict(kvs))

    outputs = [
        Kept(),
        logger.make_output_format("csv", str(tmp_path)),
        logger.make_output_format("log", str(tmp_path)),
    ]
    own = logger.Logger(dir=str(tmp_path), output_formats=outputs)
    own.logkv("a", torch.tensor(2.0))
    own.log("begins", 1)
    own.dumpkvs()
    own.close()
    assert Kept.rows == [{"a": 2.0}] and (tmp_path / "progress.csv").read_text().split() == ["a", "2.0"]
    assert (tmp_path / "log.txt").read_text().startswith("begins 1\n")
    before = logger.get_current()
    with logger.scoped_configure(str(tmp_path / "inner"), ["json"]):
        assert logger.get_dir() == str(tmp_path / "inner")

        @logger.profile("work")
        def work() -> int:
            return 1

        assert work() == 1 and "wait_work" in logger.getkvs()
    assert logger.get_current() is before


def test_folders_that_are_links(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("a_0.png", "inner/b_1.PNG"):
        Image.new("RGB", (8, 8)).save(tmp_path / "real" / name)
    os.symlink(tmp_path / "real", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "real" / "back")  # leads back to where it is
    found = image_datasets._list_image_files_recursively(str(tmp_path / "data"))
    assert [Path(f).relative_to(tmp_path / "data").as_posix() for f in found] == [
        "link/a_0.png",
        "link/inner/b_1.PNG",
    ]
    data = image_datasets.load_data(
        data_dir=str(tmp_path / "data"), batch_size=2, image_size=8, class_cond=True
    )
    assert sorted(next(data)[1]["y"].tolist()) == [0, 1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Run a script, given its text and the texts of modules beside it -> what it has put into ``result.txt``."""
    modules = dict(sys.modules)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(script: str, **beside: str) -> str:
        for name, text in beside.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        result = tmp_path / "result.txt"
        (tmp_path / "script.py").write_text(f"{script}\nopen({str(result)!r}, 'w').write(str(result))")
        run_script([str(tmp_path / "script.py")])
        return result.read_text()

    yield run
    for name in set(sys.modules) - set(modules):
        if name.split(".")[0] in ("guided_diffusion", "improved_diffusion", "blobfile"):
            del sys.modules[name]
    sys.modules.update(modules)


def test_a_scripts_own_modules_stay(run: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    fork = {
        "guided_diffusion/__init__": "",
        "guided_diffusion/extra": "answer = 42",
        "guided_diffusion/nn": "from . import extra\nmine = extra.answer",
        "blobfile": "mine = 7",
    }
    script = (
        "import blobfile\nfrom guided_diffusion import nn, unet, script_util\n"
        "from guided_diffusion.extra import answer\n"
        "result = answer, nn.mine, blobfile.mine, unet.UNetModel.__module__.split('.')[0], script_util.__name__"
    )
    with caplog.at_level(logging.WARNING):
        told = run(script, **fork)
    assert told == "(42, 42, 7, 'fastdiff', 'fastdiff.interop.guided_diffusion.script_util')"
    assert "guided_diffusion: the script's own nn, not fastdiff's" in caplog.text


def test_a_single_module_of_that_name_stays(run: Callable[..., str]) -> None:
    assert run("import guided_diffusion\nresult = guided_diffusion.mine", guided_diffusion="mine = 3") == "3"


def test_scripts_of_improved_diffusion(run: Callable[..., str]) -> None:
    script = """
from improved_diffusion import dist_util, logger
from improved_diffusion.script_util import NUM_CLASSES, model_and_diffusion_defaults, create_model_and_diffusion
from improved_diffusion.unet import UNetModel
options = model_and_diffusion_defaults()
options.update(image_size=32, num_channels=32, num_res_blocks=1, learn_sigma=True, diffusion_steps=20)
options.update(timestep_respacing="2", noise_schedule="cosine")
model, diffusion = create_model_and_diffusion(**options)
x = diffusion.p_sample_loop(model, (1, 3, 32, 32))
other = UNetModel(3, 32, 6, 1, (2,), channel_mult=(1, 2), num_heads=2)
result = tuple(x.shape), model.channel_mult, diffusion.rescale_timesteps, len(other.state_dict())
"""
    assert run(script).startswith("((1, 3, 32, 32), (1.0, 2.0, 2.0, 2.0), True, ")
