# SPDX-License-Identifier: MIT
"""Fig. 4: the paper's four environments and two more, for one image, under each clock."""

import time
from dataclasses import replace

import numpy as np

from convstudy.device import CPU, array_module, devices
from convstudy.measure.clocks import CLOCKS, sample
from convstudy.measure.suite import Case, Suite, checked, result
from convstudy.measure.suites.network import (
    BLOCKED,
    TILED,
    Convolutions,
    expected,
    forward_passes,
    images,
    layers,
    no_gpu,
    unet,
    unet_on_cpu,
    unet_work,
)
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.plain import PlainOps
from convstudy.parallel.chunks import ChunkedForward
from convstudy.parallel.cuts import height_with_halo, split
from convstudy.parallel.offload import DataParallelOps

_ONE_GPU = {
    "GPU, not optimised": "conv2d_fprop_1_naive",
    "1 GPU, tiled": TILED,
    "1 GPU, register-blocked": BLOCKED,
}
_OURS = ("CPU, BLAS", "1 GPU, register-blocked")
_TWO_GPUS = "2 GPUs, tiled + data parallel"
_REST = {"cpu-plain": PlainOps, "cpu-blas": BlasOps}


def cases(options):
    """Return a case for each environment and execution: the paper's first, in case time is up."""
    return sorted(_every(options), key=_is_ours)


def _is_ours(case):
    labels = case.labels
    return labels["rest"] == "cpu-blas" or labels["environment"] in _OURS


def _every(options):
    plain, repeats = options["plain_repeats"], options["repeats"]
    for environment, make, count in (
        ("CPU, plain loops", PlainOps, plain),
        ("CPU, BLAS", BlasOps, repeats),
    ):
        yield _case(environment, "cpu", "", lambda c, m=make, r=count: c.on_cpu(m, r))
    for environment, algorithm in _ONE_GPU.items():
        for rest, make in _REST.items():
            yield _case(
                environment,
                "offload",
                rest,
                lambda c, a=algorithm, m=make, r=plain if rest == "cpu-plain" else repeats: (
                    c.offload(a, m(), r)
                ),
                gpus=1,
            )
        yield _case(
            environment, "resident", "", lambda c, a=algorithm: c.resident(a, repeats), gpus=1
        )
    for rest, make in _REST.items():
        yield _case(
            _TWO_GPUS,
            "offload",
            rest,
            lambda c, m=make, r=plain if rest == "cpu-plain" else repeats: c.on_host(
                DataParallelOps(devices()[:2], 1, algorithm=TILED, cpu=m()), devices()[0], r
            ),
            gpus=2,
        )
    yield _case(_TWO_GPUS, "resident", "", lambda c: c.two_resident(repeats), gpus=2)


def _case(environment, execution, rest, run, gpus=0):
    labels = {
        "environment": environment,
        "execution": execution,
        "rest": rest,
        "n": 1,
        "gpus": gpus,
    }
    name = "/".join(part for part in (environment, execution, rest) if part)
    return Case(name, lambda: run(_Rows(name, labels)), labels, no_gpu(gpus))


