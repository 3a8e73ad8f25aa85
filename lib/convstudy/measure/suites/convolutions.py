# SPDX-License-Identifier: MIT
"""Every pass of U-Net's 18 convolutions in each precision: our kernels and cuDNN, in turn."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convstudy.compile import Launch
from convstudy.conv.algorithm import choose, kernels_for, plan
from convstudy.device import array_module, devices
from convstudy.measure import pytorch
from convstudy.measure.clocks import once
from convstudy.measure.graphs import alternating, capture
from convstudy.measure.suite import Case, Suite, checked, result
from convstudy.measure.suites.network import BLOCKED, TILED, no_gpu, numbers, unet

# Calls go round so many sets of arrays: what a call reads, the one before it did not leave in L2.
_SETS = 3
# cuDNN's fastest kernels are less exact than sums of rounded products are: in strict fp32 the
# gradients of filters erred by four times the tolerance. That is shown beside its time.
_ROOM = 16
# A replay is to be long against the few microseconds that its launch takes.
_CALLS = {1: 12}


def cases(options):
    """Yield a case for each pass, precision, batch and layer."""
    for labels, which, problem in _problems(options):
        name = "{pass}/{precision}/n{n}/{layer}".format(**labels)
        contest = _Contest(name, labels, which, problem, options)
        yield Case(name, contest.run, labels, no_gpu() or pytorch.why_not())


def launches(options):
    """Return what the cases launch on this machine's GPU."""
    device = devices()[0]
    return [
        plan(algorithm, each, device)
        for _, which, problem in _problems(options)
        for algorithm, each in _rivals(which, problem, device, options)
    ]


def _rivals(which, problem, device, options):
    """Yield our kernels that take part, each with the problem in its layout."""
    if options["rungs"] == "all":
        yield from ((name, problem) for name in kernels_for(problem, device, which))
    else:
        yield choose(problem, device, which), problem
    if which == "fprop" and problem.precision == "fp32":
        first = replace(problem, layout="NCHW")
        yield from ((algorithm, first) for algorithm in (TILED, BLOCKED))


def _problems(options):
    height, width = numbers(options["size"])
    for which in _words(options["passes"]):
        for precision in _words(options["precisions"]):
            for n in numbers(options["n"]):
                for layer, problem in unet().layers(height, width, n):
                    dtype = "bfloat16" if precision == "bf16" else "float32"
                    problem = replace(problem, layout="NHWC", dtype=dtype, precision=precision)
                    labels = {"pass": which, "precision": precision, "n": n, "layer": layer}
                    yield labels | {"height": height, "width": width}, which, problem


def _words(text):
    return [word.strip() for word in text.split(",")]


@dataclass
class _Side:
    """One algorithm in one layout: its calls, a set of arrays each, and what they computed."""

    calls: list
    fetch: Callable
    capture: Callable
    launch: Launch | None = None
    check: dict | None = None


class _Contest:
    """Our kernels and cuDNN at one convolution: same arrays, same clock, turn by turn."""

    def __init__(self, name, labels, which, problem, options):
        self.name, self.labels = name, labels
        self.which, self.problem, self.options = which, problem, options

    def run(self):
        """Check the result of each side, then time them in turn; return a row for each."""
        device = devices()[0]
        arrays = [_Arrays(self.problem, array_module(device), seed) for seed in range(_SETS)]
        truth = pytorch.truth(self.which, self.problem, arrays[0])
        count = _CALLS.get(self.problem.n, _SETS)
        sides, replays = self._sides(device, arrays), {}
        for name, side in sides.items():
            side.calls[0]()
            side.check = self._checked(side.fetch(), truth, 1 if side.launch else _ROOM)
            replays[name] = side.capture([side.calls[i % _SETS] for i in range(count)])
        samples = alternating(once("event", device), replays, count, self.options["repeats"])
        return [self._row(*each, samples[each[0]], count, device) for each in sides.items()]

    def _sides(self, device, arrays):
        sides = {
            f"{algorithm}/{problem.layout}": self._ours(algorithm, problem, device, arrays)
            for algorithm, problem in _rivals(self.which, self.problem, device, self.options)
        }
        for layout in ("NCHW", "NHWC"):
            runs = [
                pytorch.convolution(self.which, self.problem, each, layout == "NHWC")
                for each in arrays
            ]
            sides[f"cudnn/{layout}"] = _Side([r for r, _ in runs], runs[0][1], pytorch.capture)
        return sides

    def _ours(self, algorithm, problem, device, arrays):
        launch = plan(algorithm, problem, device)
        operands = [each.operands(self.which, problem.layout) for each in arrays]

        def fetch():
            y = operands[0][-1]
            return y if problem.layout == "NHWC" else np.moveaxis(y, 1, 3)

        calls = [lambda given=given: launch.run(device, given) for given in operands]
        return _Side(calls, fetch, lambda calls: capture(device, calls), launch)

    def _checked(self, actual, truth, room):
        p = self.problem
        terms = {"fprop": p.terms, "dgrad": p.k * p.r * p.s, "wgrad": p.n * p.p * p.q}
        return checked(actual, truth, terms[self.which], precision=p.precision, room=room)

    def _row(self, name, side, samples, count, device):
        algorithm, layout = name.split("/")
        return result(
            f"{self.name}/{name}",
            self.labels | {"algorithm": algorithm, "layout": layout},
            samples,
            clock="event",
            problem=self.problem,
            launch=side.launch,
            cache="flushed",
            transfers="excluded",
            warmup=3,
            values={"calls": count, "sets": _SETS},
            check=side.check,
            device=device,
        )


class _Arrays:
    """One set of random arrays on the GPU, NHWC, as a network has them: x after a ReLU."""

    def __init__(self, problem, xp, seed):
        rng = xp.random.default_rng(seed)
        self._xp = xp
        shapes = problem.x_shape, problem.w_shape, problem.y_shape
        x, w, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
        self.x, self.w, self.dy = (a.astype(problem.dtype) for a in (xp.maximum(x, 0), w, dy))

    def operands(self, which, layout):
        """Return what a kernel takes, its result poisoned."""
        xp = self._xp
        given = {"fprop": (self.x, self.w), "dgrad": (self.dy, self.w), "wgrad": (self.x, self.dy)}
        like = {"fprop": self.dy, "dgrad": self.x, "wgrad": self.w}
        poison = xp.full(like[which].shape, np.nan, np.float32)
        arrays = [*given[which], poison.astype(like[which].dtype)]
        if layout == "NCHW":
            arrays = [xp.ascontiguousarray(xp.moveaxis(array, 3, 1)) for array in arrays]
        return (*arrays[:2], None, arrays[2]) if which == "fprop" else tuple(arrays)


SUITE = Suite(
    "convolutions",
    "Every pass and precision at U-Net's 18 layers, ours and cuDNN",
    cases,
    gpus=1,
    options={
        "n": "1,16,64",
        "passes": "fprop,dgrad,wgrad",
        "precisions": "fp32,tf32,bf16",
        "size": "128,191",
        "rungs": "chosen",
        "repeats": 20,
    },
    quick={"n": "1", "repeats": 5},
    launches=launches,
)
