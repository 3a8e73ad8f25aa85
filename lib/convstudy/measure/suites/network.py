# SPDX-License-Identifier: MIT
"""What several suites share: the network, its images, its layers, and its float64 result."""

import functools

import numpy as np

from convstudy.conv.algorithm import kernels_for, plan
from convstudy.device import array_module, devices, why_no_gpu
from convstudy.images import load_sample
from convstudy.measure.runner import SEED
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.problem import ConvProblem

HEIGHT, WIDTH = 128, 191
TILED = "conv2d_fprop_3_tiled"
BLOCKED = "conv2d_fprop_4_register_blocked"
# The kernels of the network's layout.
KERNELS = kernels_for(ConvProblem(1, 64, HEIGHT, WIDTH, 64, 3, 3, padding=1))


@functools.cache
def unet():
    """Return the network that is measured: random weights, statistics that do something."""
    network = UNet.initialised(SEED)
    network.randomise_statistics(SEED)
    return network


@functools.cache
def images(n):
    """Return `n` real images, (N, 3, 128, 191) float32: the committed sample, over and over."""
    sample, _ = load_sample()
    return np.ascontiguousarray(sample[np.arange(n) % len(sample)])


@functools.cache
def _truth(i):
    sample, _ = load_sample()
    return unet().forward(sample[i : i + 1], ReferenceOps())


def expected(n):
    """Return the network's float64 result for ``images(n)``; each image takes seconds, once."""
    sample, _ = load_sample()
    return np.concatenate([_truth(i % len(sample)) for i in range(n)])


def warm_up(ops):
    """Make compiled loops compile: on the smallest image there is, since plain loops are slow."""
    unet().forward(np.zeros((1, 3, 16, 16), np.float32), ops)


def layers(n):
    """Return (name, problem) of the 18 convolutions for `n` images."""
    return unet().layers(HEIGHT, WIDTH, n)


def no_gpu(count=1):
    """Return why a case that needs `count` GPUs is skipped here, or None."""
    if len(devices()) >= count:
        return None
    if not devices():
        return f"it needs a GPU: {why_no_gpu()}"
    return f"it needs {count} GPUs and this machine has {len(devices())}"


def numbers(text):
    """Return the integers of an option such as ``1,16``."""
    return [int(part) for part in str(text).split(",")]


class Convolutions:
    """The 18 convolutions on one GPU, one after another, each on random arrays of its own.

    Parameters
    ----------
    problems : sequence of ConvProblem
    algorithm : str
    device : Device
    """

    def __init__(self, problems, algorithm, device):
        xp = array_module(device)
        rng = np.random.default_rng(SEED)
        self.steps = []
        self.device = device
        with xp.cuda.Device(device.index):
            for problem in problems:
                shapes = problem.x_shape, problem.w_shape
                x, w = (xp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes)
                y = xp.full(problem.y_shape, np.nan, np.float32)
                self.steps.append((plan(algorithm, problem, device), (x, w, None, y)))

    def run(self):
        """Ask for all of them; do not wait."""
        for launch, arrays in self.steps:
            launch.run(self.device, arrays)
