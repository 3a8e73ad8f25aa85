# SPDX-License-Identifier: MIT
"""Every function as CUDA kernels, and the two executions made of them.

`ResidentOps` keeps the whole network on the device. `OffloadOps` is the paper's way: the
convolutions on the device, all else on the CPU, and a transfer each way at every layer.
"""

import contextlib
import functools
import math

import numpy as np

from convstudy.compile import Launch
from convstudy.conv.algorithm import ALGORITHMS, get_algorithm
from convstudy.conv.api import convolve
from convstudy.device import array_module, check_device, empty, get_device
from convstudy.lane import open_lanes
from convstudy.nn.ops import Ops, pooled_shape
from convstudy.nn.plain import PlainOps
from convstudy.problem import ConvProblem

# Each kernel, and the method of `Ops` that it is. The method of `ReferenceOps` is its NumPy twin.
KERNELS = {
    "batchnorm_fprop_1_elementwise": "batch_norm",
    "relu_fprop_1_elementwise": "relu",
    "maxpool_fprop_1_window": "max_pool2d",
    "averagepool_fprop_1_warp": "average_pool2d",
    "add_fprop_1_elementwise": "add",
    "convtranspose_fprop_1_gather": "conv_transpose2d",
    "upsample_fprop_1_bilinear": "upsample_bilinear",
    "concat_fprop_1_pad": "pad_concat",
}

_MOST_BLOCKS = 2**31 - 1
_THREADS = 256
_WARP = 32
_EACH = 4
_PLANES = (("THREADS", _THREADS), ("EACH", _EACH))
# What a block of the transposed convolution covers: pixels, and filters times taps.
_TILE = 64


# ---- launches, each from shapes alone ------------------------------------------------------------
@functools.cache
def launch_batch_norm(shape, eps):
    """Return the launch that takes (x, weight, bias, mean, var, y) for x of (N, C, H, W)."""
    n, c, h, w = shape
    scalars = (c, h * w, float(eps))
    return _launch_planes("batchnorm_fprop_1_elementwise", n * c, h * w, scalars)


@functools.cache
def launch_relu(size):
    """Return the launch that takes (x, y) for `size` values."""
    return _launch_values("relu_fprop_1_elementwise", size)


@functools.cache
def launch_add(size):
    """Return the launch that takes (x, y, sum) for `size` values each."""
    return _launch_values("add_fprop_1_elementwise", size)


@functools.cache
def launch_max_pool2d(shape, window=2, stride=2, padding=0):
    """Return the launch that takes (x, y) for x of (N, C, H, W)."""
    n, c, p, q = pooled_shape(shape, window, stride, padding)
    h, w = shape[2:]
    _check_plane("max_pool2d", h * w)
    defines = (("WINDOW", window), ("STRIDE", stride), ("PADDING", padding))
    return _launch_planes("maxpool_fprop_1_window", n * c, p * q, (h, w, p, q), defines)


