# SPDX-License-Identifier: MIT
"""The ladder: each algorithm at each of U-Net's 18 convolutions."""

import functools

import numpy as np

from convstudy.conv import reference
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.conv.api import convolve
from convstudy.device import CPU, array_module, devices
from convstudy.measure import pytorch
from convstudy.measure.clocks import sample
from convstudy.measure.runner import SEED
from convstudy.measure.suite import Case, Suite, checked, numbers, result
from convstudy.measure.suites.network import KERNELS, layers, no_gpu
from convstudy.problem import ConvProblem


def cases(options):
    """Yield a case for each algorithm and layer; cuDNN where PyTorch is there."""
    on_cpu = [row.id for row in ALGORITHMS.values() if row.compute and row.which == "fprop"]
    if not options["plain_repeats"]:
        on_cpu.remove("cpu-plain")
    for n in numbers(options["n"]):
        for layer, problem in layers(n):
            for algorithm in on_cpu if n == 1 else ():
                run = _on_cpu(algorithm, problem, options)
                yield _case(algorithm, layer, n, run, None)
            for algorithm in KERNELS:
                run = _on_gpu(algorithm, problem, options["repeats"])
                yield _case(algorithm, layer, n, run, no_gpu())
            run = _cudnn(problem, options["repeats"])
            yield _case("cudnn", layer, n, run, no_gpu() or pytorch.why_not())


def _case(algorithm, layer, n, run, skip):
    labels = {"algorithm": algorithm, "layer": layer, "n": n}
    name = f"{algorithm}/n{n}/{layer}"
    return Case(name, lambda: run(name, labels), labels, skip)


def _arrays(problem):
    rng = np.random.default_rng((SEED, *problem.x_shape, problem.k))
    x = rng.standard_normal(problem.x_shape, dtype=np.float32)
    return x, rng.standard_normal(problem.w_shape, dtype=np.float32)


@functools.cache
def _truth(problem):
    """Return the float64 result of the first image and the last: all of them would take long."""
    x, w = _arrays(problem)
    ends = x[[0, problem.n - 1]].astype(float)
    return reference.conv2d(ends, w.astype(float), None, problem.stride, problem.padding)


def _checked(problem, y):
    return checked(y[[0, problem.n - 1]], _truth(problem), problem.terms)


def _compile(algorithm):
    """Make compiled loops compile, on the smallest problem there is."""
    one = np.ones((1, 1, 1, 1), np.float32)
    convolve(ConvProblem(1, 1, 1, 1, 1, 1, 1), one, one, None, one.copy(), algorithm, CPU)


def _on_cpu(algorithm, problem, options):
    def run(name, labels):
        x, w = _arrays(problem)
        y = np.full(problem.y_shape, np.nan, np.float32)
        _compile(algorithm)
        repeats = options["plain_repeats"] if algorithm == "cpu-plain" else options["repeats"]

        def once():
            convolve(problem, x, w, None, y, algorithm, CPU)

        samples = sample(once, "synchronised", CPU, repeats, 0)
        check = _checked(problem, y)
        return [
            result(
                name,
                labels,
                samples,
                clock="synchronised",
                problem=problem,
                cache="warm",
                check=check,
            )
        ]

    return run


def _on_gpu(algorithm, problem, repeats):
    def run(name, labels):
        device = devices()[0]
        xp = array_module(device)
        x, w = map(xp.asarray, _arrays(problem))
        y = xp.full(problem.y_shape, np.nan, np.float32)
        launch = plan(algorithm, problem, device)
        launch.run(device, (x, w, None, y))
        check = _checked(problem, y.get())
        samples = sample(lambda: launch.run(device, (x, w, None, y)), "event", device, repeats)
        return [
            result(
                name,
                labels,
                samples,
                clock="event",
                problem=problem,
                launch=launch,
                cache="warm",
                transfers="excluded",
                warmup=3,
                check=check,
                device=device,
            )
        ]

    return run


def _cudnn(problem, repeats):
    def run(name, labels):
        device = devices()[0]
        xp = array_module(device)
        x, w = map(xp.asarray, _arrays(problem))
        rows = []
        for channels_last in (False, True):
            layout = "NHWC" if channels_last else "NCHW"
            convolution, fetch = pytorch.cudnn_convolution(problem, x, w, channels_last)
            # PyTorch works on the default stream, as CuPy does: the same events time it.
            samples = sample(convolution, "event", device, repeats, 5)
            rows.append(
                result(
                    f"{name}/{layout}",
                    labels | {"layout": layout},
                    samples,
                    clock="event",
                    problem=problem,
                    cache="warm",
                    transfers="excluded",
                    warmup=5,
                    check=_checked(problem, fetch()),
                    device=device,
                )
            )
        return rows

    return run


SUITE = Suite(
    "ladder",
    "Each convolution algorithm at U-Net's 18 layers",
    cases,
    options={"n": "1,16", "repeats": 20, "plain_repeats": 1},
    least={"plain_repeats": 0},
    quick={"n": "1", "repeats": 5, "plain_repeats": 0},
)
