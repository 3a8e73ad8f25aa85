# SPDX-License-Identifier: MIT
"""PyTorch as one more execution: every function of a network by PyTorch's own."""

import numpy as np

from convstudy.nn.ops import Ops


class TorchOps(Ops):
    """A network's functions in PyTorch, on its tensors.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    precision : {"fp32", "tf32", "bf16"}
        bf16: parameters and images are bf16 altogether.
    channels_last : bool
        How images and filters lie.
    threads : int, optional
        PyTorch's threads on the CPU; as they are if not given.
    """

    name = "pytorch"

    def __init__(self, device="cpu", precision="fp32", channels_last=False, threads=None):
        import torch

        self._torch, self._functional = torch, torch.nn.functional
        self._device = device
        self._type = torch.bfloat16 if precision == "bf16" else torch.float32
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        if threads:
            torch.set_num_threads(threads)
        # cuDNN chooses its fastest kernel for each shape in the first calls.
        torch.backends.cudnn.benchmark = True
        allowed = precision != "fp32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        return self._functional.conv2d(x, w, bias, stride, padding)

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        return self._functional.batch_norm(x, mean, var, weight, bias, eps=eps)

    def relu(self, x):
        return self._functional.relu(x, inplace=True)

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        return self._functional.max_pool2d(x, window, stride, padding)

    def average_pool2d(self, x, size=1):
        return self._functional.adaptive_avg_pool2d(x, size)

    def add(self, x, y):
        return x.add_(y)

    def linear(self, x, w, bias):
        return self._functional.linear(x.flatten(1), w, bias)

    def conv_transpose2d(self, x, w, bias):
        return self._functional.conv_transpose2d(x, w, bias, stride=2)

    def upsample_bilinear(self, x):
        return self._functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    def pad_concat(self, skip, x):
        down, right = (skip.shape[i] - x.shape[i] for i in (2, 3))
        sides = (right // 2, right - right // 2, down // 2, down - down // 2)
        return self._torch.cat([skip, self._functional.pad(x, sides)], dim=1)

    def head(self, x, w, bias):
        return self._functional.conv2d(x, w, bias)

    def to_device(self, array):
        tensor = self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device, self._type)
        return tensor.contiguous(memory_format=self._layout) if tensor.ndim == 4 else tensor

    def to_host(self, array):
        return np.ascontiguousarray(array.float().cpu().numpy())

    def synchronise(self):
        if self._device == "cuda":
            self._torch.cuda.synchronize()
