# SPDX-License-Identifier: MIT
"""P11: from which batch size on a second GPU pays, with the rest on the CPU and without."""

import itertools

from convstudy.device import devices
from convstudy.measure.clocks import sample
from convstudy.measure.suite import Case, Suite, checked, numbers, result
from convstudy.measure.suites.network import BLOCKED, TILED, expected, images, unet
from convstudy.nn.blas import BlasOps
from convstudy.parallel.chunks import ChunkedForward
from convstudy.parallel.offload import DataParallelOps


def cases(options):
    """Yield a case for each execution, batch size and number of GPUs: tiled first."""
    resident, offload = numbers(options["n"]), numbers(options["n_offload"])
    for execution, algorithm, batches in (
        ("resident", TILED, resident),
        ("offload", TILED, offload),
        ("resident", BLOCKED, resident),
    ):
        for n, gpus in itertools.product(batches, range(1, len(devices()) + 1)):
            yield _case(execution, algorithm, gpus, n, options["repeats"])


def _case(execution, algorithm, gpus, n, repeats):
    labels = {
        "execution": execution,
        "algorithm": algorithm,
        "gpus": gpus,
        "n": n,
        "rest": "cpu-blas" if execution == "offload" else "",
    }
    name = f"{execution}/{algorithm}/{gpus} GPUs/n{n}"
    return Case(name, lambda: [_run(name, labels, repeats)], labels)


def _run(name, labels, repeats):
    used, n, network = devices()[: labels["gpus"]], labels["n"], unet()
    if labels["execution"] == "resident":
        # Two chunks a GPU: while one computes, the other's images are copied.
        forward = ChunkedForward(network, used, 2, algorithm=labels["algorithm"]).run
    else:
        ops = DataParallelOps(used, 2, algorithm=labels["algorithm"], cpu=BlasOps())

        def forward(x):
            return network.forward(x, ops)

    x = images(n)
    check = checked(forward(x), expected(n), *network.terms())
    samples = sample(lambda: forward(x), "synchronised", used[0], repeats, 1)
    return result(
        name,
        labels,
        samples,
        clock="synchronised",
        cache="warm",
        transfers="included",
        warmup=2,
        check=check,
        device=used[0],
    )


SUITE = Suite(
    "batch",
    "P11: when a second GPU pays",
    cases,
    gpus=1,
    options={"n": "1,2,4,8,16,32,64", "n_offload": "1,2,4,8", "repeats": 7},
    quick={"n": "1,8", "n_offload": "1", "repeats": 3},
)
