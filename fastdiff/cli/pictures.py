"""Images that a user gives to a model: read as they are, or fitted to its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    import numpy as np

Fit = Literal["crop", "pad"] | None


def read_images(path: Path, channels: int) -> np.ndarray:
    """[M,H,W,C] uint8, from a picture (made grey or RGB as ``channels`` says) or an .npz (as it is).

    Raises:
        FastdiffError: a missing or broken file.
    """
    import numpy as np

    from fastdiff.data.readers import open_image, read_npz

    if not path.is_file():
        raise FastdiffError(f"no image at {path}; give a picture or an .npz")
    if path.suffix == ".npz":
        images = read_npz(path).images
        return images[..., None] if images.ndim == 3 else images
    picture = open_image(path).convert({1: "L", 3: "RGB"}[channels])
    return np.array(picture).reshape(1, picture.height, picture.width, channels)


def fitted(path: Path, images: np.ndarray, size: int, channels: int, fit: Fit) -> np.ndarray:
    """The images of a file as a model's, [M,size,size,channels] uint8.

    Raises:
        FastdiffError: another size or other channels, and no ``fit``; an image that is too large to pad.
    """
    import numpy as np

    from fastdiff.data.fit import fit_image

    if images.shape[1:] == (size, size, channels):
        return images
    if fit is None:
        height, width, found = images.shape[1:]
        raise FastdiffError(
            f"{path} is {width} x {height} pixels with {found} channel{'s' * (found > 1)}; "
            f"the model's images are {size} x {size} with {channels}; give --fit crop or --fit pad to fit it"
        )
    try:
        return np.stack([fit_image(image, size, channels, fit) for image in images])
    except FastdiffError as error:
        raise FastdiffError(f"{path}: {error}") from None


def model_images(path: Path, model: Any, fit: Fit) -> np.ndarray:
    """The images of a file as ``model`` takes them, [M,size,size,channels] uint8; errors as of the two above."""
    size, channels = model.config.image_size, model.config.in_channels
    return fitted(path, read_images(path, channels), size, channels, fit)


def read_mask(
    path: Path, size: int, fit: Fit = None, image_size: tuple[int, int] | None = None
) -> np.ndarray:
    """[size,size] bool, True where the picture is white. A mask of the image's size is fitted as the image is.

    Args:
        size: the model's.
        fit: how masks of another size are fitted; a padded border is known.
        image_size: (H, W) of the image before it was fitted.

    Raises:
        FastdiffError: a missing or broken file, another size, other colours than black and white.
    """
    import numpy as np

    from fastdiff.data.fit import fit_image
    from fastdiff.data.readers import open_image

    if not path.is_file():
        raise FastdiffError(f"no mask at {path}; give a black and white picture, white where to fill")
    mask = np.asarray(open_image(path).convert("L"))
    wide = f"the mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels"
    grey = mask[(mask != 0) & (mask != 255)]
    if mask.shape != (size, size):
        if fit is None:
            raise FastdiffError(f"{wide}; the model's images are {size} x {size}")
        if mask.shape != image_size:
            given = "" if image_size is None else f", the image {image_size[1]} x {image_size[0]}"
            raise FastdiffError(f"{wide}{given}; give a mask of the image's size")
    if len(grey):
        raise FastdiffError(
            f"the mask {path} must be black (0, known) and white (255, to fill) only, got {grey[0]} among them"
        )
    if mask.shape != (size, size):
        mask = fit_image(mask, size, 1, fit or "crop")[..., 0]
    return mask > 127
