"""Models by name: a network's and a diffusion's configuration together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.models.config import ClassifierConfig, ModelConfig, UNetConfig


@dataclass(frozen=True)
class Preset:
    """A named model: the configurations of its network and of its diffusion process."""

    model: ModelConfig
    diffusion: DiffusionConfig
    released: str | None = None  # file name of the published checkpoint
    note: str = ""
    # The file's projections of attention are 2-d convolutions, [3C, C, 1, 1], in the order q, k, v and then heads.
    planar_attention: bool = False


_LEVELS = {  # channel_mult by image size: Dhariwal & Nichol 2021, tables 11 to 13
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}

_ADM = DiffusionConfig(schedule="linear", variance="learned_range")
_COSINE = DiffusionConfig(schedule="cosine", variance="learned_range")


def _adm(size: int, **options) -> UNetConfig:
    defaults = {
        "model_channels": 256,
        "channel_mult": _LEVELS[size],
        "num_head_channels": 64,
        "learn_sigma": True,
        "num_classes": 1000,
    }
    return UNetConfig(image_size=size, **{**defaults, **options})


def _upsampler(size: int, **options) -> UNetConfig:
    levels = (1, 1, 2, 2, 4, 4)
    return _adm(size, model_channels=192, channel_mult=levels, low_res="bilinear", **options)


def _classifier(size: int, depth: int = 2) -> Preset:
    model = ClassifierConfig(
        image_size=size, channel_mult=_LEVELS[size], num_res_blocks=depth, num_head_channels=64
    )
    diffusion = _COSINE if size == 64 else _ADM
    return Preset(model, diffusion, f"{size}x{size}_classifier.pt", "noisy-image classifier for guidance")


def _lsun(scene: str, dropout: float = 0.1, suffix: str = "") -> Preset:
    model = _adm(256, num_classes=None, dropout=dropout)
    return Preset(model, _ADM, f"lsun_{scene}{suffix}.pt", f"LSUN {scene}")


# openai/consistency_models: the networks of Song et al. 2023, appendix C. One network for each data set; the distilled
# ones have no dropout.
_CM_NETWORKS = {
    "imagenet-64": _adm(
        64, model_channels=192, num_res_blocks=3, learn_sigma=False, use_new_attention_order=True
    ),
    "bedroom-256": _adm(
        256, num_classes=None, learn_sigma=False, use_scale_shift_norm=False, use_new_attention_order=True
    ),
}
_CM_NETWORKS["cat-256"] = _CM_NETWORKS["bedroom-256"]
_CM_DATA = {"imagenet-64": "ImageNet", "bedroom-256": "LSUN bedroom", "cat-256": "LSUN cat"}
_EDM = DiffusionConfig(parametrisation="edm")
_CONSISTENCY = DiffusionConfig(parametrisation="consistency")


def _cm(data: str) -> dict[str, Preset]:
    """The four published models of a data set: EDM, consistency distillation by two distances, consistency training."""
    model, file, images = _CM_NETWORKS[data], data.replace("-", ""), _CM_DATA[data]
    kinds = {
        f"edm-{data}": (replace(model, dropout=0.1), _EDM, f"edm_{file}_ema.pt", "EDM"),
        f"cd-{data}-l2": (model, _CONSISTENCY, f"cd_{file}_l2.pt", "consistency distillation, l2"),
        f"cd-{data}-lpips": (model, _CONSISTENCY, f"cd_{file}_lpips.pt", "consistency distillation, LPIPS"),
        f"ct-{data}": (model, _CONSISTENCY, f"ct_{file}.pt", "consistency training"),
    }
    return {
        name: Preset(network, diffusion, released, f"{images}, {note}", planar_attention=True)
        for name, (network, diffusion, released, note) in kinds.items()
    }


_DDPM_CIFAR10 = UNetConfig(
    image_size=32,
    channel_mult=(1, 2, 2, 2),
    attention_resolutions=(16,),
    dropout=0.1,
    use_scale_shift_norm=False,
    resblock_updown=False,
)
_IDDPM_CIFAR10 = replace(
    _DDPM_CIFAR10,
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    num_heads=4,
    dropout=0.3,
    use_scale_shift_norm=True,
    learn_sigma=True,
)
_IDDPM = DiffusionConfig(steps=4000, schedule="cosine", variance="learned_range", rescale_timesteps=True)

_FASHION = UNetConfig(
    image_size=32,
    in_channels=1,
    out_channels=1,
    model_channels=32,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=32,
    resblock_updown=False,
    conv_resample=False,
    num_classes=10,
    null_label=True,
)

# Trained in hours on two cores: depth where the images are small, and width at most 128.
_EMOJI = UNetConfig(
    image_size=64,
    model_channels=32,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=(1, 1, 2, 2),
    attention_resolutions=(16, 8),
    num_head_channels=32,
    resblock_updown=False,
    conv_resample=False,
    num_classes=9,
    null_label=True,
)

PRESETS: dict[str, Preset] = {
    "fashion-mnist": Preset(
        _FASHION,
        DiffusionConfig(schedule="cosine", prediction="v"),
        note="Fashion-MNIST, class-conditional, 1.7 M parameters",
    ),
    "fashion-mnist-few": Preset(
        _FASHION,
        DiffusionConfig(schedule="cosine", prediction="v", few_steps=True),
        note="the same in 1 to 4 steps, by consistency tuning",
    ),
    "fashion-mnist-classifier": Preset(
        ClassifierConfig(
            image_size=32,
            in_channels=1,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(8,),
            num_head_channels=32,
            num_outputs=10,
        ),
        DiffusionConfig(schedule="cosine"),
        note="noisy-image classifier for guidance, and the features of fastdiff evaluate",
    ),
    "emoji": Preset(
        _EMOJI,
        DiffusionConfig(schedule="cosine", prediction="v"),
        note="Noto Color Emoji, class-conditional, 5.1 M parameters",
    ),
    "emoji-upsampler": Preset(
        replace(
            _EMOJI,
            image_size=128,
            channel_mult=(1, 1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(),
            low_res="bilinear",
        ),
        DiffusionConfig(schedule="cosine", prediction="v"),
        note="the same, 64 to 128",
    ),
    "adm-64": Preset(
        _adm(
            64,
            model_channels=192,
            num_res_blocks=3,
            dropout=0.1,
            use_new_attention_order=True,
        ),
        _COSINE,
        "64x64_diffusion.pt",
        "ImageNet",
    ),
    "adm-128": Preset(_adm(128, num_heads=4, num_head_channels=-1), _ADM, "128x128_diffusion.pt", "ImageNet"),
    "adm-256": Preset(_adm(256), _ADM, "256x256_diffusion.pt", "ImageNet"),
    "adm-256-uncond": Preset(
        _adm(256, num_classes=None), _ADM, "256x256_diffusion_uncond.pt", "ImageNet, without classes"
    ),
    "adm-512": Preset(_adm(512), _ADM, "512x512_diffusion.pt", "ImageNet"),
    "adm-512-uncond": Preset(
        _adm(512, num_classes=None),
        _ADM,
        "512x512_diffusion_uncond_finetune_008100.pt",
        "ImageNet, without classes, fine-tuned from adm-512",
    ),
    "adm-64-256": Preset(
        _upsampler(256, num_heads=4, num_head_channels=-1), _ADM, "64_256_upsampler.pt", "ImageNet, 64 to 256"
    ),
    "adm-128-512": Preset(
        _upsampler(512, attention_resolutions=(32, 16)), _ADM, "128_512_upsampler.pt", "ImageNet, 128 to 512"
    ),
    "adm-lsun-bedroom": _lsun("bedroom"),
    "adm-lsun-cat": _lsun("cat"),
    "adm-lsun-horse": _lsun("horse"),
    "adm-lsun-horse-nodropout": _lsun("horse", 0.0, "_nodropout"),
    "adm-64-classifier": _classifier(64, depth=4),
    "adm-128-classifier": _classifier(128),
    "adm-256-classifier": _classifier(256),
    "adm-512-classifier": _classifier(512),
    **_cm("imagenet-64"),
    **_cm("bedroom-256"),
    **_cm("cat-256"),
    "ddpm-cifar10": Preset(_DDPM_CIFAR10, DiffusionConfig(variance="fixed_large"), note="Ho et al. 2020"),
    "iddpm-cifar10": Preset(_IDDPM_CIFAR10, _IDDPM, note="Nichol & Dhariwal 2021"),
    "iddpm-imagenet-64": Preset(
        replace(_IDDPM_CIFAR10, image_size=64, channel_mult=(1, 2, 3, 4), dropout=0.0),
        _IDDPM,
        note="Nichol & Dhariwal 2021",
    ),
}
