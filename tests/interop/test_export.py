"""``fastdiff.export``: files that other programs read, with the model's own results."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.interop.export import plain_program

_SMALL = replace(tiny.UNET, channel_mult=(1,), attention_resolutions=())
UNETS = {
    "small": replace(_SMALL, num_classes=4, null_label=True),
    "classes": replace(tiny.UNET, num_classes=4, null_label=True),
    "adagn": replace(tiny.UNET, use_scale_shift_norm=True, resblock_updown=True, learn_sigma=True),
    "ddpm": replace(tiny.UNET, use_scale_shift_norm=False, resblock_updown=False, conv_resample=True),
    "upsampler": replace(_SMALL, low_res="bilinear"),
    "classifier": replace(tiny.CLASSIFIER, channel_mult=(1,), attention_resolutions=()),
}


def _model(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny.build(UNETS[kind]).to(dtype).requires_grad_(False)
    model.diffusion = fastdiff.DiffusionConfig(steps=100, schedule="cosine", prediction="v")
    return model


def _inputs(model: Any, n: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Arguments for n images; times are not whole."""
    torch.manual_seed(n)
    x = torch.randn(n, 3, 8, 8, dtype=model.dtype)
    rest: dict[str, Tensor] = {}
    if getattr(model.config, "low_res", None):
        rest["low_res"] = torch.randn(n, 3, 4, 4, dtype=model.dtype)
    if getattr(model.config, "num_classes", None):
        rest["y"] = torch.arange(n) % 5
    return (x, torch.linspace(0.5, 90, n)), rest


_ALONE = """
import sys, torch
given = torch.load("given.pt")
out = {}
for kind, calls in given.items():
    program = torch.export.load(kind + ".pt2").module()
    out[kind] = [program(*args, **rest) for args, rest in calls]
assert "fastdiff" not in sys.modules
torch.save(out, "out.pt")
"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Under pytest, torch.export's own trace is formatted line by line, which takes ten times as long."""
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True
    yield
    trace.disabled = False


@pytest.mark.parametrize(
    "kinds",
    [("classes", "classifier"), pytest.param(("classes", "upsampler"), marks=pytest.mark.proof)],
    ids=" and ".join,
)
def test_programs_run_without_fastdiff(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """In a process that has never imported it, for several numbers of images, with the same results."""
    models = {kind: _model(kind) for kind in kinds}
    for kind, model in models.items():
        assert "network alone" in fastdiff.export(model, tmp_path / f"{kind}.pt2")
    given = {kind: [_inputs(model, n) for n in (1, 3)] for kind, model in models.items()}
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", _ALONE], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt")
    for kind, calls in given.items():
        for (args, rest), out in zip(calls, found[kind], strict=True):
            torch.testing.assert_close(out, models[kind](*args, **rest), rtol=1e-4, atol=1e-5)
    about: dict[str, str] = {"fastdiff": ""}
    torch.export.load(tmp_path / "classes.pt2", extra_files=about)
    assert json.loads(about["fastdiff"])["diffusion"]["schedule"] == "cosine"


def test_a_program_is_of_pytorchs_operators_and_samples(tmp_path: Path) -> None:
    model = _model("small", torch.bfloat16)
    program = plain_program(model)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [t for t in targets if "fastdiff" in t] and "aten.conv2d.default" in targets
    args, rest = _inputs(model, 2)
    torch.testing.assert_close(
        program.module()(*args, **rest).float(), model(*args, **rest).float(), rtol=0.05, atol=0.05
    )
    fastdiff.export(_model("small"), tmp_path / "model.pt2")
    loaded: Any = torch.export.load(tmp_path / "model.pt2").module()

    def denoiser(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return loaded(x, t.float(), y=y)

    options: dict[str, Any] = {"classes": 1, "sampler": "ddim", "steps": 4, "progress": False}
    theirs = fastdiff.sample(denoiser, 2, shape=(3, 8, 8), diffusion=model.diffusion, **options)
    torch.testing.assert_close(theirs, fastdiff.sample(_model("small"), 2, **options), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "beside"), [("classes", False), ("upsampler", True)])
def test_onnx(kind: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights lie beside the file."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    reference = pytest.importorskip("onnx.reference")
    if beside:
        monkeypatch.setattr("fastdiff.interop.export.MOST_IN_ONE_FILE", 1000)
    model, file = _model(kind), tmp_path / "model.onnx"
    assert "network alone" in fastdiff.export(model, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"][: 1 + beside]
    loaded = onnx.load(file)
    onnx.checker.check_model(str(file))
    names = [value.name for value in loaded.graph.input]
    args, rest = _inputs(model, 3)
    assert names == ["x", "timesteps", *rest]
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    feeds = dict(zip(names, (t.numpy() for t in (*args, *rest.values())), strict=True))
    (out,) = reference.ReferenceEvaluator(loaded).run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(out), model(*args, **rest), rtol=1e-3, atol=1e-4)


def test_onnx_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(FastdiffError, match=r"pip install 'fastdiff\[export\]'"):
        fastdiff.export(_model("ddpm"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["classes", "adagn", "ddpm"])
def test_a_diffusers_folder(kind: str, tmp_path: Path) -> None:
    """Loaded by diffusers: the network's results, the levels of the diffusion, and a picture."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = tiny.build(replace(UNETS[kind], conv_resample=True)).requires_grad_(False)
    model.diffusion = fastdiff.DiffusionConfig(
        steps=50, schedule="sigmoid", variance="learned_range" if kind == "adagn" else "fixed_large"
    )
    said = fastdiff.export(model, tmp_path / "folder")
    assert said == "" if kind != "classes" else "class_labels=, from 0 to 3 (label 4 means no class)" in said
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "model_index.json",
        "scheduler",
        "unet",
    ]
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet").eval()
    (x, t), rest = _inputs(model, 3)
    with torch.no_grad():
        theirs = unet(x, t, class_labels=rest.get("y")).sample
    torch.testing.assert_close(theirs, model(x, t, **rest), rtol=1e-3, atol=1e-4)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "folder" / "scheduler")
    expected = fastdiff.GaussianDiffusion(model.diffusion).alphas_bar.float()
    torch.testing.assert_close(scheduler.alphas_cumprod, expected, rtol=1e-4, atol=1e-6)
    if kind != "classes":
        pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "folder")
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline(1, num_inference_steps=3).images[0].size == (8, 8)


def test_safetensors(tmp_path: Path) -> None:
    model = _model("adagn")
    assert fastdiff.export(model, tmp_path / "model.safetensors") == ""
    loaded = fastdiff.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config and loaded.diffusion == model.diffusion
    args, _ = _inputs(model, 2)
    assert torch.equal(loaded(*args), model(*args))


def test_what_cannot_be_represented(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    scaled = _model("ddpm")
    scaled.diffusion = replace(scaled.diffusion, rescale_timesteps=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    for model, path, message in (
        (_model("upsampler"), "folder", r"UNet2DModel cannot represent super-resolution \(low_res\)"),
        (_model("classifier"), "folder", "no counterpart of a classifier"),
        (scaled, "folder", r"100 steps scaled to 1000 \(rescale_timesteps\)"),
        (tiny.build(UNETS["ddpm"]), "folder", "does not say which diffusion"),
        (_model("ddpm"), "full", "is there already; give the name of a new folder"),
        (_model("ddpm"), "model.gguf", "does not know the format '.gguf' of"),
        (torch.nn.Linear(1, 1), "model.onnx", "fastdiff's own models, got Linear"),
    ):
        with pytest.raises(FastdiffError, match=message):
            fastdiff.export(model, tmp_path / path)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
