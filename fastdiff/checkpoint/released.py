"""Published checkpoints: where each file is, and what is known of its contents. The file's name is in the zoo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from fastdiff.errors import FastdiffError, nearest
from fastdiff.zoo import PRESETS

CACHE = "FASTDIFF_CACHE"  # environment variable with the folder for downloaded files


@dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
        name: its preset, and the name that it is fetched and loaded by.
        folder: the address of the folder that it is in.
        size: bytes; None where nobody has published it.
        checksum: "sha256:..." or "md5:..."; None where nobody has published one.
    """

    name: str
    folder: str
    size: int | None = None
    checksum: str | None = None

    @property
    def file(self) -> str:
        return str(PRESETS[self.name].released)

    @property
    def address(self) -> str:
        return f"{self.folder}/{self.file}"

    @property
    def path(self) -> Path:
        """Where it is, or would be, on this machine."""
        return cache() / self.file


# The README of openai/guided-diffusion, "Download pre-trained models". It has neither sizes nor checksums: those of
# 256x256_diffusion.pt are its server's Content-Length and Content-MD5; those of 256x256_diffusion_uncond.pt are
# published by many projects that use it (and by Hugging Face, for a copy).
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
# Katherine Crowson's; size and checksum are those of its Git LFS pointer.
_FINETUNED = "https://huggingface.co/lowlevelware/512x512_diffusion_unconditional_ImageNet/resolve/main"

# The README of openai/consistency_models, which has neither sizes nor checksums.
_CONSISTENCY = "https://openaipublic.blob.core.windows.net/consistency"

RELEASED = {
    row.name: row
    for row in (
        Released("adm-64", _ADM),
        Released("adm-128", _ADM),
        Released("adm-256", _ADM, 2_215_479_544, "md5:d94f30fb1afb2fe821c24bef2043717e"),
        Released(
            "adm-256-uncond",
            _ADM,
            2_211_383_297,
            "sha256:a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        ),
        Released("adm-512", _ADM),
        Released(
            "adm-512-uncond",
            _FINETUNED,
            2_232_025_447,
            "sha256:9c111ab89e214862b76e1fa6a1b3f1d329b1a88281885943d2cdbe357ad57648",
        ),
        Released("adm-64-256", _ADM),
        Released("adm-128-512", _ADM),
        Released("adm-lsun-bedroom", _ADM),
        Released("adm-lsun-cat", _ADM),
        Released("adm-lsun-horse", _ADM),
        Released("adm-lsun-horse-nodropout", _ADM),
        Released("adm-64-classifier", _ADM),
        Released("adm-128-classifier", _ADM),
        Released("adm-256-classifier", _ADM),
        Released("adm-512-classifier", _ADM),
        *(
            Released(f"{kind}-{data}{loss}", _CONSISTENCY)
            for data in ("imagenet-64", "bedroom-256", "cat-256")
            for kind, loss in (("edm", ""), ("cd", "-l2"), ("cd", "-lpips"), ("ct", ""))
        ),
    )
}


def cache() -> Path:
    """The folder for downloaded files: $FASTDIFF_CACHE, or the platform's, such as ~/.cache/fastdiff."""
    return Path(os.environ.get(CACHE) or user_cache_path("fastdiff", appauthor=False)).expanduser()


def find(name: str) -> Released | None:
    """The published checkpoint with this name, which may be its preset's, its file's, or its file's without .pt."""
    return next((row for row in RELEASED.values() if name in (row.name, row.file, Path(row.file).stem)), None)


def released(name: str) -> Released:
    """The same.

    Raises:
        FastdiffError: no such checkpoint; the message has the nearest names.
    """
    row = find(name)
    if row is None:
        near = nearest(name, [*RELEASED, *(row.file for row in RELEASED.values())], most=3, cutoff=0.5)
        raise FastdiffError(
            f"no published checkpoint has the name {name!r}{near}; fastdiff fetch --list shows all"
        )
    return row
