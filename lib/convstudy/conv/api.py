# SPDX-License-Identifier: MIT
"""The one call that convolves, wherever the arrays lie."""

import numpy as np

from convstudy.conv.algorithm import choose, get_algorithm, plan
from convstudy.device import CPU, array_module, device_of
from convstudy.problem import ConvProblem


def conv2d(x, w, bias=None, stride=1, padding=0, algorithm="auto", out=None, device=None):
    """Convolve `x` with `w` (cross-correlation), where `x` lies.

    Parameters
    ----------
    x : (N, C, H, W) float32 array, C-contiguous, finite
        NumPy: computed on the CPU. CuPy: on its GPU, on CuPy's current stream.
    w : (K, C, R, S) float32 array, likewise
    bias : (K,) float32 array, likewise, optional
    stride, padding : int or (int, int)
        Along H and W.
    algorithm : str
        An id of `ALGORITHMS`, or "auto".
    out : (N, K, P, Q) float32 array, C-contiguous, optional
        Where to write; it must not overlap the inputs.
    device : Device, optional
        `device.EMULATOR` runs a kernel's .cu file on NumPy arrays.

    Returns
    -------
    (N, K, P, Q) float32 array
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
    arrays = {"x": x, "w": w, "bias": bias, "out": out}
    for name, array in arrays.items():
        if array is not None:
            _check_array(name, array, device_of(x), finite=name != "out")
    problem = ConvProblem.of(x, w, stride, padding)
    for name, shape in (("bias", (problem.k,)), ("out", problem.y_shape)):
        if arrays[name] is not None and arrays[name].shape != shape:
            raise ValueError(f"conv2d: {name} has shape {arrays[name].shape}, expected {shape}")
    device = device or device_of(x)
    if device.is_gpu != device_of(x).is_gpu:
        raise ValueError(f"conv2d: x lies on {device_of(x).name}, not on {device.name}; copy it")
    if out is None:
        out = _empty(problem.y_shape, device)
    elif any(np.may_share_memory(out, a) for a in (x, w, bias) if isinstance(a, np.ndarray)):
        raise ValueError("conv2d: out overlaps an input; pass another array")
    return convolve(problem, x, w, bias, out, algorithm, device)


def convolve(problem, x, w, bias, out, algorithm, device):
    """Do what `conv2d` does, trusting its arguments; on a GPU, return before it is done."""
    name = choose(problem, device) if algorithm == "auto" else algorithm
    row = get_algorithm(name)
    if row.compute is None or device is not CPU:
        plan(name, problem, device).run(device, (x, w, bias, out))
    else:
        row.compute(problem, x, w, bias, out)
    return out


def _empty(shape, device):
    xp = array_module(device)
    if not device.is_gpu:
        return np.empty(shape, np.float32)
    with xp.cuda.Device(device.index):
        return xp.empty(shape, xp.float32)


def _check_array(name, array, device, finite):
    if not hasattr(array, "__array_interface__") and not hasattr(array, "__cuda_array_interface__"):
        raise TypeError(
            f"conv2d: {name} must be a NumPy or CuPy array, got {type(array).__name__}; "
            f"use np.asarray"
        )
    if device_of(array) != device:
        raise ValueError(
            f"conv2d: {name} lies on {device_of(array).name} and x on {device.name}; copy one"
        )
    if array.dtype != np.float32:
        raise TypeError(f"conv2d: {name} must be float32, got {array.dtype}; use .astype")
    if array.size == 0:
        raise ValueError(f"conv2d: {name} is empty, of shape {array.shape}; every size is >= 1")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"conv2d: {name} must be C-contiguous, its strides are {array.strides}; "
            f"use np.ascontiguousarray"
        )
    if finite and not bool(array_module(device).isfinite(array).all()):
        raise ValueError(f"conv2d: {name} holds NaN or infinity; the result would be meaningless")
