# SPDX-License-Identifier: MIT
"""Table 1 and Fig. 1: where a forward pass of U-Net spends its time, function by function."""

from convstudy.conv.cpu import threads
from convstudy.device import devices
from convstudy.measure import pytorch
from convstudy.measure.pytorch_ops import TorchOps
from convstudy.measure.suite import Case, Suite
from convstudy.measure.suites.network import (
    KERNELS,
    TILED,
    no_gpu,
    piece_rows,
    pieces,
    unet_on_cpu,
    unet_work,
)
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.plain import PlainOps


def cases(options):
    """Yield a case for each way of executing the network, for one image."""
    yield _on_cpu("cpu-plain", PlainOps, options["plain_repeats"], 1)
    yield _on_cpu("cpu-blas", BlasOps, options["repeats"], threads())
    yield _case(
        "pytorch-cpu",
        lambda: TorchOps(threads=threads()),
        options["repeats"],
        threads=threads(),
        skip=pytorch.why_not(),
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


def _on_cpu(execution, make, repeats, threads):
    labels = _labels(execution, threads=threads)

    def run():
        return piece_rows(execution, labels, unet_work(1), *unet_on_cpu(make, repeats))

    return Case(execution, run, labels)


def _case(execution, make, repeats, algorithm="", rest="", threads=0, skip=None):
    labels = _labels(execution, algorithm, rest, threads)
    name = "/".join(part for part in (execution, algorithm, rest) if part)
    return Case(name, lambda: pieces(name, labels, make(), unet_work(1), repeats), labels, skip)


def _labels(execution, algorithm="", rest="", threads=0):
    return {
        "execution": execution,
        "algorithm": algorithm,
        "rest": rest,
        "n": 1,
        "threads": threads,
    }


SUITE = Suite(
    "functions",
    "Table 1 and Fig. 1: time per function of U-Net",
    cases,
    options={"repeats": 10, "plain_repeats": 3},
    quick={"repeats": 5, "plain_repeats": 1},
)
