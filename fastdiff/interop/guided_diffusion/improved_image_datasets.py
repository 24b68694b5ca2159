"""improved-diffusion's ``image_datasets``: guided-diffusion's without mirrored and randomly cropped images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastdiff.interop.guided_diffusion import image_datasets


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
) -> Iterator[Any]:
    """Batches without end, as :func:`image_datasets.load_data`, of the middle squares as they are."""
    return image_datasets.load_data(
        data_dir=data_dir,
        batch_size=batch_size,
        image_size=image_size,
        class_cond=class_cond,
        deterministic=deterministic,
        random_flip=False,
    )


class ImageDataset(image_datasets.ImageDataset):
    """The images of one shard."""

    def __init__(
        self,
        resolution: int,
        image_paths: list[str],
        classes: list[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        super().__init__(resolution, image_paths, classes, shard, num_shards, random_flip=False)
