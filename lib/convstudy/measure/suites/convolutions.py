# SPDX-License-Identifier: MIT
"""Every pass of U-Net's 18 convolutions in each precision: our kernels and cuDNN, in turn."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convstudy.compile import Launch
from convstudy.conv.algorithm import choose, kernels_for, plan, read_again
from convstudy.device import devices
from convstudy.measure import pytorch
from convstudy.measure.graphs import alternating, capture
from convstudy.measure.suite import Case, Suite, check_words, checked, compared, result
from convstudy.measure.suites import passes
from convstudy.measure.suites.network import BLOCKED, TILED
from convstudy.tolerance import relative_error

# An error that no rounding makes: whatever was timed, it was not this convolution.
_ABSURD = 0.1
_RUNGS = ("chosen", "all")
# Powers of ten between which badly scaled numbers lie.
_SCALES = 6.0


def cases(options):
    """Yield a case for each pass, precision, batch and layer."""
    read_again()
    check_words(options, rungs=_RUNGS)
    for labels, which, problem in passes.problems(options):
        name = "{pass}/{precision}/n{n}/{layer}".format(**labels)
        contest = _Contest(name, labels, which, problem, options)
        yield Case(name, contest.run, labels, passes.why_not() or pytorch.why_not())


def launches(options):
    """Return what the cases launch on this machine's GPU."""
    read_again()
    device = devices()[0]
    return [
        plan(algorithm, each, device)
        for _, which, problem in passes.problems(options)
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
        try:
            return self._run(device)
        finally:
            passes.release(device)
            pytorch.release()

    def _run(self, device):
        arrays = [passes.Arrays(self.problem, device, seed) for seed in range(passes.SETS)]
        truth = passes.truth(self.which, self.problem, arrays[0])
        count, options = passes.calls(self.problem), self.options
        sides, replays = self._sides(device, arrays), {}
        for name, side in sides.items():
            side.calls[0]()
            side.check = self._checked(side, truth)
            replays[name] = side.capture([side.calls[i % passes.SETS] for i in range(count)])
        limits = options["repeats"], 2, options["seconds"]
        samples = alternating(replays, count, device, *limits)
        scaled = self._badly_scaled(device)
        return [
            self._row(name, side, samples[name], count, device, scaled.get(name))
            for name, side in sides.items()
        ]

    def _sides(self, device, arrays):
        sides = {
            f"{algorithm}/{problem.layout}": self._ours(algorithm, problem, device, arrays)
            for algorithm, problem in _rivals(self.which, self.problem, device, self.options)
        }
        for layout in ("NCHW", "NHWC"):
            runs = [
                pytorch.convolution(
                    self.which, self.problem, each, layout == "NHWC", self.options["plans"]
                )
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

    def _checked(self, side, truth):
        """Return the check of a side: ours has to pass, cuDNN's is as exact as it is."""
        terms = passes.terms(self.which, self.problem)
        compare = checked if side.launch else compared
        check = compare(side.fetch(), truth, terms, precision=self.problem.precision)
        if not check["max_relative_error"] < _ABSURD:
            raise RuntimeError(
                f"cuDNN's result is wrong: its relative error is {check['max_relative_error']:.3g}"
            )
        return check

    def _badly_scaled(self, device):
        """Return each side's error in fp32 where numbers differ by twelve powers of ten.

        How exact a kernel is does not depend on how many images there are: one is enough.
        """
        if self.problem.precision != "fp32" or self.problem.n > 1:
            return {}
        arrays = passes.Arrays(self.problem, device, passes.SETS, _SCALES)
        truth, errors = passes.truth(self.which, self.problem, arrays), {}
        for name, side in self._sides(device, [arrays]).items():
            side.calls[0]()
            errors[name] = relative_error(side.fetch(), truth)
        return errors

    def _row(self, name, side, samples, count, device, scaled):
        algorithm, layout = name.split("/")
        return result(
            f"{self.name}/{name}",
            self.labels | {"algorithm": algorithm, "layout": layout},
            samples,
            clock="event",
            problem=self.problem,
            launch=side.launch,
            cache=passes.cache(self.problem, device),
            transfers="excluded",
            warmup=2,
            values={"calls": count, "sets": passes.SETS}
            | ({} if scaled is None else {"badly_scaled_error": scaled}),
            check=side.check,
            device=device,
        )


SUITE = Suite(
    "convolutions",
    "Every pass and precision at U-Net's 18 layers, ours and cuDNN",
    cases,
    gpus=1,
    options=passes.OPTIONS | {"rungs": "chosen", "repeats": 20, "seconds": 0.5, "plans": 10},
    quick={"n": "1", "repeats": 5},
    launches=launches,
)
# A suite of its own, as of tuning.
NETWORKS = replace(
    SUITE,
    name="convolutions-networks",
    title="Every pass and precision at VGG's and ResNet's layers, ours and cuDNN",
    options=SUITE.options | passes.NETWORKS_OPTIONS,
)
