# SPDX-License-Identifier: MIT
"""Gradients side by side in one array, added up over ranks bucket by bucket as they become whole.

A bucket's sum is begun when the last of its gradients is there, and goes on while those of earlier
layers are still computed. It is the same code for NumPy arrays over MPI and for a GPU's over NCCL,
which begins each sum on a stream beside, after an event in the step's own stream;
`Reduction.finish` lets the step's stream wait for it. Where the step is captured, both become edges
of the graph, and a replay overlaps them as the first run did.

Either all ranks get a bucket's sum, or each gets a part of it, for half as many bytes on their way.
"""

import math
from dataclasses import dataclass

# U-Net's come in four. On two H200s a step of one image each took 1.33 ms with these, 1.36 with
# half as large ones; of 16 images both took as long.
BUCKET_BYTES = 64 * 2**20
# Nothing hides the last one: it is whole when the backward pass is done.
LAST_BYTES = 2**20
_ITEM_BYTES = 4
# Kernels take so many at once, where a rank's part begins and ends at a multiple of it.
_VECTOR = 4


@dataclass(frozen=True)
class Buckets:
    """Where each gradient has its place, and which are added up together.

    Attributes
    ----------
    places : dict of str to slice
        Of each in the flat array, in the order in which the backward pass makes them.
    parts : tuple of slice
        Of the flat array, one a bucket, in that order and without gaps.
    members : tuple of tuple of str
        The names in each bucket.
    ranks : int
        Who get a part of a bucket's sum each, where they can share it evenly and it is not the
        last one; with 1, all of it.
    """

    places: dict
    parts: tuple
    members: tuple
    ranks: int = 1

    @classmethod
    def of(cls, shapes, most=BUCKET_BYTES, last=LAST_BYTES):
        """Put gradients of these shapes side by side, and cut them as `lying` does.

        Examples
        --------
        >>> cut = Buckets.of({"c": (2, 3), "b": (4,), "a": (2,)}, most=40, last=8)
        >>> cut.members
        (('c', 'b'), ('a',))
        >>> cut.parts
        (slice(0, 10, None), slice(10, 12, None))
        """
        places, at = {}, 0
        for name, shape in shapes.items():
            places[name] = slice(at, at + math.prod(shape))
            at = places[name].stop
        return cls.lying(places, most, last)

    @classmethod
    def lying(cls, places, most=BUCKET_BYTES, last=LAST_BYTES, together=(), ranks=1):
        """Cut gradients into buckets of at most `most` bytes, and the last one of at most `last`.

        What is larger alone has a bucket to itself.

        Parameters
        ----------
        places : dict of str to slice
            In the order in which the backward pass makes them, each beside the one before: all
            above it, or all below.
        together : collection of str
            The last ones in that order, which share the last bucket whatever they come to.
        ranks : int
            As the attribute.
        """
        if min(most, last) < _ITEM_BYTES:
            raise ValueError(
                f"Buckets: a bucket holds at least one number of {_ITEM_BYTES} bytes, "
                f"got most={most} and last={last}"
            )
        # From the end, so that the last bucket is the one that is small.
        members, limit = [[]], min(last, most)
        for name in reversed(places):
            part = _around(places, [name, *members[-1]])
            is_full = (part.stop - part.start) * _ITEM_BYTES > limit
            if members[-1] and is_full and name not in together:
                members.append([])
                limit = most
            members[-1].insert(0, name)
        members = tuple(tuple(each) for each in reversed(members) if each)
        return cls(dict(places), tuple(_around(places, each) for each in members), members, ranks)

    @property
    def size(self):
        """Numbers in the flat array."""
        return max((part.stop for part in self.parts), default=0)

    @property
    def are_scattered(self):
        """Of each bucket, whether every rank gets a part of its sum alone.

        Examples
        --------
        >>> Buckets.of({"c": (9,), "b": (16,), "a": (8,)}, 64, 32).are_scattered
        (False, False, False)
        >>> places = Buckets.of({"c": (9,), "b": (16,), "a": (8,)}).places
        >>> Buckets.lying(places, 64, 32, ranks=2).are_scattered
        (False, True, False)
        """
        together = self.ranks * _VECTOR
        return tuple(
            self.ranks > 1 and part != self.parts[-1] and (part.stop - part.start) % together == 0
            for part in self.parts
        )

    def start(self, number, flat, communicator):
        """Begin to add up a bucket, of which all gradients are in `flat`; return the `Request`."""
        part = flat[self.parts[number]]
        if self.are_scattered[number]:
            return communicator.start_reduce_scatter(part)
        return communicator.start_all_reduce(part)


class Reduction:
    """One step's gradients on their way to being the ranks' sum.

    Parameters
    ----------
    buckets : Buckets
    flat : (buckets.size,) array
    communicator : Communicator
    """

    def __init__(self, buckets, flat, communicator):
        self._buckets, self._flat, self._communicator = buckets, flat, communicator
        self._missing = [set(members) for members in buckets.members]
        self._of = {name: i for i, members in enumerate(buckets.members) for name in members}
        self._begun = []

    @property
    def requests(self):
        """The sums begun so far, in the buckets' order."""
        return tuple(self._begun)

    def ready(self, name):
        """Take note that a gradient is in its place; begin what can be begun.

        Raises
        ------
        ValueError
            If the gradient has no place, or was ready before.
        """
        if name not in self._missing[self._of.get(name, 0)]:
            raise ValueError(f"Reduction: {name} has no gradient that is waited for")
        self._missing[self._of[name]].discard(name)
        # In the buckets' order, whichever is whole first: ranks have to begin them alike.
        while len(self._begun) < len(self._missing) and not self._missing[len(self._begun)]:
            given = len(self._begun), self._flat, self._communicator
            self._begun.append(self._buckets.start(*given))
        for request in self._begun:
            request.advance()

    def finish(self):
        """Return when all gradients are the ranks' sums, or this rank's parts are.

        Raises
        ------
        RuntimeError
            If a gradient never came.
        """
        missing = sorted(name for names in self._missing for name in names)
        if missing:
            raise RuntimeError(f"Reduction: no gradient came of {', '.join(missing)}")
        for request in self._begun:
            request.wait()


def _around(places, names):
    """Return the slice that those of `names` are together."""
    return slice(min(places[n].start for n in names), max(places[n].stop for n in names))
