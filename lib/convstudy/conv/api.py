# SPDX-License-Identifier: MIT
"""The calls that convolve, and take its gradients, wherever the arrays lie."""

import numpy as np

from convstudy.conv.algorithm import choose, get_algorithm, plan, refused
from convstudy.device import (
    CPU,
    array_module,
    check_device,
    device_of,
    empty,
    is_array,
    pointer,
)
from convstudy.problem import BFLOAT16, ConvProblem, channels_first


def conv2d(
    x,
    w,
    bias=None,
    stride=1,
    padding=0,
    algorithm="auto",
    out=None,
    device=None,
    layout="NCHW",
    precision=None,
):
    """Convolve `x` with `w` (cross-correlation), where `x` lies.

    Parameters
    ----------
    x : (N, C, H, W) float32 or bfloat16 array, C-contiguous, finite
        NumPy: computed on the CPU. CuPy: on its GPU, on CuPy's current stream.
    w : (K, C, R, S) array of x's dtype, likewise
    bias : (K,) float32 array, likewise, optional
    stride, padding : int or (int, int)
        Along H and W.
    algorithm : str
        An id of `ALGORITHMS`, or "auto".
    out : (N, K, P, Q) array of x's dtype, C-contiguous, optional
        Where to write; it must not overlap the inputs.
    device : Device, optional
        `device.EMULATOR` runs a kernel's .cu file on NumPy arrays.
    layout : {"NCHW", "NHWC"}
        How arrays lie. In NHWC, x is (N, H, W, C), w (K, R, S, C) and out (N, P, Q, K).
    precision : {"fp32", "tf32", "bf16"}, optional
        How exact products have to be at least, as `ConvProblem` has it: fp32 by default, or TF32,
        for float32 arrays, bf16 for those of bfloat16.

    Returns
    -------
    (N, K, P, Q) array of x's dtype
        `out` where it is given.

    Raises
    ------
    TypeError, ValueError
        Where an array is not as above, shapes do not fit, or the algorithm refuses the problem.

    Notes
    -----
    On a GPU the check for finite values waits for the device; `convolve` is the same call without
    any check, and returns before the work is done.

    Examples
    --------
    >>> x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> conv2d(x, w)[0, 0]
    array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
    _check_arrays("conv2d", x=x, w=w, bias=bias)
    problem = ConvProblem.of(x, w, stride, padding, layout, precision)
    if bias is not None:
        _check_shape("conv2d", "bias", bias, (problem.k,))
    return _checked_run("conv2d", "fprop", problem, (x, w, bias), out, algorithm, device)


def conv2d_dgrad(
    dy,
    w,
    size,
    stride=1,
    padding=0,
    algorithm="auto",
    out=None,
    device=None,
    layout="NCHW",
    precision=None,
):
    """Return the gradient of a convolution's input, given that of its output.

    Parameters
    ----------
    dy : (N, K, P, Q) float32 or bfloat16 array, C-contiguous, finite
    w : (K, C, R, S) array of dy's dtype, likewise
        The filters of the convolution.
    size : (int, int)
        H and W of the input: with a stride, several sizes have one output size.
    stride, padding, algorithm, out, device, layout, precision
        As in `conv2d`; `out` is (N, C, H, W).

    Returns
    -------
    (N, C, H, W) array of dy's dtype
        `out` where it is given.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.
    """
    _check_arrays("conv2d_dgrad", dy=dy, w=w)
    (n, _, _, _), (k, c, r, s) = (
        _sizes("conv2d_dgrad", name, array, layout) for name, array in (("dy", dy), ("w", w))
    )
    problem = ConvProblem(
        *(n, c, *_pair("conv2d_dgrad", size), k, r, s, stride, padding),
        dtype=str(dy.dtype),
        layout=layout,
        precision=precision,
    )
    _check_shape("conv2d_dgrad", "dy", dy, problem.y_shape)
    return _checked_run("conv2d_dgrad", "dgrad", problem, (dy, w), out, algorithm, device)


def conv2d_wgrad(
    x,
    dy,
    size,
    stride=1,
    padding=0,
    algorithm="auto",
    out=None,
    device=None,
    layout="NCHW",
    precision=None,
):
    """Return the gradient of a convolution's filters, given its input and its output's gradient.

    Parameters
    ----------
    x : (N, C, H, W) float32 or bfloat16 array, C-contiguous, finite
    dy : (N, K, P, Q) array of x's dtype, likewise
    size : (int, int)
        R and S of the filters.
    stride, padding, algorithm, out, device, layout, precision
        As in `conv2d`; `out` is (K, C, R, S).

    Returns
    -------
    (K, C, R, S) array of x's dtype
        `out` where it is given.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.
    """
    _check_arrays("conv2d_wgrad", x=x, dy=dy)
    (n, c, h, width), (_, k, _, _) = (
        _sizes("conv2d_wgrad", name, array, layout) for name, array in (("x", x), ("dy", dy))
    )
    problem = ConvProblem(
        *(n, c, h, width, k, *_pair("conv2d_wgrad", size), stride, padding),
        dtype=str(x.dtype),
        layout=layout,
        precision=precision,
    )
    _check_shape("conv2d_wgrad", "dy", dy, problem.y_shape)
    return _checked_run("conv2d_wgrad", "wgrad", problem, (x, dy), out, algorithm, device)


def convolve(problem, x, w, bias, out, algorithm, device):
    """Do what `conv2d` does, trusting its arguments; on a GPU, return before it is done."""
    return run("fprop", problem, (x, w, bias, out), algorithm, device)


def run(which, problem, arrays, algorithm, device):
    """Run pass `which` of `problem`, trusting its arguments; on a GPU, return before it is done.

    Parameters
    ----------
    which : {"fprop", "dgrad", "wgrad"}
    problem : ConvProblem
    arrays : tuple
        As an `Algorithm` of this pass takes them; the last is written, and returned.
    algorithm : str
    device : Device
    """
    name = choose(problem, device, which) if algorithm == "auto" else algorithm
    row = get_algorithm(name)
    if row.compute is None or device != CPU:
        plan(name, problem, device).run(device, arrays)
    else:
        row.compute(problem, *arrays)
    return arrays[-1]


_DTYPES = (np.dtype(np.float32), BFLOAT16)
# What a kernel reads or writes at once, at most.
_VECTOR_BYTES = 16
_RESULTS = {"fprop": "y_shape", "dgrad": "x_shape", "wgrad": "w_shape"}


def _checked_run(who, which, problem, inputs, out, algorithm, device):
    where = device_of(inputs[0])
    device = where if device is None else check_device(who, device)
    if where != device and (where.is_gpu or device.is_gpu):
        raise ValueError(f"{who}: the arrays lie on {where.name}, not on {device.name}; copy them")
    if algorithm != "auto":
        row = get_algorithm(algorithm)
        if row.which != which:
            raise ValueError(f"{who}: {algorithm} computes {row.which}")
        if refusal := refused(row, problem, device):
            raise ValueError(f"{who}: {refusal}")
    shape = getattr(problem, _RESULTS[which])
    if out is None:
        out = empty(shape, device, inputs[0].dtype)
    else:
        _check_array(who, "out", out, where, (inputs[0].dtype,), finite=False)
        _check_shape(who, "out", out, shape)
        if not where.is_gpu and not out.flags.writeable:
            raise ValueError(f"{who}: out is read-only; pass an array that may be written")
        shares = array_module(where).may_share_memory
        if any(shares(out, array) for array in inputs if array is not None):
            raise ValueError(f"{who}: out overlaps an input; pass another array")
    if device != CPU:
        _check_places(who, (*inputs, out))
    return run(which, problem, (*inputs, out), algorithm, device)


def _check_arrays(who, **arrays):
    first, *others = arrays
    _check_type(who, first, arrays[first])
    _check_array(who, first, arrays[first], device_of(arrays[first]), _DTYPES, finite=True)
    for name in others:
        array = arrays[name]
        if array is not None or name != "bias":
            dtype = _DTYPES[0] if name == "bias" else arrays[first].dtype
            _check_array(who, name, array, device_of(arrays[first]), (dtype,), finite=True)


def _sizes(who, name, array, layout):
    if array.ndim != 4:
        raise ValueError(f"{who}: {name} must be an array of rank 4, got shape {array.shape}")
    return channels_first(array.shape, layout)


def _pair(who, size):
    try:
        first, second = size
    except (TypeError, ValueError):
        raise ValueError(f"{who}: size must be two integers, got {size!r}") from None
    return first, second


def _check_shape(who, name, array, expected):
    if array.shape != expected:
        raise ValueError(f"{who}: {name} has shape {array.shape}, expected {expected}")


def _check_type(who, name, array):
    if not is_array(array):
        raise TypeError(
            f"{who}: {name} must be a NumPy or CuPy array, got {type(array).__name__}; "
            f"use np.asarray or cupy.asarray"
        )


def _check_places(who, arrays):
    """Raise ValueError unless kernels may read 16 bytes at once from where each array begins."""
    for array in arrays:
        if array is not None and pointer(array) % _VECTOR_BYTES:
            raise ValueError(
                f"{who}: the array of shape {array.shape} begins at an address that is no multiple "
                f"of {_VECTOR_BYTES} bytes, as part of another may; use .copy()"
            )


def _check_array(who, name, array, device, dtypes, finite):
    _check_type(who, name, array)
    if device_of(array) != device:
        raise ValueError(
            f"{who}: {name} lies on {device_of(array).name}, and others on {device.name}; copy one"
        )
    if array.dtype not in dtypes:
        wanted = " or ".join(map(str, dtypes))
        raise TypeError(f"{who}: {name} must be {wanted}, got {array.dtype}; use .astype")
    if array.size == 0:
        raise ValueError(f"{who}: {name} is empty, of shape {array.shape}; every size is >= 1")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{who}: {name} must be C-contiguous, its strides are {array.strides}; "
            f"use np.ascontiguousarray"
        )
    if finite and not bool(array_module(device).isfinite(array).all()):
        raise ValueError(f"{who}: {name} holds NaN or infinity; the result would be meaningless")
