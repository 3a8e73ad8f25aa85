# SPDX-License-Identifier: MIT
"""What is run: every kernel but those that measure memory, on small, odd problems, and checked.

Each kernel of a convolution in each precision; each function of a network; a whole forward pass
and a whole training step in several ways, which between them launch nearly all others; and what
those do not. All are compared with float64, or with what the emulator computes.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convstudy import device, tolerance
from convstudy.conv import reference
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.conv.epilogue import Epilogue
from convstudy.device import EMULATOR, array_module
from convstudy.models.unet import UNet
from convstudy.nn import (
    add_nhwc,
    channels_nhwc,
    head_nhwc,
    images_nhwc,
    norm_nhwc,
    pool_nhwc,
    relu_nhwc,
    upsample_nhwc,
)
from convstudy.nn.cuda import KERNELS, ResidentOps
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.problem import ConvProblem
from convstudy.program.backend import GpuBackend
from convstudy.program.inference import Inference
from convstudy.program.training import Step
from convstudy.train import loss_nhwc
from convstudy.train.losses import cross_entropy_dice

# Images that follow each other, tiles that are not full, sums that are split, strides, vectors of
# one and of several numbers; for kernels that take lines of channels, the same in lines; and few
# pixels, for the one that takes no more.
PROBLEMS = (
    ConvProblem(2, 3, 9, 21, 5, 3, 3, padding=(1, 1)),
    ConvProblem(1, 160, 4, 5, 72, 3, 3, padding=(1, 1)),
    ConvProblem(1, 4, 9, 22, 68, 5, 3, (2, 2), (2, 1)),
    ConvProblem(2, 64, 9, 13, 64, 3, 3, padding=(1, 1)),
    ConvProblem(1, 512, 5, 7, 128, 3, 3, padding=(1, 1)),
    ConvProblem(1, 72, 1, 5, 37, 1, 1),
    ConvProblem(2, 33, 2, 2, 6, 1, 1),
)
# How many of them each kernel computes in each precision.
_EACH = 3
_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}
_STATISTICS = Epilogue(statistics=True)
_RESIDUAL = Epilogue(residual=True)
# Sums so long, of so few outputs, that all blocks have a part of each.
_LONG = ConvProblem(4, 64, 96, 96, 64, 1, 1)


@dataclass(frozen=True)
class Case:
    """One call of one kernel, or of several in a row.

    Attributes
    ----------
    name : str
    launches : tuple of Launch
        What it launches, to be compiled ahead; empty where that is not worth it.
    run : callable
        Takes no argument, and raises AssertionError where the result is wrong.
    """

    name: str
    launches: tuple
    run: Callable


def cases(where):
    """Yield all cases on a device, in the ladder's order and then the network's."""
    for row in ALGORITHMS.values():
        if row.plan:
            yield from _of_kernel(row, where)
        if row.count_tiles:
            yield from _of_statistics(row, where)
            yield from _of_sums(row, where)
    for method in KERNELS.values():
        yield Case(method, (), lambda method=method: _check_function(method, where))
    yield from _of_programs(where)
    for name, (launch, arrays) in _alone().items():
        run = functools.partial(_check_alone, launch, arrays, where)
        yield Case(name, launch.all_launches, run)


def _of_kernel(row, where):
    known = set()
    for precision in row.precisions:
        taken = 0
        for problem in PROBLEMS:
            kind = {"dtype": _DTYPES[precision], "precision": precision}
            problem = replace(problem, layout=row.layouts[0], **kind)
            if taken == _EACH or not row.supports(problem, where)[0]:
                continue
            launch = plan(row.id, problem, where)
            taken += 1
            if launch not in known:  # a kernel may do for TF32 what it does for fp32
                known.add(launch)
                sizes = "x".join(str(getattr(problem, letter)) for letter in "nchwkrs")
                yield Case(
                    f"{row.id} {precision} {sizes}",
                    launch.all_launches,
                    lambda launch=launch, problem=problem: _check(row, problem, launch, where),
                )


def _of_statistics(row, where):
    """Yield, in each precision in which its plan can have it, a kernel that takes statistics."""
    for precision in row.precisions:
        kind = {"dtype": _DTYPES[precision], "precision": precision, "layout": "NHWC"}
        problem = replace(PROBLEMS[3], k=72, **kind)
        if row.supports(problem, where, _STATISTICS)[0]:
            choices = row.choices(problem, where)
            choice = next(each for each in choices if row.count_tiles(problem, where, each))
            tiles = row.count_tiles(problem, where, choice)
            launch = row.plan(problem, where, choice, epilogue=_STATISTICS)
            pixels = math.prod(problem.y_shape[:3])
            merged = norm_nhwc.launch_counted_statistics(pixels, problem.k, tiles)
            run = functools.partial(_check_statistics, problem, launch, merged, tiles, where)
            name = f"statistics of {row.id} {precision}"
            yield Case(name, (*launch.all_launches, merged), run)


def _of_sums(row, where):
    """Yield, in each precision, a kernel that adds a residual, and one whose blocks share sums."""
    for precision in row.precisions:
        kind = {"dtype": _DTYPES[precision], "precision": precision, "layout": "NHWC"}
        problem = replace(PROBLEMS[3], k=72, **kind)
        if row.supports(problem, where, _RESIDUAL)[0]:
            launch = row.plan(problem, where, epilogue=_RESIDUAL)
            run = functools.partial(_check, row, problem, launch, where, adds=True)
            yield Case(f"residual of {row.id} {precision}", launch.all_launches, run)
        problem = replace(_LONG, **kind)
        choices = row.choices(problem, where) if row.supports(problem, where)[0] else ()
        shared = [each for each in choices if getattr(each, "rounds", None) is not None]
        for choice in shared[:1]:
            launch = row.plan(problem, where, choice)
            run = functools.partial(_check, row, problem, launch, where)
            yield Case(f"shared sums of {row.id} {precision}", launch.all_launches, run)


def _check_statistics(problem, launch, merged, tiles, where):
    """Compare them with those of what was written, which is compared elsewhere."""
    rng, xp = np.random.default_rng(problem.terms), array_module(where)
    given = [
        xp.asarray(rng.standard_normal(shape, dtype=np.float32).astype(dtype))
        for shape, dtype in (
            (problem.x_shape, problem.dtype),
            (problem.w_shape, problem.dtype),
            (problem.k, np.float32),
        )
    ]
    y = device.empty(problem.y_shape, where, problem.dtype)
    moments = device.empty((tiles * (2 * problem.k + 1),), where)
    launch.run(where, (*given, y, moments))
    ones, kept = xp.ones((4, problem.k), np.float32), device.empty((2, 2, problem.k), where)
    merged.run(where, (moments, *ones, *kept))
    y, found = (each if xp is np else each.get() for each in (y, kept[0]))
    y = y.astype(float).reshape(-1, problem.k)
    expected = np.stack([y.mean(0), 1 / np.sqrt(y.var(0) + 1e-5)])
    tolerance.assert_close(found, expected, len(y), dtype=np.float32)


def _check(row, problem, launch, where, adds=False):
    """Run into an array that is not written yet, so that initcheck sees what a kernel leaves."""
    rng = np.random.default_rng(problem.terms)
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "dy": problem.y_shape}
    host = {
        name: rng.standard_normal(shape, dtype=np.float32).astype(problem.dtype)
        for name, shape in shapes.items()
    }
    bias = rng.standard_normal(problem.k, dtype=np.float32)
    xp = array_module(where)
    inputs = {"fprop": "xw", "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[row.which]
    given = [xp.asarray(host[name]) for name in inputs]
    if row.which == "fprop":
        given.append(xp.asarray(bias))
    result = {"fprop": "dy", "dgrad": "x", "wgrad": "w"}[row.which]
    out = device.empty(shapes[result], where, problem.dtype)
    launch.run(where, (*given, out, *([xp.asarray(host["dy"])] if adds else [])))
    truth, terms = _truth(row.which, problem, *host.values(), bias)
    if adds:
        truth = truth + host["dy"].astype(float)
    actual = out if xp is np else out.get()
    tolerance.assert_close(actual, truth, terms, dtype=np.float32, precision=problem.precision)


def _truth(which, problem, x, w, dy, bias):
    """Return the float64 result as the arrays lie, and how many terms one number of it has."""
    p, last = problem, problem.layout == "NHWC"
    x, w, dy = (np.moveaxis(a, 3, 1) if last else a for a in (x, w, dy))
    x, w, dy, bias = (a.astype(float) for a in (x, w, dy, bias))
    if which == "fprop":
        result, terms = reference.conv2d(x, w, bias, p.stride, p.padding), p.terms + 1
    elif which == "dgrad":
        result = reference.conv2d_dgrad(dy, w, (p.h, p.w), p.stride, p.padding)
        terms = p.k * p.r * p.s
    else:
        result = reference.conv2d_wgrad(x, dy, (p.r, p.s), p.stride, p.padding)
        terms = p.n * p.p * p.q
    return np.moveaxis(result, 1, 3) if last else result, terms


# Arguments of each function of a network: an odd plane, more channels than a tile has.
_X = (2, 17, 9, 13)
_ARGUMENTS = {
    "batch_norm": (_X, (17,), (17,), (17,), (17,)),
    "relu": (_X,),
    "max_pool2d": (_X,),
    "conv_transpose2d": (_X, (17, 19, 2, 2), (19,)),
    "upsample_bilinear": (_X,),
    "pad_concat": (_X, (2, 3, 8, 12)),
    "average_pool2d": (_X,),
    "add": (_X, _X),
}


def _check_function(method, where):
    rng = np.random.default_rng(len(method))
    # Positive: one of them is a variance.
    arrays = [rng.random(shape, dtype=np.float32) + 0.5 for shape in _ARGUMENTS[method]]
    truth = getattr(ReferenceOps(), method)(*(array.astype(float) for array in arrays))
    ops = ResidentOps(device=where)
    actual = ops.to_host(getattr(ops, method)(*map(ops.to_device, arrays)))
    tolerance.assert_close(actual, truth, 4 * _X[1], dtype=np.float32)


# Wide enough for tensor cores at the deeper levels; the smallest has 2 x 2 pixels.
_SHAPE, _WIDTH = (2, 3, 35, 34), 8
_TRAININGS = {
    "training, transposed, fp32, adamw, clipped": (False, "fp32", "adamw", {}, 0.5),
    "training, transposed, fp32, sgd": (False, "fp32", "sgd", {}, None),
    "training, bilinear, bf16, rmsprop": (True, "bf16", "rmsprop", {"momentum": 0.9}, None),
}
_INFERENCES = {
    "inference, transposed, bf16": (False, "bf16"),
    "inference, bilinear, tf32": (True, "tf32"),
}


def _of_programs(where):
    for name, (bilinear, precision, *rule) in _TRAININGS.items():
        step = Step(_network(bilinear), _SHAPE, precision, *rule, where)
        run = functools.partial(_check_training, bilinear, precision, rule, where)
        yield Case(name, step.program.launches, run)
    for name, (bilinear, precision) in _INFERENCES.items():
        # To plan it is to allocate it.
        yield Case(name, (), functools.partial(_check_inference, bilinear, precision, where))


def _network(bilinear):
    network = UNet.initialised(0, width=_WIDTH, bilinear=bilinear)
    network.randomise_statistics(1)
    return network


def _batch():
    rng = np.random.default_rng(len(_SHAPE))
    n, _, h, w = _SHAPE
    return rng.random(_SHAPE, np.float32), rng.integers(0, 2, (n, h, w))


def _check_training(bilinear, precision, rule, where):
    network, (images, masks) = _network(bilinear), _batch()
    backend = GpuBackend(network, _SHAPE, precision, *rule, device=where)
    # Each array by itself: what lies behind one is then no other's.
    state = backend.state()
    backend.program.allocate(apart=True)
    backend.load_state(state)
    backend.load(images, masks, 0.0)
    backend.program.run()
    found = backend.gradients()
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    _, dlogits, _ = cross_entropy_dice(network.apply(images.astype(float), tape), masks)
    expected = tape.backward(dlogits)
    # There and back through each layer, and a sum over pixels; twice, since so few average little.
    terms = [count for count in network.terms() for _ in range(3)]
    limit = 2 * tolerance.tolerance(np.float32, *terms, precision=precision)
    error = np.linalg.norm([np.linalg.norm(found[name] - g) for name, g in expected.items()])
    whole = np.linalg.norm([np.linalg.norm(g) for g in expected.values()])
    if not error <= limit * whole:
        raise AssertionError(f"gradients err by {error / whole:.3g}, the tolerance is {limit:.3g}")


def _check_inference(bilinear, precision, where):
    network, (images, _) = _network(bilinear), _batch()
    forward = Inference(network, _SHAPE, precision, where)
    forward.program.allocate(apart=True)
    forward.reload()
    forward.load(images)
    forward.program.run()
    expected = network.forward(images, ReferenceOps())
    terms = network.terms()
    tolerance.assert_close(forward.scores(), expected, *terms, precision=precision)


def _alone():
    """Return {name: (launch, arrays)} of the kernels that hardly any of the above launches.

    The last array is the result.
    """
    rng = np.random.default_rng(1)
    shape, means = (2, 9, 13, 20), (2, 20)
    made = pool_nhwc.pooled_shape(shape)

    def draw(*shapes):
        return tuple(rng.standard_normal(each, dtype=np.float32) for each in shapes)

    pixels, winners = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 4, made, np.uint8)
    (logits,) = draw((2, 9, 13, 3))
    dy, y, dx = draw(shape, shape, shape)
    return {
        "gradient of ReLU": (relu_nhwc.launch_relu_dgrad(shape, "float32"), (dy, None, y, dx)),
        "max pooling": (
            pool_nhwc.launch_max_pool(shape, "float32"),
            (*draw(shape, made), np.zeros_like(winners)),
        ),
        "gradient of max pooling": (
            pool_nhwc.launch_max_pool_dgrad(shape, "float32"),
            (*draw(made), winners, *draw(shape)),
        ),
        "average pooling": (pool_nhwc.launch_average_pool(shape, "float32"), draw(shape, means)),
        "gradient of average pooling": (
            pool_nhwc.launch_average_pool_dgrad(shape, "float32"),
            draw(means, shape),
        ),
        "averages of windows": (
            pool_nhwc.launch_average_windows(shape, "float32", 7),
            draw(shape, (2, 7, 7, 20)),
        ),
        "gradient of averages of windows": (
            pool_nhwc.launch_average_windows_dgrad(shape, "float32", 7),
            draw((2, 7, 7, 20), shape),
        ),
        "residual sum": (add_nhwc.launch_add(shape, "float32", True), draw(shape, shape, shape)),
        "channels of ranks": (
            channels_nhwc.launch_blocks(shape, "float32", 2, (20, 2 * 9 * 13 * 20), (40, 20)),
            draw((2, *shape), (2, 9, 13, 40)),
        ),
        "loss of classes": (
            loss_nhwc.launch_entropy(18, 117, "float32"),
            (*draw((18, 117)), rng.integers(0, 117, 18, np.int32), *draw((18, 117), (18, 3))),
        ),
        "gradient of the head": (
            head_nhwc.launch_head_dgrad_parts(shape, "float32", 3, 2 * 9 * 13),
            draw((2, 9, 13, 3), shape, (3, 20), shape, (63,)),
        ),
        "border": (upsample_nhwc.launch_border(shape, "float32", (7, 10), (1, 2)), draw(shape)),
        "images of bytes": (images_nhwc.launch_bytes(shape, "float32"), (pixels, *draw(shape))),
        "mask": (head_nhwc.launch_mask(shape, 3), (logits, np.zeros(shape[:3], np.uint8))),
    }


def _check_alone(launch, arrays, where):
    xp = array_module(where)
    emulated = [a if a is None else a.copy() for a in arrays]
    launch.run(EMULATOR, emulated)
    given = [a if a is None else xp.array(a) for a in arrays]
    launch.run(where, given)
    actual = given[-1] if xp is np else given[-1].get()
    tolerance.assert_close(actual, emulated[-1], 9 * 13, dtype=np.float32)
