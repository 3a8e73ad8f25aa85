# SPDX-License-Identifier: MIT
"""What every set of images with masks has in common."""

import operator
from abc import ABC, abstractmethod

import numpy as np


class Pairs(ABC):
    """A sequence of (image, mask), one at a time or as a batch; a set says how to make one."""

    @abstractmethod
    def __len__(self):
        """Return how many pairs there are."""

    @abstractmethod
    def _pair(self, index):
        """Return (image, mask) of an index from 0 on, as `__getitem__` returns them."""

    @property
    def shape(self):
        """(3, H, W): of the first image, and of all where a batch can be made of any."""
        return self[0][0].shape

    def __getitem__(self, index):
        """Return (image, mask): (3, H, W) float32 in [0, 1], and (H, W) uint8 of classes."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"{type(self).__name__}: there is no image {index}; it holds {len(self)}"
            )
        return self._pair(index % len(self))

    def batch(self, indices):
        """Return the images and masks named, stacked.

        Parameters
        ----------
        indices : iterable of int

        Returns
        -------
        images : array, (N, 3, H, W) float32 in [0, 1], C-contiguous
        masks : array, (N, H, W) uint8, C-contiguous
            The class of each pixel: 0 or 1, unless a set says that it has more.

        Raises
        ------
        IndexError
            If the set holds no such image.
        ValueError
            If none is named, or the images named are not all of one size.
        """
        pairs = [self[index] for index in indices]
        sizes = {mask.shape for _, mask in pairs}
        if len(sizes) != 1:
            raise ValueError(
                f"{type(self).__name__}: a batch takes images of one size, got"
                f" {sorted(sizes) or 'none'}; name images of one size"
            )
        images, masks = zip(*pairs, strict=True)
        return np.stack(images), np.stack(masks)
