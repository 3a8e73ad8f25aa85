# SPDX-License-Identifier: MIT
"""PyTorch and cuDNN on the same work: rung 0, where PyTorch is installed."""

import importlib.util

import numpy as np

from convstudy.device import array_module, devices
from convstudy.problem import BFLOAT16


def why_not():
    """Return why PyTorch cannot be measured here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed; `make setup EXTRAS=torch` adds it"
    return None


def cudnn_convolution(problem, x, w, channels_last):
    """Return a function that convolves CuPy arrays through cuDNN in strict fp32, and its result.

    cuDNN chooses its fastest kernel for the shape in the first calls (``cudnn.benchmark``).

    Parameters
    ----------
    problem : ConvProblem
    x, w : cupy.ndarray
    channels_last : bool
        NHWC in memory, which cuDNN likes better for some shapes.

    Returns
    -------
    (callable, callable)
        ``run()``, which does not wait, on PyTorch's current stream; and ``fetch()``, the last
        result as a NumPy array.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    layout = torch.channels_last if channels_last else torch.contiguous_format
    a, b = (torch.from_dlpack(array).to(memory_format=layout) for array in (x, w))
    outputs = [None]

    def run():
        outputs[0] = torch.nn.functional.conv2d(
            a, b, stride=problem.stride, padding=problem.padding
        )

    return run, lambda: np.ascontiguousarray(outputs[0].cpu().numpy())


def convolution(which, problem, arrays, channels_last, plans=10):
    """Return a pass of a convolution through cuDNN, and its last result.

    cuDNN times its own kernels in the first call (``cudnn.benchmark``), and takes the fastest.

    Parameters
    ----------
    which : {"fprop", "dgrad", "wgrad"}
    problem : ConvProblem
        With its precision: strict fp32, TF32, or bf16.
    arrays : object
        With x, w and dy, NHWC CuPy arrays; PyTorch works on the same memory.
    channels_last : bool
        As they lie, or as contiguous copies, NCHW.
    plans : int
        How many of its kernels it tries at most (``cudnn.benchmark_limit``); 0: all.

    Returns
    -------
    (callable, callable)
        ``run()``, which does not wait, on PyTorch's current stream; and ``fetch()``, the last
        result as an NHWC array where it lies, of float32 for bf16 too.
    """
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w, dy = (_channels_first(each).contiguous(memory_format=layout) for each in _three(arrays))
    outputs = [None]

    def run():
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = plans
        torch.backends.cudnn.allow_tf32 = problem.precision == "tf32"
        outputs[0] = _pass(which, problem, x, w, dy)

    def fetch():
        return _array(outputs[0].permute(0, 2, 3, 1).float())

    return run, fetch


def _array(tensor):
    """Return a tensor as a contiguous CuPy array where it lies on a GPU, else as NumPy's."""
    tensor = tensor.contiguous()
    if not tensor.is_cuda:
        return tensor.numpy()
    return array_module(devices()[tensor.device.index]).from_dlpack(tensor)


def _three(arrays):
    return arrays.x, arrays.w, arrays.dy


def _channels_first(array):
    """Return an NHWC array as a tensor of the same memory, its dimensions in the order NCHW."""
    import torch

    if array.dtype == BFLOAT16:  # NumPy's DLPack does not know it
        tensor = torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_dlpack(array)
    return tensor.permute(0, 3, 1, 2)


def _pass(which, problem, x, w, dy):
    import torch

    stride, padding = list(problem.stride), list(problem.padding)
    if which == "fprop":
        return torch.nn.functional.conv2d(x, w, None, stride, padding)
    wanted = [which == "dgrad", which == "wgrad", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, [1, 1], False, [0, 0], 1, wanted
    )
    return gradients[wanted.index(True)]


def capture(calls, warmup=1):
    """Return a function that replays `calls` as a CUDA graph; as `graphs.capture` for PyTorch.

    It returns what the last call returned, which each replay writes anew. All are called `warmup`
    times before.
    """
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in warmup * tuple(calls):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            result = call()

    def replay():
        graph.replay()
        return result

    # A graph knows addresses, and would go on with whatever came to lie there.
    replay.keeps = tuple(calls)
    return replay


def release():
    """Give back what PyTorch keeps of a GPU's memory for later tensors, where that is much."""
    import torch

    if torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        if torch.cuda.memory_reserved() > total / 4:
            torch.cuda.empty_cache()
