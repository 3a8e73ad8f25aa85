# SPDX-License-Identifier: MIT
"""How Hopper's tensor memory accelerator (TMA) sees an array of which it copies boxes.

A kernel takes it by value (``const __grid_constant__ TensorMap``). The driver encodes it for a
GPU; the CPU emulator reads the plain fields of `_EMULATED`.
"""

import ctypes
import functools
import math
from dataclasses import dataclass

import numpy as np

from convstudy import driver

_BYTES = 128
# Of a line of a box: the widest pattern of exchanged chunks there is.
LINE_BYTES = 128
# How the driver counts them (cuda.h: CUtensorMapDataType, CUtensorMapSwizzle,
# CUtensorMapL2promotion).
_DTYPES = {"float32": 7, "bfloat16": 9, "tf32": 11}
_SWIZZLE_128_BYTES = 3
_L2_256_BYTES = 3

_EMULATED = np.dtype(
    [
        ("address", "<u8"),
        ("sizes", "<u4", 4),
        ("strides", "<u8", 3),
        ("box", "<u4", 3),
        ("lower", "<i4", 2),
        ("upper", "<i4", 2),
        ("steps", "<u4", 2),
        ("rank", "<u4"),
        ("element_bytes", "<u4"),
        ("is_im2col", "<u4"),
        ("rounds_tf32", "<u4"),
    ]
)


@dataclass(frozen=True)
class TensorMap:
    """A view of an array, in boxes whose lines are 128 bytes.

    Attributes
    ----------
    dtype : {"float32", "tf32", "bfloat16"}
        Of the elements; tf32 is float32, rounded on its way.
    sizes : tuple of int
        Elements along each dimension, the innermost first; up to four.
    box : tuple of int
        Elements that one copy brings along each dimension, one along the fourth; or, with corners,
        (channels, pixels).
    lower, upper : (int, int) or None
        Corners of an im2col map along W and H: where the first pixel of a row of outputs begins,
        from the first of the array's, and where the last does, from the array's last.
    steps : (int, int)
        Pixels from one output to the next along W and H, of an im2col map.
    pitches : tuple of int or None
        Elements from one to the next along each dimension but the innermost; by default, the array
        is contiguous.

    Notes
    -----
    The array's address is a multiple of 16, and so are the bytes from one line to the next.
    """

    dtype: str
    sizes: tuple[int, ...]
    box: tuple[int, ...]
    lower: tuple[int, int] | None = None
    upper: tuple[int, int] | None = None
    steps: tuple[int, int] = (1, 1)
    pitches: tuple[int, ...] | None = None

    @property
    def element_bytes(self):
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def strides(self):
        """Bytes from one element to the next, along each dimension but the innermost."""
        pitches = self.pitches or [math.prod(self.sizes[:i]) for i in range(1, len(self.sizes))]
        return tuple(pitch * self.element_bytes for pitch in pitches)

    def of(self, array, device):
        """Return the argument by which a kernel on `device` sees `array`."""
        if device.is_gpu:
            return _encoded(self, array.data.ptr)
        return self._emulated(array)

    def _emulated(self, array):
        strides = (self.element_bytes, *self.strides)
        reach = sum((n - 1) * step for n, step in zip(self.sizes, strides, strict=True))
        if reach + self.element_bytes > array.nbytes:
            raise ValueError(
                f"TensorMap: {self.sizes} elements reach {reach + self.element_bytes} bytes far; "
                f"the array has {array.nbytes}"
            )
        fields = np.zeros(1, _EMULATED)
        fields["address"] = array.ctypes.data
        fields["sizes"] = _filled(self.sizes, 4, 1)
        fields["strides"] = _filled(self.strides, 3, 0)
        fields["box"] = _filled(self.box[:3], 3, 0 if self.lower else 1)
        fields["lower"] = self.lower or (0, 0)
        fields["upper"] = self.upper or (0, 0)
        fields["steps"] = self.steps
        fields["rank"] = len(self.sizes)
        fields["element_bytes"] = self.element_bytes
        fields["is_im2col"] = self.lower is not None
        fields["rounds_tf32"] = self.dtype == "tf32"
        return np.frombuffer(fields.tobytes().ljust(_BYTES, b"\0"), f"V{_BYTES}")[0]


def _filled(values, length, rest):
    return [*values, *[rest] * (length - len(values))]


def _array(kind, values):
    return (kind * len(values))(*values)


@functools.lru_cache(maxsize=4096)
def _encoded(view, address):
    # The driver wants it on a multiple of 64 bytes, which NumPy does not promise.
    room = np.zeros(_BYTES + 64, np.uint8)
    start = -room.ctypes.data % 64
    encoded = room[start : start + _BYTES]
    rank = len(view.sizes)
    u32, u64, i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
    head = (
        encoded.ctypes.data_as(ctypes.c_void_p),
        _DTYPES[view.dtype],
        u32(rank),
        ctypes.c_void_p(address),
        _array(u64, view.sizes),
        _array(u64, view.strides),
    )
    tail = (0, _SWIZZLE_128_BYTES, _L2_256_BYTES, 0)
    if view.lower is None:
        status = driver.library().cuTensorMapEncodeTiled(
            *head, _array(u32, view.box), _array(u32, (1,) * rank), *tail
        )
    else:
        status = driver.library().cuTensorMapEncodeIm2col(
            *head,
            _array(i32, view.lower),
            _array(i32, view.upper),
            u32(view.box[0]),
            u32(view.box[1]),
            _array(u32, (1, *view.steps, 1)),
            *tail,
        )
    if status:
        raise RuntimeError(f"the driver refuses a tensor map (error {status}): {view}")
    # CuPy passes an array of one element by value.
    return encoded.copy().view(f"V{_BYTES}")
