# SPDX-License-Identifier: MIT
"""P4 and P12: VGG-16 and ResNet as U-Net is measured: by function, and in each environment."""

import functools

import numpy as np

from convstudy.conv.cpu import threads
from convstudy.device import devices
from convstudy.measure import pytorch
from convstudy.measure.clocks import once, sample
from convstudy.measure.graphs import alternating, capture
from convstudy.measure.pytorch_ops import WAYS, TorchOps
from convstudy.measure.runner import SEED
from convstudy.measure.suite import Case, Suite, checked, result
from convstudy.measure.suites.network import (
    BLOCKED,
    KERNELS,
    TILED,
    Work,
    no_gpu,
    numbers,
    pieces,
)
from convstudy.models.resnet import ResNet
from convstudy.models.vgg import VGG16
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel.chunks import ChunkedForward
from convstudy.parallel.offload import DataParallelOps

NETWORKS = {
    "vgg16": lambda: VGG16.initialised(SEED),
    "vgg16_bn": lambda: VGG16.initialised(SEED, batch_norm=True),
    "resnet18": lambda: ResNet.initialised(SEED, 18),
    "resnet50": lambda: ResNet.initialised(SEED, 50),
}
# As the suite "environments" calls them, by execution, algorithm and number of GPUs.
_NAIVE = "conv2d_fprop_1_naive"
_ENVIRONMENTS = {
    ("cpu-plain", "", 0): "CPU, plain loops",
    ("cpu-blas", "", 0): "CPU, BLAS",
    ("offload", _NAIVE, 1): "GPU, not optimised",
    ("offload", TILED, 1): "1 GPU, tiled",
    ("offload", TILED, 2): "2 GPUs, tiled + data parallel",
    ("offload", BLOCKED, 1): "1 GPU, register-blocked",
    ("resident", _NAIVE, 1): "GPU, not optimised",
    ("resident", TILED, 1): "1 GPU, tiled",
    ("resident", TILED, 2): "2 GPUs, tiled + data parallel",
    ("resident", BLOCKED, 1): "1 GPU, register-blocked",
}
_REST = {"cpu-plain": PlainOps, "cpu-blas": BlasOps}
# bf16 all through rounds every layer's result, and not only its operands.
_ROOM = {"fp32": 1, "tf32": 1, "bf16": 2}
# Images that differ; a batch has them over and over.
_IMAGES = 2


@functools.lru_cache(1)
def network(name):
    """Return the network of that name: random weights, statistics that do something."""
    made = NETWORKS[name]()
    made.randomise_statistics(SEED)
    return made


def images(n, size):
    """Return `n` random images, (N, 3, size, size) float32; few of them differ."""
    rng = np.random.default_rng(SEED)
    few = rng.standard_normal((_IMAGES, 3, size, size), dtype=np.float32)
    return np.ascontiguousarray(few[np.arange(n) % _IMAGES])


@functools.lru_cache(1)
def _truth(name, count, size):
    return network(name).forward(images(count, size), ReferenceOps())


def work(name, n, size):
    """Return the `Work` of a network that takes `n` images of `size` x `size`."""

    def expected():
        # A result does not depend on what else is in the batch.
        return _truth(name, min(n, _IMAGES), size)[np.arange(n) % _IMAGES]

    return Work(network(name), images(n, size), max(32, network(name).least_size), expected)


def cases(options):
    """Yield a case for each network, batch and way of executing it."""
    names = [word.strip() for word in options["network"].split(",")]
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise ValueError(
            f"suite networks: no network {unknown[0]!r}; there are {', '.join(NETWORKS)}"
        )
    for name in names:
        for n in numbers(options["n"]):
            yield from _of(_Rows(name, n, options))


def _of(rows):
    plain, repeats = rows.options["plain_repeats"], rows.options["repeats"]
    # What is slow is slow for few images, too.
    few = rows.n in numbers(rows.options["n_cpu"])
    if few:
        yield rows.by_function("cpu-plain", PlainOps, plain, threads=1)
        yield rows.by_function("cpu-blas", BlasOps, repeats, threads=threads())
        for layout in ("NCHW", "NHWC"):
            yield rows.pytorch_cpu(layout)
        for rest, make in _REST.items():
            count = plain if rest == "cpu-plain" else repeats
            for algorithm in (_NAIVE, TILED, BLOCKED):
                yield rows.by_function(
                    "offload",
                    lambda a=algorithm, m=make: OffloadOps(a, devices()[0], m()),
                    *(count, algorithm, rest, 1),
                )
            yield rows.by_function(
                "offload",
                lambda m=make: DataParallelOps(devices()[:2], 1, algorithm=TILED, cpu=m()),
                *(count, TILED, rest, 2),
            )
    for algorithm in KERNELS if few else (TILED, BLOCKED):
        yield rows.by_function(
            "resident",
            lambda a=algorithm: ResidentOps(a, devices()[0]),
            *(repeats, algorithm, "", 1),
        )
    if rows.n > 1:
        yield rows.two_resident()
    for precision in rows.options["precisions"].split(","):
        yield rows.contest(precision.strip())