class _Rows:
    """The results of one case: what was timed, by which clock."""

    def __init__(self, name, labels):
        self.name, self.labels = name, labels

    def row(self, what, clock, samples, device, check=None, transfers=None):
        return result(
            f"{self.name}/{what}/{clock}",
            self.labels | {"what": what},
            samples,
            clock=clock,
            cache="warm",
            transfers=transfers,
            warmup=1,
            check=check,
            device=device,
        )

    def on_cpu(self, make, repeats):
        """Return what a network that stays on the CPU takes, and the convolutions in it."""
        return self._on_host(unet_on_cpu(make, repeats), CPU, None)

    def on_host(self, ops, device, repeats):
        """Time a network that begins and ends on the host, and the convolutions in it."""
        work = unet_work(1)
        work.network.apply(work.images, ops)
        passes = forward_passes(ops, work, work.images, repeats)
        return self._on_host(passes, device, "included")

    def _on_host(self, passes, device, transfers):
        whole, calls, y = passes
        check = unet_work(1).checked(y)
        return [
            self.row("network", "synchronised", whole, device, check, transfers),
            self.row("convolution", "synchronised", calls["convolution"], device, None, transfers),
        ]

    def offload(self, algorithm, cpu, repeats):
        """Time an offloaded network, and its launches alone under the host's clock and events."""
        device = devices()[0]
        ops = _TimedOffload(algorithm, device, cpu=cpu)
        rows = self.on_host(ops, device, repeats)
        for clock, samples in ops.passes(len(layers(1))).items():
            # The first pass compiled.
            rows.append(self.row("convolution", clock, samples[1:], device, None, "excluded"))
        return rows

    def resident(self, algorithm, repeats):
        """Time a network that stays on the GPU, and its 18 convolutions, under each clock."""
        device = devices()[0]
        network, ops = unet(), ResidentOps(algorithm, device)
        check = checked(network.forward(images(1), ops), expected(1), *network.terms())
        x = ops.to_device(images(1))
        convolutions = Convolutions([problem for _, problem in layers(1)], algorithm, device)
        rows = []
        for clock in CLOCKS:
            for what, run in (
                ("network", lambda: network.apply(x, ops)),
                ("convolution", convolutions.run),
            ):
                samples = sample(run, clock, device, 5 * repeats)
                passed = check if what == "network" else None
                rows.append(self.row(what, clock, samples, device, passed, "excluded"))
        return rows

    def two_resident(self, repeats):
        """Time one image on two GPUs: a network cannot share it, a convolution's rows can."""
        pair = devices()[:2]
        network, x = unet(), images(1)
        forward = ChunkedForward(network, pair, 1, algorithm=TILED)
        check = checked(forward.run(x), expected(1), *network.terms())
        samples = sample(lambda: forward.run(x), "synchronised", pair[0], 5 * repeats)
        rows = [self.row("network", "synchronised", samples, pair[0], check, "included")]
        halves = [
            Convolutions([_rows_of(p, 2, part) for _, p in layers(1)], TILED, device)
            for part, device in enumerate(pair)
        ]

        def run():
            for half in halves:
                half.run()

        for clock in ("host", "synchronised"):
            samples = sample(run, clock, pair, 5 * repeats)
            rows.append(self.row("convolution", clock, samples, pair[0], None, "excluded"))
        return rows


def _rows_of(problem, parts, part):
    """Return the problem of one part of the output's rows: its input brings the halo along."""
    rows = split(problem.p, parts)[part]
    h = height_with_halo(rows.stop - rows.start, problem.r, problem.stride[0])
    return replace(problem, h=h, padding=(0, problem.padding[1]))


class _TimedOffload(OffloadOps):
    """Offloading, with what each launch alone takes by the host's clock and by events."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._host, self._events = [], []

    def launch(self, problem, x, w, bias, y):
        cuda = array_module(self.device).cuda
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        start = time.perf_counter()
        super().launch(problem, x, w, bias, y)
        self._host.append(time.perf_counter() - start)
        end.record()
        self._events.append((begin, end))

    def passes(self, calls):
        """Return the seconds of each forward pass of `calls` convolutions, by clock."""
        elapsed = array_module(self.device).cuda.get_elapsed_time
        event = [elapsed(begin, end) * 1e-3 for begin, end in self._events]
        return {
            clock: np.reshape(seconds, (-1, calls)).sum(axis=1).tolist()
            for clock, seconds in (("host", self._host), ("event", event))
        }


SUITE = Suite(
    "environments",
    "Fig. 4: run time per environment",
    cases,
    options={"repeats": 10, "plain_repeats": 3},
    quick={"repeats": 5, "plain_repeats": 1},
)
