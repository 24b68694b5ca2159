"""Every Python block of a page is run as it is printed, less some numbers; the shapes in its comments are true."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pages
import pytest

PAGES = [page for page in pages.PAGES if pages.blocks(page, "python")]
SHAPE = re.compile(r"#.*?\[(\d+(?:, \d+)*)\]")


@dataclass(frozen=True)
class Given:
    """What a page's blocks take for granted.

    Attributes:
        before: code that makes the names which the blocks do not make.
        smaller: texts in the blocks, and what stands for them here.
        needs: packages without which the page is skipped.
        optional: packages without which the blocks that import them are left out.
        proof: takes more than a few seconds.
    """

    before: str = ""
    smaller: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    proof: bool = False


_MODEL = "import fastdiff, torch; torch.manual_seed(0); model = fastdiff.load('run/model.safetensors')\n"
_PIPE = """
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
unet = UNet2DModel(sample_size=16, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                   up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
"""
_STEPS = {
    "steps=20": "steps=2",
    "ddim50": "ddim2",
    "steps=50": "steps=2",
    "encode(model, images": "encode(model, images, steps=2",
}

_DRAWS = "draws=8, tune=8, chains=2"

GIVEN = {
    "README.md": Given(smaller=_STEPS),
    "docs/checkpoints.md": Given("from fastdiff.cli import main; main(['fetch', 'adm-64'])"),
    "docs/conditional_sampling.md": Given(
        """
import fastdiff, torch
model, classifier = fastdiff.load("fashion-mnist"), fastdiff.load("fashion-mnist-classifier")
image, noisy, mask = torch.zeros(1, 32, 32), torch.randn(1, 1, 32, 32), torch.zeros(32, 32)
mask[16:] = 1
y = torch.tensor([9, 3])
""",
        {"mask, 4,": "mask, 1, steps=2, repeats=1,", "0.5, classes": "0.5, steps=2, classes",
         "model, 16,": "model, 2, steps=2,", "/usr/share/": ""},
    ),
    "docs/cpu.md": Given(_MODEL + _PIPE, needs=("diffusers",)),
    "docs/decision.md": Given(
        """
import numpy as np
condition = np.arange(400) % 2
freq, subject = 1.0 + condition, np.arange(400) // 2 % 2
""",
        {"n=100_000": "n=400", "starts=5": "starts=1", "deadline=2.0": "deadline=9.0", "200, kind": "3, kind",
         "sample_posterior(rt, choice, condition,": f"sample_posterior(rt, choice, condition, {_DRAWS},"},
        ("scipy", "formulaic"),
        proof=True,
    ),
    "docs/emoji.md": Given(
        "import fastdiff", {"guidance_scale=3.0": "guidance_scale=3.0, steps=2", '"steps": 8': '"steps": 2'}
    ),
    "docs/few_steps.md": Given(),
    "docs/my_own_checkpoint.md": Given(
        _PIPE + "f = lambda x, sigma: x / (1 + sigma.view(-1, 1, 1, 1) ** 2)\n",
        {**_STEPS, "seed=0": "seed=0, steps=2", "spacing=": "steps=3, spacing="},
        ("diffusers",),
    ),
    "docs/my_own_gpu_or_cluster.md": Given(
        _MODEL, {**_STEPS, ".cuda()": "", "classes=3": "classes=1", "sampler(32": "sampler(2"}
    ),
    "docs/my_own_images.md": Given(smaller={"scale=2.0": "scale=2.0, steps=2"}),
    "docs/porting.md": Given(
        """
import fastdiff, torch
from fastdiff.cli import main
main(["export", "model.pt2", "--checkpoint", "run/model.safetensors"])
x, timesteps, labels = torch.randn(2, 3, 40, 40), torch.tensor([5.0, 7.0]), torch.tensor([0, 1])
"""
        + _PIPE,
        needs=("diffusers",),
        proof=True,  # seconds of tracing
    ),
    "docs/sampling.md": Given(
        """
import torch, fastdiff
base, upsampler = fastdiff.load("64x64_diffusion.pt"), fastdiff.load("64_256_upsampler.pt", preset="adm-64-256")
small_images = torch.zeros(2, 3, 16, 16)
x, r = torch.randn(2, 2, 64, 8, 8)
weight, bias = torch.randn(64, 64, 3, 3), torch.zeros(64)
coefficients = torch.ones(2, 3, 64)
scale = shift = torch.zeros(2, 64)
gamma = torch.ones(64)
q, k, v = torch.randn(3, 2, 4, 16, 8)
model_output, table, index, seeds = r, torch.ones(3, 12), torch.tensor(1), torch.tensor([5, 6])
""",
        {**_STEPS, "upsampler, 8, ": "upsampler, 2, ", "steps=25": "steps=2",
         "images, classes=207": "images, classes=207, steps=2",
         "x, 32, weight": "x, 32, gamma"},
    ),
    "docs/training.md": Given(
        "from fastdiff import training; from fastdiff.training import TrainConfig; from pathlib import Path",
        {
            "train(TrainConfig(...)": "training.train(TrainConfig(data=Path('photos'), out=Path('runs/b'), steps=2,"
            " batch_size=2, workers=0)",
            "image.show()": "image.size",
        },
        optional=("torchvision",),
    ),
}  # fmt: skip


def test_every_page_is_known() -> None:
    assert {pages.name(page) for page in PAGES} == set(GIVEN)


def run(source: str, names: dict[str, Any]) -> None:
    """Run a block by statements; a shape in a comment on the line of an assignment is compared."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        exec(compile(ast.Module([node], []), "block", "exec"), names)
        stated = SHAPE.search("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if stated and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = names[node.targets[0].id]
            if hasattr(value, "shape"):
                assert list(value.shape) == [int(n) for n in stated[1].split(", ")], ast.unparse(node)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=pages.name(p), marks=[pytest.mark.proof] * GIVEN.get(pages.name(p), Given()).proof)
        for p in PAGES
    ],
)
def test_blocks_run(page: Path, workplace: Path) -> None:
    """One after another, with the names that those before have made."""
    given = GIVEN[pages.name(page)]
    for package in given.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    names: dict[str, Any] = {}
    exec(given.before, names)
    for block in pages.blocks(page, "python"):
        if any(f"import {o}" in block or f"from {o}" in block for o in given.optional if not find_spec(o)):
            continue
        for printed, here in given.smaller.items():
            block = block.replace(printed, here)
        run(block, names)
