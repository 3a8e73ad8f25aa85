# SPDX-License-Identifier: MIT
"""All parameters of a network in one array, each as the kernels take it."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

# Numbers: a tensor map's address is a multiple of 16 bytes, for bf16 too.
_ALIGNMENT = 32


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies: its first number, and its shape as the kernels take it."""

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self):
        return math.prod(self.shape)


class Layout:
    """How parameters lie in one array, side by side, and what their own shapes are.

    Filters lie channels last: (K, R, S, C) for a convolution's (K, C, R, S), and (C, R, S, K) for
    the (C, K, R, S) of a transposed one.

    Parameters
    ----------
    shapes : dict of str to tuple
        As in the state_dict.
    seen_as : dict of str to tuple, optional
        The shape (K, C, H, W) as which a matrix (K, C H W) of a linear layer is to lie.
    first : collection of str
        Which are to lie before all others.

    Attributes
    ----------
    first
    slots : dict of str to Slot
        In the order in which they lie.
    size : int
        Numbers of the array; those between parameters are zeros.
    """

    def __init__(self, shapes, seen_as=None, first=()):
        self._seen_as, self.first = seen_as or {}, frozenset(first)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.slots, self.size = {}, 0
        for name in sorted(self._shapes, key=lambda name: name not in self.first):
            shape = self._seen_as.get(name, self._shapes[name])
            lying = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
            self.slots[name] = Slot(self.size, lying)
            self.size += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT

    @property
    def places(self):
        """Where each lies, by name, with the zeros behind it."""
        starts = [slot.offset for slot in self.slots.values()]
        return dict(zip(self.slots, map(slice, starts, [*starts[1:], self.size]), strict=True))

    def runs(self, kind):
        """Return [(kind, slice), ...]: neighbours of which ``kind(name)`` says the same, in order.

        Examples
        --------
        >>> Layout({"a": (40,), "b": (2, 2), "c": (5,)}).runs(lambda name: name == "a")
        [(True, slice(0, 64, None)), (False, slice(64, 128, None))]
        """
        places = self.places
        groups = [(each, list(names)) for each, names in itertools.groupby(places, kind)]
        return [
            (each, slice(places[names[0]].start, places[names[-1]].stop)) for each, names in groups
        ]

    def pack(self, state):
        """Return the float32 array of all parameters of `state`, by name."""
        packed = np.zeros(self.size, np.float32)
        for name, slot in self.slots.items():
            array = np.asarray(state[name])
            array = array.reshape(self._seen_as.get(name, array.shape))
            lying = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
            packed[slot.offset : slot.offset + slot.size] = lying.ravel()
        return packed

    def unpack(self, packed):
        """Return the parameters of such an array, by name."""
        state = {}
        for name, shape in self._shapes.items():
            slot = self.slots[name]
            lying = packed[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            array = np.moveaxis(lying, -1, 1) if lying.ndim == 4 else lying
            state[name] = np.ascontiguousarray(array).reshape(shape)
        return state
