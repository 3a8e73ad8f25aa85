# SPDX-License-Identifier: MIT
"""Memory that all GPUs of a machine reach: NCCL adds up what lies there in fewer steps.

What all ranks have registered as a symmetric window, a kernel of NCCL's (2.27 or later) reads and
writes on all GPUs at once, where otherwise it hands pieces on through buffers of its own. CuPy has
no words for windows: they are asked for in C (NVIDIA, NCCL User Guide, "Window Registration").
"""

import ctypes
import functools
import os

_OLDEST = 22700  # NCCL 2.27
_LIBRARY = "libnccl.so.2"
_SYMMETRIC = 1  # nccl.h: NCCL_WIN_COLL_SYMMETRIC
# So many blocks such a kernel has. NCCL takes seven, which move nearly as much in a second where
# nothing else runs. But a convolution that counts on all multiprocessors takes up to twice as long
# if one of them is not free: better many, for a short time. On two H200s, U-Net's step in bf16 of
# one image each took 1.38 ms with 24 and 1.59 with seven, of 16 images 4.47 and 4.54; without
# windows 1.55 and 4.62; where copy engines moved all, 1.69 and 4.51, since they wait for each other
# in each of many small steps; without sums at all, 1.08 and 4.36.
_BLOCKS_VARIABLE, _BLOCKS = "NCCL_SYM_CTAS", "24"


def ask_for_blocks():
    """Let communicators that are made from now on use so many, unless the user has said how."""
    os.environ.setdefault(_BLOCKS_VARIABLE, _BLOCKS)


def are_known(version):
    """Return whether NCCL of that version is here, as C has it, and knows windows."""
    try:
        return version >= _OLDEST and library() is not None
    except OSError:
        return False


class Room:
    """Numbers of one rank that the others reach; all ranks make theirs together.

    It stays until the process ends, as the communicator does.

    Parameters
    ----------
    cupy : module
    opened : cupy.cuda.nccl.NcclCommunicator
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

    def __init__(self, cupy, opened, count):
        self._handle, size = ctypes.c_void_p(opened.comm), ctypes.c_size_t(4 * count)
        pointer, window = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(library().ncclMemAlloc(ctypes.byref(pointer), size))
        how = pointer, size, ctypes.byref(window), ctypes.c_int(_SYMMETRIC)
        self._check(library().ncclCommWindowRegister(self._handle, *how))
        memory = cupy.cuda.UnownedMemory(pointer.value, size.value, self)
        self.numbers = cupy.ndarray((count,), "float32", cupy.cuda.MemoryPointer(memory, 0))
        self.numbers.fill(0)
        self.is_taken = True

    def _check(self, status):
        if status:
            words = library().ncclGetLastError(self._handle).decode()
            raise RuntimeError(
                f"NCCL has no window: {words} ({status}); NCCL_WIN_ENABLE=0 does without"
            )


@functools.cache
def library():
    """Return NCCL, as CuPy has loaded it."""
    loaded = ctypes.CDLL(_LIBRARY)
    loaded.ncclGetLastError.restype = ctypes.c_char_p
    return loaded
