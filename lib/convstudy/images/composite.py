# SPDX-License-Identifier: MIT
"""Composites: photographic cut-outs over photographs, so that the mask is exact.

A composite is drawn from its seed, its split and its index alone. The held-out split shares neither
a cut-out nor a background with the other.
"""

import contextlib
import functools

import numpy as np
from PIL import Image

from convstudy.images import manifest
from convstudy.images.load import open_image, to_array
from convstudy.images.pairs import Pairs

HEIGHT, WIDTH = 128, 191  # Carvana's 1280 x 1918 at the scale 0.1
SAMPLE = 8
SAMPLE_SPLIT = "held-out"

SECOND_OBJECT = 0.35  # the share of composites that show two
OBJECT_SIZE = (0.35, 0.75)  # root of a cut-out's area over the image's
CROP_SIZE = (0.5, 1.0)  # of the largest crop that a background allows
TINT = (0.85, 1.15)  # gain of each colour


class CompositeSet(Pairs):
    """Composites made as they are asked for, the same ones every time.

    Parameters
    ----------
    split : {"train", "held-out"}
        Which cut-outs and backgrounds are used.
    size : int
        How many composites there are.
    height, width : int
        Of every composite.
    seed : int
        Not negative; another seed is another set.

    Raises
    ------
    ValueError
        If the split is unknown, or a number is out of range.
    FileNotFoundError, ValueError
        If the committed set is not whole; ``make data-check`` says what is missing.
    """

    def __init__(self, split, size, height=HEIGHT, width=WIDTH, seed=0):
        if split not in manifest.SPLITS:
            raise ValueError(
                f"CompositeSet: there is no split {split!r}; take one of {manifest.SPLITS}"
            )
        if min(size, seed) < 0 or min(height, width) < 8:
            raise ValueError(
                "CompositeSet: size and seed must not be negative, height and width at least 8,"
                f" got size={size}, seed={seed}, height={height}, width={width}"
            )
        self.split = split
        self.size, self.height, self.width, self.seed = size, height, width, seed
        self._objects = _rows("object", split)
        self._backgrounds = _rows("background", split)

    def __len__(self):
        return self.size

    @property
    def shape(self):
        return 3, self.height, self.width

    def sources(self, index):
        """Return the manifest's rows of what composite `index` shows: background, then objects."""
        return self._choose(index)[0]

    def render(self, index):
        """Return composite `index` as levels: (H, W, 3) uint8, and its mask, (H, W) uint8 0/1."""
        (background, *objects), rng = self._choose(index)
        levels = _tint(_crop(_open(background.path), self.height, self.width, rng), rng)
        mask = np.zeros((self.height, self.width), np.uint8)
        for row in objects:
            _paste(levels, mask, _open(row.path), rng)
        return np.rint(levels).astype(np.uint8), mask

    def _choose(self, index):
        """Return what composite `index` shows, and the generator that goes on to place it."""
        key = (self.seed, manifest.SPLITS.index(self.split), index)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        background = self._backgrounds[rng.integers(len(self._backgrounds))]
        count = 1 + (rng.random() < SECOND_OBJECT)
        chosen = rng.choice(len(self._objects), size=count, replace=False)
        return (background, *(self._objects[i] for i in chosen)), rng

    def _pair(self, index):
        levels, mask = self.render(index)
        return to_array(Image.fromarray(levels)), mask


def load_sample():
    """Return the committed composites, ready-made.

    Returns
    -------
    images : array, (8, 3, 128, 191) float32 in [0, 1], C-contiguous
    masks : array, (8, 128, 191) uint8 of 0 and 1

    Raises
    ------
    FileNotFoundError, ValueError
        If the committed set is not whole; ``make data-check`` says what is missing.
    """
    images = [to_array(_open(row.path)) for row in _rows("composite", SAMPLE_SPLIT)]
    masks = [np.asarray(_open(row.path)) // 255 for row in _rows("mask", SAMPLE_SPLIT)]
    return np.stack(images), np.stack(masks)


@contextlib.contextmanager
def _checking():
    """Name, with what is found not to be whole, the command that tells the rest."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; `make data-check` says what else is not whole") from error


def _rows(kind, split):
    """Return the rows of a kind and a split, whose files are all there."""
    with _checking():
        found = manifest.rows(kind, split)
        if not found:
            raise ValueError(f"{manifest.NAME} lists no {kind} of the split {split}")
        for row in found:
            if not row.path.is_file():
                raise FileNotFoundError(f"{row.path} is missing")
    return found


@functools.lru_cache(maxsize=256)
def _open(path):
    with _checking():
        return open_image(path)


def _crop(image, height, width, rng):
    """Return part of a background at the given size: (H, W, 3) float32 levels."""
    most = min(image.width / width, image.height / height)
    scale = most * rng.uniform(*CROP_SIZE)
    left = rng.uniform(0, image.width - scale * width)
    top = rng.uniform(0, image.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    part = image.resize((width, height), Image.Resampling.BICUBIC, box)
    return _flip(np.asarray(part, np.float32), rng)


def _paste(levels, mask, cut_out, rng):
    """Lay a cut-out over the levels, whole and somewhere, and mark it in the mask; both change."""
    height, width = mask.shape
    scale = rng.uniform(*OBJECT_SIZE) * np.sqrt(height * width / (cut_out.width * cut_out.height))
    scale = min(scale, width / cut_out.width, height / cut_out.height)
    size = (max(1, int(scale * cut_out.width)), max(1, int(scale * cut_out.height)))
    # Pillow weighs colours by alpha here, so that none bleeds in from where all is transparent.
    pixels = np.asarray(cut_out.resize(size, Image.Resampling.BICUBIC), np.float32)
    pixels = _flip(pixels, rng)
    top = rng.integers(height - size[1] + 1)
    left = rng.integers(width - size[0] + 1)
    window = (slice(top, top + size[1]), slice(left, left + size[0]))
    alpha = pixels[..., 3:] / 255
    levels[window] += alpha * (_tint(pixels[..., :3], rng) - levels[window])
    mask[window] |= alpha[..., 0] >= 0.5


def _flip(pixels, rng):
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels.copy()


def _tint(levels, rng):
    return np.clip(levels * rng.uniform(*TINT, size=3).astype(np.float32), 0, 255)
