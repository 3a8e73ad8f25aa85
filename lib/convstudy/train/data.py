# SPDX-License-Identifier: MIT
"""What a step is trained on: batches in an order that a seed and the step's number decide."""

import functools

import numpy as np

from convstudy.images.pairs import Pairs


class Batches:
    """Every pair once an epoch, in another order each time, some of them mirrored.

    Nothing is drawn from a generator that goes on from step to step, so that a training that is
    taken up again at step t needs nothing but t.

    Parameters
    ----------
    pairs : Pairs
    batch : int
        Images a step. What does not fill a batch at the end of an epoch has its turn in another.
    seed : int
    flip : bool
        Mirror every other pair, left to right.

    Attributes
    ----------
    share : slice
        Which images of each batch `at` returns, where others take the rest: all, at first.

    Raises
    ------
    ValueError
        If there are fewer pairs than a batch takes, or a number is out of range.
    """

    def __init__(self, pairs, batch, seed=0, flip=True):
        if batch < 1 or seed < 0:
            raise ValueError(
                f"Batches: batch must be at least 1 and seed at least 0, got {batch} and {seed}"
            )
        if len(pairs) < batch:
            raise ValueError(
                f"Batches: there are {len(pairs)} images to train on, fewer than a batch of "
                f"{batch}; add images, or make the batch smaller"
            )
        self.pairs, self.batch, self.seed, self.flip = pairs, batch, seed, flip
        self.steps_per_epoch = len(pairs) // batch
        self.share = slice(0, batch)
        self._epoch = functools.lru_cache(maxsize=2)(self._drawn)

    @property
    def shape(self):
        """(N, 3, H, W) of the images that `at` returns."""
        return len(range(self.batch)[self.share]), *self.pairs.shape

    def at(self, step):
        """Return (images, masks) of a step, as `Pairs.batch` does; the first is step 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, mirrored = self._epoch(epoch)
        taken = range(place * self.batch, (place + 1) * self.batch)[self.share]
        images, masks = self.pairs.batch(order[taken])
        turned = mirrored[taken]
        images[turned] = images[turned, ..., ::-1]
        masks[turned] = masks[turned, ..., ::-1]
        return images, masks

    def _drawn(self, epoch):
        """Return the order of an epoch, and which places of it are mirrored."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch))))
        order = rng.permutation(len(self.pairs))
        return order, (rng.random(len(order)) < 0.5) & self.flip


class Kept(Pairs):
    """Pairs that take time to make or read: each is made once, and kept with 8 bits a colour."""

    def __init__(self, pairs):
        self._pairs = pairs
        self._known = {}

    def __len__(self):
        return len(self._pairs)

    @property
    def shape(self):
        return self._pairs.shape

    def _pair(self, index):
        if index not in self._known:
            image, mask = self._pairs[index]
            self._known[index] = np.rint(image * 255).astype(np.uint8), mask
        levels, mask = self._known[index]
        return levels / np.float32(255), mask


class Part(Pairs):
    """Some of the pairs of a set, by their indices."""

    def __init__(self, pairs, indices):
        self._pairs, self._indices = pairs, tuple(indices)

    def __len__(self):
        return len(self._indices)

    @property
    def shape(self):
        return self._pairs.shape

    def _pair(self, index):
        return self._pairs[self._indices[index]]


def split(pairs, held_out, seed=0):
    """Return (training pairs, held-out pairs): `held_out` of them, drawn from all.

    Where pictures show the same things, as views of one car do, no part of them is unseen: such a
    set is better split by hand.
    """
    if not 1 <= held_out < len(pairs):
        raise ValueError(
            f"there are {len(pairs)} images, of which {held_out} cannot be held out: hold out at "
            "least 1, and leave some to train on"
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    return Part(pairs, order[held_out:]), Part(pairs, order[:held_out])
