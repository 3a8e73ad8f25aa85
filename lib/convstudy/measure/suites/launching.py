# SPDX-License-Identifier: MIT
"""P9: the same 18 launches under each of the three clocks."""

from convstudy.device import devices
from convstudy.measure.clocks import CLOCKS, sample
from convstudy.measure.suite import Case, Suite, numbers, result
from convstudy.measure.suites.network import KERNELS, Convolutions, layers, no_gpu


def cases(options):
    """Yield a case for each kernel and batch: all layers, one after another."""
    for n in numbers(options["n"]):
        for algorithm in KERNELS:
            labels = {"what": "convolution", "algorithm": algorithm, "n": n}
            name = f"{algorithm}/n{n}"
            yield Case(
                name,
                lambda name=name, labels=labels: _clocks(name, labels, options["repeats"]),
                labels,
                no_gpu(),
            )


def _clocks(name, labels, repeats):
    device = devices()[0]
    problems = [problem for _, problem in layers(labels["n"])]
    convolutions = Convolutions(problems, labels["algorithm"], device)
    return [
        result(
            f"{name}/{clock}",
            labels,
            sample(convolutions.run, clock, device, repeats),
            clock=clock,
            cache="warm",
            transfers="excluded",
            warmup=3,
            device=device,
        )
        for clock in CLOCKS
    ]


SUITE = Suite(
    "launch",
    "P9: one call, three clocks",
    cases,
    gpus=1,
    options={"n": "1,16", "repeats": 20},
    quick={"n": "1", "repeats": 10},
)
