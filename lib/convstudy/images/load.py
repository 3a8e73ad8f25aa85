# SPDX-License-Identifier: MIT
"""Any picture as an array that the network takes."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convstudy.device import free_bytes

LEVELS_16 = 65535
# Of a pixel, decoded and as an array, while one is made of the other.
_BYTES = 32
# Pillow's own limit is of pixels; here they may be as many as there is memory for.
Image.MAX_IMAGE_PIXELS = None


def open_image(path):
    """Return the picture in the file, upright, decoded so that a broken file is found here."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a picture in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; check the name")
    try:
        with path.open("rb") as file:
            image = Image.open(file)
            _check_memory(path, image)
            return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); get the file again or remove it"
        ) from error


def _check_memory(path, image):
    """Raise MemoryError unless there is room for a picture that is still to be decoded."""
    needed, free = _BYTES * image.width * image.height, free_bytes()
    if needed > free:
        raise MemoryError(
            f"{path} of {image.width} x {image.height} pixels takes {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; make it smaller"
        )


def to_array(image):
    """Return a Pillow image as an RGB array: (3, H, W) float32 in [0, 1], C-contiguous."""
    levels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    return np.ascontiguousarray(levels.transpose(2, 0, 1))


def load_image(path):
    """Return any picture as the network takes it.

    Parameters
    ----------
    path : path-like
        A file in any format that Pillow reads: RGB, grey of 1, 8 or 16 bits, with a palette, CMYK,
        or with transparency, which is shown over white. A camera's orientation tag is obeyed.

    Returns
    -------
    array, (3, H, W) float32, C-contiguous
        RGB in [0, 1], at the picture's own size.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is a folder, or no image, or its numbers have no known white.
    MemoryError
        If there is no room for it.
    """
    image = open_image(path)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _deep_grey(image, path)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return to_array(image)


def _deep_grey(image, path):
    """Return grey of 16 bits, which Pillow's own conversion to RGB would clip at 255."""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > LEVELS_16:
        raise ValueError(
            f"{path} holds numbers of which none is known to be white; save it with 8 or 16 bits"
        )
    grey = levels.astype(np.float32) / np.float32(LEVELS_16)
    return np.repeat(grey[None], 3, axis=0)
