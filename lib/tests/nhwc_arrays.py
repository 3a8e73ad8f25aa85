# SPDX-License-Identifier: MIT
"""NHWC arrays on the emulator or a GPU, some of them slices of wider ones, all poisoned around."""

import numpy as np

from convstudy import compile, emulator, tolerance
from convstudy.device import array_module
from convstudy.nn.pixels import from_channel

DTYPES = ("float32", "bfloat16")


class Slice:
    """An (N, H, W, C) array that lies among the channels of a wider one.

    All of it is NaN until it is put: outputs that nobody writes show, and so do reads around it.
    """

    def __init__(self, where, shape, dtype, before=0, behind=0):
        self._xp = array_module(where)
        *pixels, self.channels = shape
        self.before, self.pitch = before, before + self.channels + behind
        self.wide = self._xp.asarray(
            np.full((*pixels, self.pitch), np.nan, np.float32).astype(dtype)
        )

    @property
    def shape(self):
        return *self.wide.shape[:-1], self.channels

    @property
    def dtype(self):
        return str(self.wide.dtype)

    @property
    def pointer(self):
        return from_channel(self.wide, self.before)

    def put(self, values):
        wide = np.full(self.wide.shape, np.nan, np.float32)
        wide[..., self.before : self.before + self.channels] = values
        self.wide = self._xp.asarray(wide.astype(self.dtype))
        return self

    def get(self):
        """Return the values as float64, or fail where anything around them was written."""
        wide = host(self.wide)
        own = slice(self.before, self.before + self.channels)
        assert np.isnan(np.delete(wide, own, axis=-1)).all(), "channels around it were written"
        return wide[..., own]


class Bench:
    """Makes arrays on a device, and runs launches there."""

    def __init__(self, where):
        self.where = where

    def slice(self, shape, dtype="float32", around=(0, 0)):
        """Return an array to be written."""
        return Slice(self.where, shape, dtype, *around)

    def put(self, values, dtype="float32", around=(0, 0)):
        """Return an array that holds float64 values, rounded to its dtype."""
        return self.slice(values.shape, dtype, around).put(values)

    def array(self, values, dtype=np.float32):
        """Return a whole array, by default of what belongs to channels, parameters or sums."""
        return array_module(self.where).asarray(np.ascontiguousarray(values, dtype))

    def unwritten(self, *shape):
        return self.array(np.full(shape, np.nan))

    def run(self, launch, *arrays):
        launch.run(self.where, [a.pointer if isinstance(a, Slice) else a for a in arrays])


def host(array):
    """Return an array of either device as float64."""
    return np.asarray(array.get() if hasattr(array, "get") else array).astype(np.float64)


def nchw(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def nhwc(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def stored(values, dtype="float32"):
    """Return float64 values as memory of that dtype holds them."""
    return np.asarray(values, np.float32).astype(dtype).astype(np.float64)


def draw(rng, shape, dtype="float32"):
    return stored(rng.standard_normal(shape), dtype)


def close(actual, expected, terms, dtype="float32"):
    """Compare what was summed in fp32 and, in bf16, rounded once."""
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    tolerance.assert_close(actual, expected, terms, dtype=np.float32, precision=precision)


def plant(monkeypatch, kernel, right, wrong):
    """Have the emulator run `kernel` with a fault in its text."""
    run = compile._on_emulator

    def faulty(name, defines, checked):
        if name != kernel:
            return run(name, defines, checked)
        text = compile.source(name, defines)
        assert right in text
        return emulator.load(text.replace(right, wrong), name, f"{name}.cu")

    monkeypatch.setattr(compile, "_on_emulator", faulty)
