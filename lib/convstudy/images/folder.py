# SPDX-License-Identifier: MIT
"""Your own pictures: a folder of images, a folder of masks, matched by name."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from convstudy.images.load import load_image, open_image
from convstudy.images.pairs import Pairs

IMAGES, MASKS = "images", "masks"
MASK_ENDING = "_mask"
MOST_CLASSES = 32


class FolderSet(Pairs):
    """Images and masks of any format that Pillow reads, all checked before one is used.

    Parameters
    ----------
    root : path-like
        Holds ``images/`` and ``masks/``. A mask is named as its image, or with ``_mask`` behind;
        endings such as ``.png`` may differ.
    size : (int, int), optional
        Height and width to which all are resized, images bicubically and masks by the nearest
        pixel. If not given, all have to be of one size.

    Attributes
    ----------
    names : list of str
    values : tuple of int
        What the masks hold, in order: a pixel of ``values[i]`` is of class i.

    Raises
    ------
    FileNotFoundError
        If a folder is not there or is empty, or an image lacks its mask or a mask its image.
    ValueError
        If a file is broken, a mask is not of its image's size, the images are of several sizes and
        none is given, a mask is no mask, or all masks hold one value only.
    """

    def __init__(self, root, size=None):
        self.root, self.size = Path(root), size
        images, masks = (_list(self.root / folder) for folder in (IMAGES, MASKS))
        _must_match(images, masks, "image", "mask", self.root / MASKS)
        _must_match(masks, images, "mask", "image", self.root / IMAGES)
        self.names = sorted(images)
        self._files = [(images[name], masks[name]) for name in self.names]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda pair: _check(*pair), self._files))
        self.values = _classes({value for _, values in found for value in values}, self.root)
        sizes = {size: name for name, (size, _) in zip(self.names, found, strict=True)}
        if size is None and len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ValueError(
                f"{self.root / IMAGES}: {first} is {one[0]} x {one[1]} and {second} is "
                f"{other[0]} x {other[1]} (height x width), and a batch takes images of one size; "
                "give the size to which all are resized"
            )

    def __len__(self):
        return len(self._files)

    @property
    def shape(self):
        return (3, *self.size) if self.size else super().shape

    def _pair(self, index):
        image_path, mask_path = self._files[index]
        image, mask = load_image(image_path), _levels(mask_path)
        mask = np.searchsorted(self.values, mask).astype(np.uint8)
        if self.size and self.size != mask.shape:
            height, width = self.size
            image = np.stack([_resized(each, width, height, Image.BICUBIC) for each in image])
            mask = _resized(mask, width, height, Image.NEAREST)
        return np.clip(image, 0, 1), mask


def _list(folder):
    """Return the files of a folder by the name that an image and its mask share."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not there; a folder to train on holds {IMAGES}/ and {MASKS}/"
        )
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            name = path.stem.removesuffix(MASK_ENDING)
            if name in files:
                raise ValueError(f"{path} and {files[name]} have one name; remove one of them")
            files[name] = path
    if not files:
        raise FileNotFoundError(f"{folder} is empty; put the {folder.name} there")
    return files


def _must_match(have, want, one, other, folder):
    """Raise unless everything in `have` has its counterpart in `want`."""
    missing = sorted(have.keys() - want.keys())
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"the {one} {have[missing[0]]}{more} has no {other} in {folder}; "
            f"add {missing[0]}.png there, or remove what has none"
        )


def _check(image_path, mask_path):
    """Return (height, width) of a pair, and the values of its mask; raise where it is no pair."""
    image, levels = open_image(image_path), _levels(mask_path)
    if (image.height, image.width) != levels.shape:
        raise ValueError(
            f"{mask_path} is {levels.shape[0]} x {levels.shape[1]}, but {image_path} is "
            f"{image.height} x {image.width} (height x width); make the mask of the image's size"
        )
    values = np.unique(levels)
    if len(values) > MOST_CLASSES:
        raise ValueError(
            f"{mask_path} holds {len(values)} values, and a mask one for each class, "
            f"{MOST_CLASSES} at most; get it again if it was saved as a JPEG or resized smoothly"
        )
    return levels.shape, values.tolist()


def _levels(path):
    """Return a mask as it is stored: (H, W) integers."""
    image = open_image(path)
    if image.mode == "F":
        raise ValueError(f"{path} holds floats; save the mask as grey, one level for each class")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "RGB", "RGBA", "LA"):
        colours = np.asarray(image.convert("RGB"))
        # Grey is a level however it is stored: files number the colours of a palette as they like.
        if (colours == colours[..., :1]).all():
            return colours[..., 0]
        if image.mode != "P":
            raise ValueError(f"{path} is coloured; save the mask as grey, one level for each class")
    return np.asarray(image).astype(np.int64)


def _classes(values, root):
    if len(values) < 2:
        raise ValueError(
            f"{root / MASKS}: all masks hold the one value {min(values)}, so there is nothing to "
            "tell apart; a mask marks the object by another value than the rest"
        )
    if len(values) > MOST_CLASSES:
        raise ValueError(
            f"{root / MASKS}: the masks hold {len(values)} values in all, and there may be "
            f"{MOST_CLASSES} classes; use the same value for a class in every mask"
        )
    return tuple(sorted(values))


def _resized(plane, width, height, how):
    return np.asarray(Image.fromarray(plane).resize((width, height), how))