class _Rows:
    """The cases of one network and batch."""

    def __init__(self, name, n, options):
        self.name, self.n, self.options = name, n, options
        self.size = options["size"]

    def labels(self, execution, algorithm="", rest="", gpus=0, precision="fp32", **more):
        return {
            "network": self.name,
            "what": "inference",
            "precision": precision,
            "n": self.n,
            "size": self.size,
            "execution": execution,
            "algorithm": algorithm,
            "rest": rest,
            "gpus": gpus,
            "environment": _ENVIRONMENTS.get((execution, algorithm, gpus), ""),
            **more,
        }

    def case(self, labels, run, skip, *parts):
        name = "/".join(str(part) for part in (self.name, f"n{self.n}", *parts) if part)
        return Case(name, lambda: run(name, labels), labels, skip)

    def work(self):
        return work(self.name, self.n, self.size)

    def by_function(self, execution, make, repeats, algorithm="", rest="", gpus=0, threads=0):
        """Return the case that times every function, and convolution among them."""

        def run(name, labels):
            return pieces(name, labels, make(), self.work(), repeats)

        labels = self.labels(execution, algorithm, rest, gpus, threads=threads)
        parts = execution, algorithm, rest, f"{gpus} GPUs" if gpus > 1 else ""
        return self.case(labels, run, no_gpu(gpus), *parts)

    def pytorch_cpu(self, layout):
        """Return the case that times PyTorch on as many threads as BLAS has, by function too."""

        def run(name, labels):
            ops = TorchOps(channels_last=layout == "NHWC", threads=labels["threads"])
            return pieces(name, labels, ops, self.work(), self.options["repeats"])

        labels = self.labels("pytorch-cpu", threads=threads(), layout=layout)
        return self.case(labels, run, pytorch.why_not(), "pytorch-cpu", layout)

    def two_resident(self):
        """Return the case of a batch that two GPUs share, each with the whole network."""

        def run(name, labels):
            pair, mine = devices()[:2], self.work()
            forward = ChunkedForward(mine.network, pair, 2, algorithm=TILED)
            check = mine.checked(forward.run(mine.images))
            repeats = self.options["repeats"]
            samples = sample(lambda: forward.run(mine.images), "synchronised", pair, repeats, 1)
            return [
                result(
                    f"{name}/network",
                    labels | {"function": "network"},
                    samples,
                    clock="synchronised",
                    cache="warm",
                    transfers="included",
                    warmup=2,
                    check=check,
                    device=pair[0],
                )
            ]

        labels = self.labels("resident", TILED, gpus=2)
        return self.case(labels, run, no_gpu(2), "resident", TILED, "2 GPUs")

    def contest(self, precision):
        """Return the case in which ours and PyTorch take turns on a GPU: same images, same clock.

        Each side is a CUDA graph, and PyTorch is run call by call as well.
        """

        def run(name, labels):
            device, mine = devices()[0], self.work()
            sides = _ours(mine, device, precision)
            for way in WAYS:
                for layout in ("NCHW", "NHWC"):
                    ops = TorchOps("cuda", precision, layout == "NHWC")
                    call = ops.inference(mine.network, mine.images, way)
                    check = _checked(ops.to_host(call()), mine, precision)
                    sides[f"pytorch-{way}", "", layout] = call, check
            replays = {key: call for key, (call, _) in sides.items()}
            repeats = self.options["repeats"]
            samples = alternating(once("event", device), replays, 1, repeats)
            return [
                result(
                    "/".join(part for part in (name, *key) if part),
                    labels
                    | dict(zip(("execution", "algorithm", "layout"), key, strict=True))
                    | {"function": "network"},
                    samples[key],
                    clock="event",
                    cache="warm",
                    transfers="excluded",
                    warmup=3,
                    check=check,
                    device=device,
                )
                for key, (_, check) in sides.items()
            ]

        labels = self.labels("contest", gpus=1, precision=precision)
        return self.case(labels, run, no_gpu() or pytorch.why_not(), "contest", precision)


def _ours(mine, device, precision):
    """Return our sides of a contest: (call, check) by execution, algorithm and layout."""
    if precision != "fp32":
        return {}
    ops = ResidentOps(BLOCKED, device)
    x = ops.to_device(mine.images)

    def call():
        return mine.network.apply(x, ops)

    check = _checked(ops.to_host(call()), mine, precision)
    return {("resident", BLOCKED, "NCHW"): (capture(device, [call]), check)}


def _checked(y, mine, precision):
    terms = mine.network.terms()
    return checked(y, mine.expected(), *terms, precision=precision, room=_ROOM[precision])


SUITE = Suite(
    "networks",
    "P4 and P12: VGG-16 and ResNet by function, by environment, and against PyTorch",
    cases,
    options={
        "network": "vgg16,resnet18,resnet50",
        "n": "1,16,64",
        "n_cpu": "1",
        "size": 224,
        "precisions": "fp32,tf32,bf16",
        "repeats": 10,
        "plain_repeats": 1,
    },
    quick={"n": "1", "repeats": 3},
)
