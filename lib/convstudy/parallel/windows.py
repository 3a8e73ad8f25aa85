# SPDX-License-Identifier: MIT
"""Memory that all GPUs of a machine reach, and sums in it that leave their multiprocessors alone.

NCCL's all-reduce is a kernel, and as long as it has some multiprocessors, a convolution that counts
on all of them takes up to twice its time. What lies in a symmetric window, NCCL moves by the copy
engines if it is asked to. These add nothing; so a sum is three steps: each rank gets its part of
everyone's numbers, adds these up in the ranks' order, and gives the sums to all. It is as many
bytes as a ring sends.

CuPy has no words for windows: they are asked for in C (NVIDIA, NCCL User Guide, "Window
Registration" and "Zero-CTA Optimization").
"""

import ctypes
import functools
import os

_LIBRARY = "libnccl.so.2"
OLDEST = 22800  # NCCL 2.28
_POLICY, _NO_MULTIPROCESSORS = "NCCL_CTA_POLICY", "2"
_SYMMETRIC = 1  # nccl.h: NCCL_WIN_COLL_SYMMETRIC
# Below it, the copy engines' waiting for each other takes longer than a kernel does.
_FEWEST_BYTES = 2 * 2**20


def ask_for_copy_engines():
    """Let communicators that are made from now on use them, unless the user has said how."""
    os.environ.setdefault(_POLICY, _NO_MULTIPROCESSORS)


def are_asked_for():
    """Return whether communicators use copy engines where they can."""
    return os.environ.get(_POLICY) == _NO_MULTIPROCESSORS


class Room:
    """Numbers of one rank that the others' copy engines reach; all ranks make theirs together.

    It stays until the process ends, as the communicator does.

    Parameters
    ----------
    cupy : module
    opened : cupy.cuda.nccl.NcclCommunicator
    kind : int
        NCCL's number for float32.
    count : int
        How many numbers: the same on all ranks.

    Attributes
    ----------
    numbers : (count,) float32 cupy.ndarray
        Zeros at first.
    is_taken : bool
        Whether someone uses it.

    Raises
    ------
    RuntimeError
        Where NCCL cannot.
    """

    def __init__(self, cupy, opened, kind, count):
        self._cupy, self._opened, self._kind = cupy, opened, kind
        self.numbers, self._theirs = (self._window(count) for _ in range(2))
        self.numbers.fill(0)
        self.is_taken = True

    def holds(self, array, ranks):
        """Return whether `add_up` takes an array, and is the fastest to do so."""
        at = array.data.ptr - self.numbers.data.ptr
        is_inside = 0 <= at < self.numbers.nbytes and array.dtype == self.numbers.dtype
        return is_inside and array.nbytes >= _FEWEST_BYTES and array.size % ranks == 0

    def add_up(self, array, rank, ranks, stream):
        """Make `array`, which lies in here, all ranks' sum, on `stream`."""
        at = (array.data.ptr - self.numbers.data.ptr) // array.itemsize
        count = array.size // ranks
        parts = self._theirs[at : at + array.size].reshape(ranks, count)
        own = array[rank * count :][:count]
        handle, kind = ctypes.c_void_p(self._opened.comm), ctypes.c_int(self._kind)
        pointers = (ctypes.c_void_p(each.data.ptr) for each in (array, parts))
        self._check(
            library().ncclAlltoAll(
                *pointers, ctypes.c_size_t(count), kind, handle, ctypes.c_void_p(stream.ptr)
            )
        )
        with stream:
            self._cupy.add(parts[0], parts[1], out=own)
            for part in parts[2:]:
                self._cupy.add(own, part, out=own)
        self._opened.allGather(own.data.ptr, array.data.ptr, count, self._kind, stream.ptr)

    def _window(self, count):
        size = ctypes.c_size_t(4 * count)
        pointer, window = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(library().ncclMemAlloc(ctypes.byref(pointer), size))
        self._check(
            library().ncclCommWindowRegister(
                ctypes.c_void_p(self._opened.comm),
                *(pointer, size, ctypes.byref(window), ctypes.c_int(_SYMMETRIC)),
            )
        )
        memory = self._cupy.cuda.UnownedMemory(pointer.value, size.value, self)
        start = self._cupy.cuda.MemoryPointer(memory, 0)
        return self._cupy.ndarray((count,), "float32", start)

    def _check(self, status):
        if status:
            words = library().ncclGetLastError(ctypes.c_void_p(self._opened.comm))
            raise RuntimeError(
                f"NCCL: {words.decode()} ({status}); {_POLICY}=0 does without copy engines"
            )


@functools.cache
def library():
    """Return NCCL, as CuPy has loaded it."""
    loaded = ctypes.CDLL(_LIBRARY)
    loaded.ncclGetLastError.restype = ctypes.c_char_p
    return loaded
