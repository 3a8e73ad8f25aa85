# SPDX-License-Identifier: MIT
"""What the suites of single convolutions share: which they are, their arrays, their float64 result.

Every pass (fprop, dgrad, wgrad) of U-Net's 18 convolutions in each precision, for images and
batches of any size; or of other networks' convolutions and linear layers, which are convolutions,
too.
"""

import math
from dataclasses import replace

import numpy as np

from convstudy.conv import reference
from convstudy.conv.algorithm import PASSES
from convstudy.device import array_module, release_memory, why_no_blas
from convstudy.measure.suite import check_words, numbers
from convstudy.measure.suites.network import no_gpu
from convstudy.models.resnet import ResNet
from convstudy.models.unet import UNet
from convstudy.models.vgg import VGG16
from convstudy.problem import ConvProblem
from convstudy.program.lowering import PRECISIONS

# Calls go round so many sets of arrays.
SETS = 3
OPTIONS = {
    "n": "1,16,64",
    "passes": "fprop,dgrad,wgrad",
    "precisions": "fp32,tf32,bf16",
    "height": 128,
    "width": 191,
}
# Those of classifiers.
NETWORKS_OPTIONS = OPTIONS | {"network": "vgg16,resnet18,resnet50", "height": 224, "width": 224}
_NETWORKS = {
    "unet": UNet,
    "vgg16": VGG16,
    "resnet18": lambda: ResNet(18),
    "resnet50": lambda: ResNet(50),
}
# A replay is to take longer than its launch: so many images in all, or more.
_FEWEST_IMAGES = 12


def calls(problem):
    """Return how many calls a replay holds: each set as often as the others."""
    return SETS * math.ceil(_FEWEST_IMAGES / (SETS * problem.n))


def why_not():
    """Return why no convolution can be timed and checked here, or None."""
    return no_gpu() or why_no_blas()


def problems(options):
    """Yield (labels, pass, problem) for each pass, precision, batch and layer."""
    check_words(options, passes=PASSES, precisions=PRECISIONS)
    height, width = options["height"], options["width"]
    for which in words(options["passes"]):
        for precision in words(options["precisions"]):
            for n in numbers(options["n"]):
                for more, layer, problem in _layers(options.get("network"), height, width, n):
                    yield _labelled(options, which, precision, layer, problem, more)


def enlargements(options):
    """Yield the same of U-Net's transposed convolutions: of the convolutions that they are."""
    check_words(options, passes=PASSES, precisions=PRECISIONS)
    height, width = options["height"], options["width"]
    for precision in words(options["precisions"]):
        for n in numbers(options["n"]):
            for name, forward, backward in UNet().enlargements(height, width, n):
                for which, layer, problem in (
                    ("fprop", name, forward),
                    ("fprop", f"{name}-back", backward),
                    ("wgrad", f"{name}-back", backward),
                ):
                    if which in words(options["passes"]):
                        yield _labelled(options, which, precision, layer, problem, {})


def _labelled(options, which, precision, layer, problem, more):
    dtype = "bfloat16" if precision == "bf16" else "float32"
    problem = replace(problem, layout="NHWC", dtype=dtype, precision=precision)
    labels = {"pass": which, "precision": precision, "n": problem.n, "layer": layer}
    sizes = {"height": options["height"], "width": options["width"]}
    return labels | sizes | more, which, problem


def _layers(names, height, width, n):
    """Yield (labels, layer, problem) of networks: U-Net's, which need not be called so, or more."""
    if names is None:
        for layer, problem in UNet().layers(height, width, n):
            yield {}, layer, problem
        return
    for name in words(names):
        if name not in _NETWORKS:
            raise ValueError(f"no network {name!r}; there are {', '.join(_NETWORKS)}")
        network = _NETWORKS[name]()
        found = network.layers(height, width, n)
        for weight, shape in network.shapes.items():
            if len(shape) == 2:
                linear = ConvProblem(n, shape[1], 1, 1, shape[0], 1, 1)
                found.append((weight.removesuffix(".weight"), linear))
        for layer, problem in found:
            yield {"network": name}, f"{name}.{layer}", problem


def words(text):
    """Return the words of an option such as ``fprop,wgrad``."""
    return [word.strip() for word in text.split(",")]


def terms(which, problem):
    """Return the products that are summed for one number of a pass's result."""
    p = problem
    return {"fprop": p.terms, "dgrad": p.k * p.r * p.s, "wgrad": p.n * p.p * p.q}[which]


def cache(problem, device):
    """Return whether L2 still holds ("warm") what a call reads, or not ("flushed").

    In between lie the calls on all the other sets.
    """
    return "flushed" if (SETS - 1) * problem.bytes > device.l2_bytes else "warm"


def truth(which, problem, arrays):
    """Return the float64 result of a pass, NHWC, where the arrays lie."""
    p = problem
    x, w, dy = (np.moveaxis(a, 3, 1).astype(float) for a in (arrays.x, arrays.w, arrays.dy))
    if which == "fprop":
        result = reference.conv2d(x, w, None, p.stride, p.padding)
    elif which == "dgrad":
        result = reference.conv2d_dgrad(dy, w, (p.h, p.w), p.stride, p.padding)
    else:
        result = reference.conv2d_wgrad(x, dy, (p.r, p.s), p.stride, p.padding)
    return np.moveaxis(result, 1, 3)


class Arrays:
    """One set of random arrays on a device, NHWC, as a network has them: x after a ReLU.

    Parameters
    ----------
    problem : ConvProblem
    device : Device
    seed : int
    scales : float
        Each number is multiplied by a power of ten between minus and plus this one.
    """

    def __init__(self, problem, device, seed, scales=0.0):
        xp = self._xp = array_module(device)
        rng = xp.random.default_rng(seed)

        def draw(shape):
            numbers = rng.standard_normal(shape, dtype=np.float32)
            if scales:
                numbers *= 10 ** (scales * (2 * rng.random(shape, dtype=np.float32) - 1))
            return numbers

        shapes = problem.x_shape, problem.w_shape, problem.y_shape
        x, w, dy = map(draw, shapes)
        self.x, self.w, self.dy = (a.astype(problem.dtype) for a in (xp.maximum(x, 0), w, dy))

    def operands(self, which, layout="NHWC"):
        """Return what a kernel takes, its result poisoned."""
        xp = self._xp
        given = {"fprop": (self.x, self.w), "dgrad": (self.dy, self.w), "wgrad": (self.x, self.dy)}
        like = {"fprop": self.dy, "dgrad": self.x, "wgrad": self.w}
        poison = xp.full(like[which].shape, np.nan, np.float32)
        arrays = [*given[which], poison.astype(like[which].dtype)]
        if layout == "NCHW":
            arrays = [xp.ascontiguousarray(xp.moveaxis(array, 3, 1)) for array in arrays]
        return (*arrays[:2], None, arrays[2]) if which == "fprop" else tuple(arrays)


def release(device):
    """Give back a GPU's memory between two cases, where there is much of it."""
    if device.is_gpu:
        release_memory(device)
