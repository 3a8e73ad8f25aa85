# SPDX-License-Identifier: MIT
"""What several suites share: the network, its images, its layers, and its time by function."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convstudy.conv.algorithm import kernels_for, plan
from convstudy.device import CPU, array_module, devices, why_no_gpu
from convstudy.images import load_sample
from convstudy.measure.clocks import sample
from convstudy.measure.runner import SEED
from convstudy.measure.suite import checked, result
from convstudy.models.network import Network
from convstudy.models.unet import UNet
from convstudy.nn.ops import Timed
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


@dataclass(frozen=True)
class Work:
    """A network, a batch of images for it, and the result that it must have.

    Attributes
    ----------
    network : Network
    images : (N, C, H, W) float32 array
    smallest : int
        The height and width of an image that takes next to no time.
    expected : callable
        Returns the result in float64.
    """

    network: Network
    images: np.ndarray
    smallest: int
    expected: Callable

    def warm_up(self, ops):
        """Make compiled loops compile: on a small image, since plain loops are slow."""
        self.network.forward(np.zeros((1, 3, self.smallest, self.smallest), np.float32), ops)

    def checked(self, y):
        """Return the field `check` of a result; raise RuntimeError where `y` is wrong."""
        return checked(y, self.expected(), *self.network.terms())


def unet_work(n):
    """Return the `Work` of a U-Net that takes `n` of the committed images."""
    return Work(unet(), images(n), unet().least_size, lambda: expected(n))


def forward_passes(ops, work, x, repeats):
    """Time a network, and each function in it.

    Parameters
    ----------
    ops : Ops
        What executes it.
    work : Work
    x : array
        Its images, where `ops` computes.
    repeats : int

    Returns
    -------
    whole : list of float
        Seconds of each pass.
    calls : dict of str to list of float
        Seconds of each function in each pass.
    y : array
        The last result.
    """
    timed = Timed(ops)
    calls, whole = {function: [] for function in timed.seconds}, []
    for _ in range(repeats):
        for seconds in timed.seconds.values():
            seconds.clear()
        start = time.perf_counter()
        y = work.network.apply(x, timed)
        whole.append(time.perf_counter() - start)
        for function, seconds in timed.seconds.items():
            calls[function].append(sum(seconds))
    return whole, calls, y


@functools.cache
def unet_on_cpu(make, repeats):
    """Return the `forward_passes` of one image through U-Net on the CPU, executed by ``make()``.

    Plain loops take so long that two suites of one run share what was timed.
    """
    ops, work = make(), unet_work(1)
    work.warm_up(ops)
    return forward_passes(ops, work, work.images, repeats)


def pieces(name, labels, ops, work, repeats):
    """Time a network, and each function in it; return a row for each.

    Parameters
    ----------
    name : str
        What the rows' names begin with.
    labels : dict
        Of every row, its "execution" among them; "function" is added.
    ops : Ops
        What executes it.
    work : Work
    repeats : int
    """
    network = work.network
    on_gpu = labels["execution"] in ("offload", "resident")
    device = devices()[0] if on_gpu else CPU
    x = ops.to_device(work.images)
    if on_gpu:
        network.apply(x, ops)
    else:
        work.warm_up(ops)
    whole, calls, y = forward_passes(ops, work, x, repeats)
    if labels["execution"] == "resident":
        # Waiting for each function costs a GPU more than the stopwatch costs a CPU.
        whole = sample(lambda: network.apply(x, ops), "synchronised", device, repeats, 1)
    return piece_rows(name, labels, work, whole, calls, ops.to_host(y), device)


def piece_rows(name, labels, work, whole, calls, y, device=CPU):
    """Return the rows of `pieces`, of what `forward_passes` returned, its result on the host."""
    check = work.checked(y)
    shared = {"clock": "synchronised", "cache": "warm", "warmup": 1, "device": device}
    if device.is_gpu:
        shared["transfers"] = "excluded" if labels["execution"] == "resident" else "included"
    rows = [
        result(f"{name}/{function}", labels | {"function": function}, samples, **shared)
        for function, samples in calls.items()
        if min(samples) > 0
    ]
    label = labels | {"function": "network"}
    return [*rows, result(f"{name}/network", label, whole, check=check, **shared)]


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
