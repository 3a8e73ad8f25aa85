# SPDX-License-Identifier: MIT
"""Make the committed files again from the packages that the manifest names, unpacked.

``python -m convstudy.images.prepare FOLDER``, where ``FOLDER/<package>/`` holds each package's
files (``dpkg -x`` for a Debian package, ``unzip`` for a wheel).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from convstudy import paths
from convstudy.images import composite, manifest
from convstudy.images.load import open_image

OBJECT_SIDE, BACKGROUND_SIDE = 256, 640  # at most, in pixels
JPEG_QUALITY = 88


def prepare(folder):
    """Write every file of the manifest, and its new SHA-256."""
    for name in manifest.FOLDERS:
        (paths.IMAGES / name).mkdir(exist_ok=True)
    for row in manifest.rows():
        if row.kind in ("object", "background"):
            original = Path(folder) / row.package.split()[0] / row.source
            _WRITE[row.kind](open_image(original), row.path)
    _write_sample()
    manifest.write([row._replace(sha256=manifest.digest(row.path)) for row in manifest.rows()])


def _write_object(image, path):
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox())
    image.thumbnail((OBJECT_SIDE, OBJECT_SIDE), Image.Resampling.LANCZOS)
    # What cannot be seen need not be stored.
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0] = 0
    Image.fromarray(pixels).save(path, optimize=True)


def _write_background(image, path):
    image = image.convert("RGB")
    image.thumbnail((BACKGROUND_SIDE, BACKGROUND_SIDE), Image.Resampling.LANCZOS)
    image.save(path, quality=JPEG_QUALITY, optimize=True)


def _write_sample():
    sample = composite.CompositeSet(composite.SAMPLE_SPLIT, composite.SAMPLE)
    rows = zip(manifest.rows("composite"), manifest.rows("mask"), strict=True)
    for index, (image_row, mask_row) in enumerate(rows):
        levels, mask = sample.render(index)
        Image.fromarray(levels).save(image_row.path, optimize=True)
        Image.fromarray(mask * 255).save(mask_row.path, optimize=True)


_WRITE = {"object": _write_object, "background": _write_background}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    prepare(sys.argv[1])
