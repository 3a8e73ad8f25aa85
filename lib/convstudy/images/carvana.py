# SPDX-License-Identifier: MIT
"""The Carvana set, for those who have it: cars and their masks in the layout that Kaggle ships."""

from pathlib import Path

import numpy as np
from PIL import Image

from convstudy import paths
from convstudy.images.load import open_image, to_array
from convstudy.images.pairs import Pairs

ROOT = paths.IMAGES / "carvana"
IMAGES, MASKS = "train", "train_masks"
HOW = (
    "take train.zip and train_masks.zip from Kaggle's competition carvana-image-masking-challenge"
    " (an account and its rules are needed) and unpack both there, which gives"
    f" {IMAGES}/<id>_<view>.jpg and {MASKS}/<id>_<view>_mask.gif"
)


class CarvanaSet(Pairs):
    """Carvana's images and masks, scaled down as they are read.

    Parameters
    ----------
    root : path-like
        The folder that holds ``train`` and ``train_masks``.
    scale : float
        In (0, 1]: 0.1 makes 191 x 128 of 1918 x 1280, truncated. Images are resized bicubically,
        masks by the nearest pixel.

    Raises
    ------
    FileNotFoundError
        If a folder is not there or is empty, or an image lacks its mask or a mask its image.
    ValueError
        If the scale is out of range; on reading, if a file is broken, a mask is of another size
        than its image, or a mask holds more than two values.
    """

    def __init__(self, root=ROOT, scale=0.1):
        if not 0 < scale <= 1:
            raise ValueError(f"CarvanaSet: scale must be in (0, 1], got {scale}")
        self.root, self.scale = Path(root), scale
        images = _list(self.root, IMAGES, ".jpg")
        masks = _list(self.root, MASKS, "_mask.gif")
        _must_match(images, masks, self.root / MASKS, "_mask.gif", "mask")
        _must_match(masks, images, self.root / IMAGES, ".jpg", "image")
        self.names = sorted(images)
        self._files = [(images[name], masks[name]) for name in self.names]

    def __len__(self):
        return len(self._files)

    def _pair(self, index):
        image_path, mask_path = self._files[index]
        image, mask = open_image(image_path), open_image(mask_path)
        if image.size != mask.size:
            raise ValueError(
                f"{mask_path} is {mask.width} x {mask.height}, but {image_path} is"
                f" {image.width} x {image.height}; get both again from one source"
            )
        size = (int(self.scale * image.width), int(self.scale * image.height))
        if min(size) < 1:
            raise ValueError(
                f"{image_path} of {image.width} x {image.height} vanishes at the scale"
                f" {self.scale}; use a greater one"
            )
        mask = _binary(mask, mask_path).resize(size, Image.Resampling.NEAREST)
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        return to_array(image), np.array(mask, np.uint8)


def _list(root, folder, ending):
    """Return the files of one folder by the name that an image and its mask share."""
    path = root / folder
    files = {}
    if path.is_dir():
        files = {p.name.removesuffix(ending): p for p in sorted(path.glob("*" + ending))}
    if files:
        return files
    archive = root / f"{folder}.zip"
    if archive.is_file():
        way_out = f"unpack it: python -m zipfile -e {archive} {root}"
    else:
        way_out = f"in {root}, {HOW}"
    state = f"holds no *{ending}" if path.is_dir() else "is not there"
    raise FileNotFoundError(f"{path} {state}; {way_out}")


def _must_match(have, want, folder, ending, what):
    """Raise unless everything in `have` has its counterpart in `want`."""
    missing = sorted(have.keys() - want.keys())
    if missing:
        name = missing[0]
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{folder / (name + ending)}{others} is missing, the {what} of {have[name]};"
            " put it there, or remove what has none"
        )


def _binary(mask, path):
    """Return a mask of 0 and 1: of two values the brighter is the car, one above 0 is all car."""
    levels = np.asarray(mask.convert("L"))
    values = np.unique(levels)
    if len(values) > 2:
        raise ValueError(
            f"{path} holds {len(values)} values, a mask holds two at most; a mask saved as a JPEG"
            " or resized smoothly has to be got again"
        )
    floor = values[0] if len(values) == 2 else 0
    return Image.fromarray((levels > floor).astype(np.uint8))
