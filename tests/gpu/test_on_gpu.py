"""What only a GPU can show. Every op against its error bound is in tests/ops/test_cases.py, which runs there too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, candidates, use_backend
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.models import UNet, UNetConfig
from fastdiff.ops import attention, group_norm_silu, normal, random_bits, reverse_step
from fastdiff.ops._op import OPS
from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.sampling import Sampler
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")

CONFIG = UNetConfig(
    image_size=16,
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=64,
    num_classes=4,
    null_label=True,
    learn_sigma=True,
)
SEEDS = (-1, -(2**63), 2**63 - 1, 0x0123456789ABCDEF, 0)


def _backends(op: str) -> list[str]:
    """Those with a kernel for the op, and the reference."""
    return [b.value for b in candidates("cuda") if OPS[op].why_not(b) is None]


@pytest.fixture(scope="module")
def network() -> UNet:
    """float32 on the CPU, with noise in place of the layers that start at zero."""
    torch.manual_seed(0)
    unet = UNet(CONFIG)
    with torch.no_grad():
        for p in unet.parameters():
            if not p.any():
                p.normal_(std=0.05)
    unet.diffusion = DiffusionConfig(schedule="cosine", variance="learned_range")
    return unet.eval()


def _inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=g), torch.arange(n) * 300 + 5, torch.arange(n) % 4


def _on_gpu(*tensors: Tensor) -> list[Tensor]:
    return [t.cuda() for t in tensors]


def test_noise_bits_are_the_cpus() -> None:
    """Exactly, on every backend, for keys and counters that use all 64 bits."""
    seeds = torch.tensor(SEEDS)
    options: dict[str, Any] = {"step": 2**32 - 1, "stream": 7, "first_block": 2**32 - 3}
    expected = random_bits(seeds, 1003, **options)
    for backend in _backends("philox_bits"):
        with use_backend(backend):
            assert torch.equal(random_bits(seeds.cuda(), 1003, **options).cpu(), expected), backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normals_are_the_cpus_to_rounding(dtype: torch.dtype) -> None:
    seeds = torch.tensor(SEEDS)
    exact = normal(seeds, (3, 33, 31), step=5, dtype=torch.float64)
    for backend in _backends("philox_normal"):
        with use_backend(backend):
            drawn = normal(seeds.cuda(), (3, 33, 31), step=5, dtype=dtype).cpu()
        bound = 16 * torch.finfo(dtype).eps * exact.abs().clamp(min=1)
        assert ((drawn.double() - exact).abs() <= bound).all(), backend


def test_a_step_draws_the_noise_of_normal() -> None:
    seeds, x = torch.tensor(SEEDS).cuda(), torch.zeros(len(SEEDS), 3, 9, 7, device="cuda")
    table = torch.zeros(2, 12, device="cuda")
    table[1, COLUMNS.index("std")] = 1.0
    index = torch.ones((), dtype=torch.int64, device="cuda")
    for backend in _backends("reverse_step"):
        with use_backend(backend):
            drawn, _, bad = reverse_step(x, x, table, index, seeds=seeds)
        expected = normal(seeds.cpu(), (3, 9, 7), step=1)
        torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert not bad.any()


@pytest.mark.parametrize("precision", [None, "bfloat16", "adm-fp16"])
@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_captured_sampling_equals_eager_sampling(network: UNet, sampler: str, precision: Any) -> None:
    """Bit for bit, with guidance, in two batches of which the second is smaller; twice, so that graphs are reused."""
    model = copy.deepcopy(network).cuda()
    options: dict[str, Any] = {"sampler": sampler, "steps": 4, "guidance_scale": 2.0, "batch_size": 3}
    with Sampler(model, precision=precision, **options) as captured:
        images = [captured(5, classes=[0, 1, 2, 3, 0], seed=s, progress=False) for s in (1, 2, 1)]
        assert captured.captured == 2
    plain = Sampler(model, precision=precision, capture=False, **options)
    for image, seed in zip(images, (1, 2, 1), strict=True):
        assert torch.equal(image, plain(5, classes=[0, 1, 2, 3, 0], seed=seed, progress=False))


def test_samples_are_the_cpus_to_rounding(network: UNet) -> None:
    """The same seeds give the same images."""
    options: dict[str, Any] = {"sampler": "ancestral", "steps": 4}
    on_cpu = Sampler(network, **options)(4, classes=1, seed=3, progress=False)
    on_gpu = Sampler(copy.deepcopy(network).cuda(), **options)(4, classes=1, seed=3, progress=False)
    assert (on_gpu.cpu() - on_cpu).norm() < 0.05 * on_cpu.norm()  # TF32 in convolutions


def test_sampling_frees_its_memory(network: UNet) -> None:

    def allocated() -> int:
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # they belong to the library, and stay
        return torch.cuda.memory_allocated()

    model = copy.deepcopy(network).cuda()
    before = allocated()
    sampler = Sampler(model, steps=3, precision="bfloat16")
    images = sampler(8, classes=1, progress=False)
    assert sampler.captured == 1 and allocated() > before
    sampler.close()
    del images
    assert allocated() <= before + (1 << 20)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bfloat16_network_against_float64(network: UNet, layout: torch.memory_format) -> None:
    """Output and gradients: no further from float64 than PyTorch's own calls are, twice over."""
    x, t, y = _inputs()

    def run(model: UNet, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        model.zero_grad()
        out = model(x, t, y)
        out.float().square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [out.detach(), *(g.detach() for g in grads)]

    with use_backend("reference"):
        truth = run(copy.deepcopy(network).double(), x.double(), t, y)
    model = copy.deepcopy(network).cuda().bfloat16().to(memory_format=layout)
    inputs = _on_gpu(x.contiguous(memory_format=layout), t, y)
    with use_backend("eager"):
        eager = run(model, *inputs)
    ours = run(model, *inputs)
    assert len(truth) == len(eager) == len(ours)

    def distance(got: list[Tensor]) -> tuple[float, float]:
        """Relative errors of the output, and of all gradients together."""
        off = [(g.cpu().double() - w).norm() / w.norm() for g, w in zip(got[:1], truth[:1], strict=True)]
        grads = torch.stack([(g.cpu().double() - w).norm() for g, w in zip(got[1:], truth[1:], strict=True)])
        size = torch.stack([w.norm() for w in truth[1:]]).norm()
        return float(off[0]), float(grads.norm() / size)

    for got, usual in zip(distance(ours), distance(eager), strict=True):
        assert got <= 2 * usual + 1e-3, f"{got:.2e}, eager {usual:.2e}"


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_norms_of_more_than_2_to_the_31_elements(backend: str) -> None:
    """Offsets do not fit in 32 bits; the last image must be right."""
    if reason := OPS["group_norm_silu"].why_not(Backend(backend)):
        pytest.skip(reason)
    n, c, size = 33, 256, 512  # 2.2e9 elements, 4.4 GB, twice
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("less than 16 GB are free on the GPU")
    torch.utils.deterministic.fill_uninitialized_memory = False
    x = torch.empty(n, c, size, size, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)
    x.normal_()
    with torch.inference_mode(), use_backend(backend):
        y = group_norm_silu(x, 32)
        for image in (0, n - 1):
            alone = group_norm_silu(x[image : image + 1].clone(memory_format=torch.channels_last), 32)
            torch.testing.assert_close(y[image], alone[0], rtol=0.02, atol=0.02)


def test_attention_of_the_table_is_differentiable() -> None:
    """By default, whichever way it goes here, against the reference."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 70, 3, 2, 64, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in qkv.unbind(2))
    ours = torch.autograd.grad(attention(q, k, v).float().square().sum(), [q, k, v])
    with use_backend("reference"):
        expected = torch.autograd.grad(attention(q, k, v).float().square().sum(), [q, k, v])
    for got, want in zip(ours, expected, strict=True):
        assert (got.float() - want.float()).norm() < 0.03 * want.float().norm()