@functools.cache
def launch_average_pool2d(shape, size=1):
    """Return the launch that takes (x, y) for x of (N, C, H, W) and y of (N, C, size, size)."""
    n, c, h, w = shape
    # Where a window begins is computed before it is divided by `size`.
    _check_plane("average_pool2d", h * w * size)
    outputs = n * c * size**2
    grid = _grid("average_pool2d", math.ceil(outputs / (_THREADS // _WARP)))
    scalars = (np.int64(outputs), h, w, size)
    return Launch("averagepool_fprop_1_warp", grid, (_THREADS,), scalars, _PLANES[:1])


@functools.cache
def launch_conv_transpose2d(x_shape, w_shape):
    """Return the launch that takes (x, w, bias, y) for x of (N, C, H, W) and w of (C, K, 2, 2)."""
    n, c, h, w = x_shape
    k = w_shape[1]
    _check_plane("conv_transpose2d", 4 * h * w)
    blocks = math.ceil(4 * k / _TILE) * math.ceil(n * h * w / _TILE)
    grid = _grid("conv_transpose2d", blocks)
    return Launch("convtranspose_fprop_1_gather", grid, (_THREADS,), (n, c, h, w, k))


@functools.cache
def launch_upsample_bilinear(shape):
    """Return the launch that takes (x, y) for x of (N, C, H, W)."""
    n, c, h, w = shape
    return _launch_planes("upsample_fprop_1_bilinear", n * c, 4 * h * w, (h, w))


@functools.cache
def launch_pad_concat(skip_shape, x_shape):
    """Return the launch that takes (skip, x, y) for skip of (N, C, H, W) and a smaller x."""
    n, c, h, w = skip_shape
    d, small_h, small_w = x_shape[1:]
    scalars = (c, d, h, w, small_h, small_w, (h - small_h) // 2, (w - small_w) // 2)
    return _launch_planes("concat_fprop_1_pad", n * (c + d), h * w, scalars)


def _launch_planes(kernel, planes, pixels, scalars, defines=()):
    """Return the launch of a kernel that shares out its output as ``planes.cuh`` says."""
    _check_plane(KERNELS[kernel], pixels)
    grid = _grid(KERNELS[kernel], planes * math.ceil(pixels / (_THREADS * _EACH)))
    return Launch(kernel, grid, (_THREADS,), scalars, (*_PLANES, *defines))


def _launch_values(kernel, size):
    """Return the launch of a kernel that takes `size` values whatever their shape."""
    grid = _grid(KERNELS[kernel], math.ceil(size / (_THREADS * _EACH)))
    return Launch(kernel, grid, (_THREADS,), (np.int64(size),), _PLANES)


def _check_plane(who, pixels):
    if pixels >= 2**31:
        raise ValueError(f"{who}: one channel has {pixels} pixels, 2^31 or more; cut the image")


def _grid(who, blocks):
    if blocks > _MOST_BLOCKS:
        raise ValueError(
            f"{who} needs {blocks} blocks and a grid has {_MOST_BLOCKS}; cut the batch"
        )
    return (blocks,)


@functools.cache
def conv_problem(x_shape, w_shape, padding=(0, 0), stride=(1, 1)):
    """Return the `ConvProblem`; asking again for the same costs nothing."""
    n, c, h, w = x_shape
    k, _, r, s = w_shape
    return ConvProblem(n, c, h, w, k, r, s, stride, padding)


@functools.cache
def linear_problem(n, features, k):
    """Return the convolution that `Ops.linear` is: each image a pixel of one row, channels last.

    So x (N, F), w (K, F) and y (N, K) are its arrays just as they lie.
    """
    return ConvProblem(1, features, 1, n, k, 1, 1, layout="NHWC")


# ---- executions ----------------------------------------------------------------------------------
class ResidentOps(Ops):
    """The whole network on one device: nothing moves but its input and its output.

    Every call returns before its work is done, and goes to CuPy's current stream of the device.

    Parameters
    ----------
    algorithm : str
        The convolutions' kernel, or "auto".
    device : Device, optional
        A GPU, by default the first; `device.EMULATOR` runs the same kernels on NumPy arrays.
    """

    name = "resident"

    def __init__(self, algorithm="auto", device=None):
        self.algorithm = check_kernel("ResidentOps", algorithm)
        self.device = kernel_device("ResidentOps", device)
        self.array_module = array_module(self.device)

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        problem = conv_problem(x.shape, w.shape, padding, stride)
        y = self.empty(problem.y_shape)
        return convolve(problem, x, w, bias, y, self.algorithm, self.device)

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        launch = launch_batch_norm(x.shape, eps)
        launch.run(self.device, (x, weight, bias, mean, var, x))
        return x

    def relu(self, x):
        launch_relu(x.size).run(self.device, (x, x))
        return x

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        windows = window, stride, padding
        return self._run(launch_max_pool2d(x.shape, *windows), pooled_shape(x.shape, *windows), x)

    def average_pool2d(self, x, size=1):
        launch = launch_average_pool2d(x.shape, size)
        return self._run(launch, (*x.shape[:2], size, size), x)

    def add(self, x, y):
        launch_add(x.size).run(self.device, (x, y, x))
        return x

    def linear(self, x, w, bias):
        k, features = w.shape
        problem = linear_problem(len(x), features, k)
        y = self.empty((len(x), k))
        # The kernels that take `algorithm` for images lie otherwise: NCHW.
        return convolve(problem, x, w, bias, y, "auto", self.device)

    def conv_transpose2d(self, x, w, bias):
        n, _, height, width = x.shape
        shape = (n, w.shape[1], 2 * height, 2 * width)
        return self._run(launch_conv_transpose2d(x.shape, w.shape), shape, x, w, bias)

    def upsample_bilinear(self, x):
        n, c, h, w = x.shape
        return self._run(launch_upsample_bilinear(x.shape), (n, c, 2 * h, 2 * w), x)

    def pad_concat(self, skip, x):
        n, c, h, w = skip.shape
        return self._run(launch_pad_concat(skip.shape, x.shape), (n, c + x.shape[1], h, w), skip, x)

    def head(self, x, w, bias):
        return self.conv2d(x, w, bias=bias)

    def to_device(self, array):
        with self.active():
            # A copy even on the emulator: `batch_norm` and `relu` write into what they are given.
            return self.array_module.array(array, dtype=np.float32, order="C")

    def to_host(self, array):
        with self.active():
            return array.get() if self.device.is_gpu else array

    def synchronise(self):
        if self.device.is_gpu:
            self.array_module.cuda.Device(self.device.index).synchronize()

    def empty(self, shape):
        """Return a float32 array on the device, not yet written."""
        return empty(shape, self.device)

    def _run(self, launch, shape, *inputs):
        y = self.empty(shape)
        launch.run(self.device, (*inputs, y))
        return y

    def active(self):
        """Return a context inside which CuPy's current device is this one."""
        if self.device.is_gpu:
            return self.array_module.cuda.Device(self.device.index)
        return contextlib.nullcontext()


class ConvolutionElsewhere(Ops):
    """All but `conv2d` on the CPU, on NumPy arrays; the head too.

    Parameters
    ----------
    cpu : Ops, optional
        What executes them; `PlainOps` if not given.
    """

    name = "offload"

    def __init__(self, cpu=None):
        self.cpu = cpu or PlainOps()

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        return self.cpu.batch_norm(x, weight, bias, mean, var, eps)

    def relu(self, x):
        return self.cpu.relu(x)

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        return self.cpu.max_pool2d(x, window, stride, padding)

    def average_pool2d(self, x, size=1):
        return self.cpu.average_pool2d(x, size)

    def add(self, x, y):
        return self.cpu.add(x, y)

    def linear(self, x, w, bias):
        return self.cpu.linear(x, w, bias)

    def conv_transpose2d(self, x, w, bias):
        return self.cpu.conv_transpose2d(x, w, bias)

    def upsample_bilinear(self, x):
        return self.cpu.upsample_bilinear(x)

    def pad_concat(self, skip, x):
        return self.cpu.pad_concat(skip, x)

    def head(self, x, w, bias):
        return self.cpu.head(x, w, bias)


class OffloadOps(ConvolutionElsewhere):
    """The paper's way: convolutions on the device, everything else on the CPU.

    At each `conv2d` the input goes to the device and the output comes back; the call returns when
    it is back. The head is a function of its own, and stays on the CPU.

    Parameters
    ----------
    algorithm : str
        The convolutions' kernel, or "auto".
    device : Device, optional
        As in `ResidentOps`.
    cpu : Ops, optional
        What executes the other functions; `PlainOps` if not given.
    weights : {"each call", "once"}
        Whether filters go to the device at each call, or stay there after the first: the paper
        does not say. With "once", arrays of filters must not be changed any more.
    memory : {"pageable", "pinned"}
        The host's side of a transfer: the arrays themselves, which the driver copies by way of
        buffers of its own, or page-locked memory of ours, which costs a copy into it.
    """

    def __init__(
        self, algorithm="auto", device=None, cpu=None, weights="each call", memory="pageable"
    ):
        check_choice("OffloadOps", "weights", weights, ("each call", "once"))
        check_choice("OffloadOps", "memory", memory, ("pageable", "pinned"))
        self.algorithm = check_kernel("OffloadOps", algorithm)
        self.device = kernel_device("OffloadOps", device)
        super().__init__(cpu)
        self.weights, self.memory = weights, memory
        self._lane = open_lanes(self.device, 1)[0]
        self._kept = {}

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        problem = conv_problem(x.shape, w.shape, padding, stride)
        with self._lane.active():
            y = self._host_empty(problem.y_shape)
            result = self._lane.empty(problem.y_shape)
            operands = self._send(x), self._weights(w), self._weights(bias)
            self.launch(problem, *operands, result)
            self._lane.copy(y, result)
        self._lane.synchronise()
        return y

    def launch(self, problem, x, w, bias, y):
        """Ask for the convolution alone, of arrays on the device, on CuPy's current stream."""
        convolve(problem, x, w, bias, y, self.algorithm, self.device)

    def _host_empty(self, shape):
        if self.memory == "pinned":
            return self._lane.host_empty(shape)
        return np.empty(shape, np.float32)

    def _send(self, array):
        if self.memory == "pinned":
            page_locked = self._lane.host_empty(array.shape)
            np.copyto(page_locked, array)
            array = page_locked
        on_device = self._lane.empty(array.shape)
        self._lane.copy(on_device, array)
        return on_device

    def _weights(self, array):
        if array is None or self.weights == "each call":
            return array if array is None else self._send(array)
        # The array is kept beside its copy, so that no other can come to have its id.
        if id(array) not in self._kept:
            self._kept[id(array)] = array, self._send(array)
        return self._kept[id(array)][1]


def check_kernel(who, algorithm):
    """Return `algorithm`, or raise ValueError unless it is "auto" or a kernel for NCHW."""
    if algorithm == "auto":
        return algorithm
    kernels = [
        row.id
        for row in ALGORITHMS.values()
        if row.plan and row.which == "fprop" and "NCHW" in row.layouts
    ]
    if get_algorithm(algorithm).id not in kernels:
        raise ValueError(
            f"{who}: {algorithm} is no kernel that convolves NCHW arrays; choose 'auto' or one of "
            f"{', '.join(kernels)}"
        )
    return algorithm


def kernel_device(who, device):
    """Return `device`, the first GPU for None, or raise ValueError where no kernel runs on it."""
    if device is None:
        return get_device(0, who)
    if check_device(who, device).kind == "cpu":
        raise ValueError(f"{who}: {device.name} runs no kernels; pass a GPU or device.EMULATOR")
    return device


def check_choice(who, name, value, choices):
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{who}: {name} is {value!r}; choose {' or '.join(map(repr, choices))}")
