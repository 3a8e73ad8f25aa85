# SPDX-License-Identifier: MIT
"""The calls of CUDA's driver that CuPy has no words for."""

import ctypes
import functools

import numpy as np

# cuda.h: CUfunction_attribute; CUlaunchAttributeID, and the union of its values.
_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
_VALUE_BYTES = 64


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("value", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * (_VALUE_BYTES - 4)),
    )


class _Configuration(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint32),
    )


@functools.cache
def library():
    """Return the driver, which every machine with a GPU has."""
    return ctypes.CDLL("libcuda.so.1")


def launch_overlapping(function, grid, block, shared_bytes, stream, arguments):
    """Launch a kernel that may begin while the one before it in its stream still ends.

    It has to wait by itself before it touches what others write (``overlap.cuh``). In a CUDA graph
    that is captured the launches overlap alike.

    Parameters
    ----------
    function : int
        The driver's handle (``CUfunction``).
    grid, block : tuple of int
        Up to three numbers each.
    shared_bytes : int
    stream : int
        The driver's handle (``CUstream``).
    arguments : sequence
        CuPy's arrays go by their address; NumPy's scalars by their value.

    Raises
    ------
    RuntimeError
        Where the driver refuses.
    """
    values = [_value(each) for each in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)
    configuration = _Configuration(
        _three(grid), _three(block), shared_bytes, stream, ctypes.pointer(attribute), 1
    )
    status = library().cuLaunchKernelEx(
        ctypes.byref(configuration), ctypes.c_void_p(function), pointers, None
    )
    if status:
        raise RuntimeError(
            f"the driver refuses a launch (error {status}): grid {grid}, block {block}, "
            f"{shared_bytes} bytes of shared memory"
        )


def allow_large_clusters(function):
    """Let a kernel's clusters have more than the 8 blocks that every GPU with clusters takes.

    Parameters
    ----------
    function : int
        The driver's handle (``CUfunction``).

    Raises
    ------
    RuntimeError
        Where the driver refuses.
    """
    status = library().cuFuncSetAttribute(
        ctypes.c_void_p(function), _NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1
    )
    if status:
        raise RuntimeError(f"the driver refuses clusters of more than 8 blocks (error {status})")


def _value(argument):
    if hasattr(argument, "__cuda_array_interface__"):
        return np.array(argument.data.ptr, np.uint64)
    return np.asarray(argument)


def _three(sizes):
    return (ctypes.c_uint32 * 3)(*sizes, *[1] * (3 - len(sizes)))
