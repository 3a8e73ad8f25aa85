# SPDX-License-Identifier: MIT
"""Table 1 and Fig. 1: where a forward pass of U-Net spends its time, function by function."""

import time

from convstudy.conv.cpu import threads
from convstudy.device import CPU, devices
from convstudy.measure import pytorch
from convstudy.measure.clocks import sample
from convstudy.measure.suite import Case, Suite, checked, result
from convstudy.measure.suites.network import (
    KERNELS,
    TILED,
    expected,
    images,
    no_gpu,
    unet,
    warm_up,
)
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.ops import Timed
from convstudy.nn.plain import PlainOps


def cases(options):
    """Yield a case for each way of executing the network, for one image."""
    yield _case("cpu-plain", PlainOps, options["plain_repeats"], threads=1)
    yield _case("cpu-blas", BlasOps, options["repeats"], threads=threads())
    yield Case(
        "pytorch-cpu",
        lambda: _pytorch(options["repeats"]),
        {"execution": "pytorch-cpu"},
        pytorch.why_not(),
    )
    for rest, make in (("cpu-plain", PlainOps), ("cpu-blas", BlasOps)):
        repeats = options["plain_repeats"] if rest == "cpu-plain" else options["repeats"]
        yield _case(
            "offload",
            lambda make=make: OffloadOps(TILED, devices()[0], cpu=make()),
            repeats,
            algorithm=TILED,
            rest=rest,
            skip=no_gpu(),
        )
    for algorithm in KERNELS:
        yield _case(
            "resident",
            lambda algorithm=algorithm: ResidentOps(algorithm, devices()[0]),
            options["repeats"],
            algorithm=algorithm,
            skip=no_gpu(),
        )


def _case(execution, make, repeats, algorithm="", rest="", threads=0, skip=None):
    labels = {
        "execution": execution,
        "algorithm": algorithm,
        "rest": rest,
        "n": 1,
        "threads": threads,
    }
    name = "/".join(part for part in (execution, algorithm, rest) if part)
    return Case(name, lambda: _pieces(name, labels, make(), repeats), labels, skip)


def _pieces(name, labels, ops, repeats):
    network = unet()
    on_gpu = labels["execution"] in ("offload", "resident")
    device = devices()[0] if on_gpu else CPU
    timed = Timed(ops)
    x = ops.to_device(images(1))
    if on_gpu:
        network.apply(x, ops)
    else:
        warm_up(ops)
    calls = {function: [] for function in timed.seconds}
    whole = []
    for _ in range(repeats):
        for seconds in timed.seconds.values():
            seconds.clear()
        start = time.perf_counter()
        y = network.apply(x, timed)
        whole.append(time.perf_counter() - start)
        for function, seconds in timed.seconds.items():
            calls[function].append(sum(seconds))
    check = checked(ops.to_host(y), expected(1), *network.terms())
    if labels["execution"] == "resident":
        # Waiting for each function costs a GPU more than the stopwatch costs a CPU.
        whole = sample(lambda: network.apply(x, ops), "synchronised", device, repeats, 1)
    shared = {"clock": "synchronised", "cache": "warm", "warmup": 1, "device": device}
    if on_gpu:
        shared["transfers"] = "excluded" if labels["execution"] == "resident" else "included"
    rows = [
        result(f"{name}/{function}", labels | {"function": function}, samples, **shared)
        for function, samples in calls.items()
        if min(samples) > 0
    ]
    label = labels | {"function": "network"}
    return [*rows, result(f"{name}/network", label, whole, check=check, **shared)]


def _pytorch(repeats):
    """Time PyTorch's forward pass on as many threads as BLAS has."""
    network, x = unet(), images(1)
    count = threads()
    theirs = pytorch.unet_forward(network, count)
    check = checked(theirs(x), expected(1), *network.terms())
    labels = {"execution": "pytorch-cpu", "algorithm": "", "rest": "", "n": 1, "threads": count}
    samples = sample(lambda: theirs(x), "synchronised", CPU, repeats, 2)
    return [
        result(
            "pytorch-cpu/network",
            labels | {"function": "network"},
            samples,
            clock="synchronised",
            cache="warm",
            warmup=2,
            check=check,
        )
    ]


SUITE = Suite(
    "functions",
    "Table 1 and Fig. 1: time per function of U-Net",
    cases,
    options={"repeats": 10, "plain_repeats": 3},
    quick={"repeats": 5, "plain_repeats": 1},
)
