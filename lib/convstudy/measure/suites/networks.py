# SPDX-License-Identifier: MIT
"""P4 and P12: VGG-16 and ResNet as U-Net is measured: by function, and in each environment."""

import functools
from dataclasses import replace

import numpy as np

from convstudy.conv.cpu import threads
from convstudy.device import devices
from convstudy.measure import pytorch, pytorch_classifiers
from convstudy.measure.clocks import sample
from convstudy.measure.pytorch_ops import TorchOps
from convstudy.measure.runner import SEED
from convstudy.measure.suite import Case, Suite, check_words, numbers, result
from convstudy.measure.suites import fusion
from convstudy.measure.suites.against_pytorch import Contest
from convstudy.measure.suites.network import (
    BLOCKED,
    KERNELS,
    TILED,
    Work,
    no_gpu,
    pieces,
)
from convstudy.measure.suites.passes import release, words
from convstudy.models.resnet import ResNet
from convstudy.models.vgg import VGG16
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel.chunks import ChunkedForward
from convstudy.parallel.offload import DataParallelOps
from convstudy.program.inference import Inference
from convstudy.program.lowering import PRECISIONS
from convstudy.program.training import Step

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
# What is measured, to be chosen from: the CPU, the paper's way, layer by layer on a GPU, and ours
# against PyTorch.
_PARTS = ("cpu", "offload", "resident", "contest")
_WHATS = ("inference", "training")
# So many times the error of PyTorch's gradients, ours may have.
_TWIN = 2.0
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
    known = {"network": NETWORKS, "parts": _PARTS, "whats": _WHATS, "precisions": PRECISIONS}
    check_words(options, **known)
    every = [
        _Rows(name, n, options) for name in words(options["network"]) for n in numbers(options["n"])
    ]
    for rows in every:
        yield from _of(rows)
    if "contest" in words(options["parts"]):
        for what in words(options["whats"]):
            for rows in every:
                for precision in words(options["precisions"]):
                    yield rows.contest(what, precision)


def launches(options):
    """Return what our sides of the contests launch: hundreds of kernels, to be compiled at once."""
    if "contest" not in words(options["parts"]):
        return []
    device, found = devices()[0], []
    for name in words(options["network"]):
        for n in numbers(options["n"]):
            shape = n, 3, options["size"], options["size"]
            for precision in words(options["precisions"]):
                given = network(name), shape, precision
                for what in words(options["whats"]):
                    found += _program(what, given, device).launches
    return found


def _program(what, given, device):
    if what == "inference":
        return Inference(*given, device, loaded=False).program
    return Step(*given, "adamw", {}, None, device).program


def _of(rows):
    options = rows.options
    parts = words(options["parts"])
    # What is slow is slow for few images, too.
    few = rows.n in numbers(options["n_cpu"])
    if few and "cpu" in parts:
        yield from _on_cpu(rows)
    if few and "offload" in parts:
        yield from _offload(rows)
    if "resident" in parts:
        for algorithm in KERNELS if few else (TILED, BLOCKED):
            yield rows.by_function(
                "resident",
                lambda a=algorithm: ResidentOps(a, devices()[0]),
                *(options["repeats"], algorithm, "", 1),
            )
        if rows.n > 1:
            yield rows.two_resident()


def _on_cpu(rows):
    plain, repeats = rows.options["plain_repeats"], rows.options["repeats"]
    yield rows.by_function("cpu-plain", PlainOps, plain, threads=1)
    yield rows.by_function("cpu-blas", BlasOps, repeats, threads=threads())
    for layout in ("NCHW", "NHWC"):
        yield rows.pytorch_cpu(layout)


def _offload(rows):
    plain, repeats = rows.options["plain_repeats"], rows.options["repeats"]
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

    def contest(self, what, precision):
        """Return the case in which ours and PyTorch take turns on a GPU: same images, same clock.

        Ours is one CUDA graph; its functions are timed apart, too.
        """

        def run(name, labels):
            return _Contest(name, labels, self.options, self.work()).run()

        labels = self.labels("contest", gpus=1, precision=precision) | {"what": what}
        skip = no_gpu() or pytorch.why_not()
        return self.case(labels, run, skip, "contest", what, precision)


class _Contest(Contest):
    """Ours and PyTorch on one classifier."""

    def __init__(self, name, labels, options, mine):
        super().__init__(name, labels, options)
        self._mine, self._limit = mine, None

    def network(self):
        return self._mine.network

    def images(self):
        return self._mine.images

    def targets(self):
        return classes(self.n, self.network().num_classes)

    def scores(self):
        return self._mine.expected()

    def gradients(self):
        return _gradients(self.labels["network"], self.n, self.labels["size"])

    def runner(self, channels_last):
        size = self.labels["size"]
        return self.make_runner(self.labels["network"], size, self.precision, self.n, channels_last)

    def side_labels(self, way, layout):
        execution = "program" if way == "ours" else way
        return {"execution": execution, "layout": layout, "function": "network"}

    def gradient_limit(self):
        """Return what rounding explains, and PyTorch's gradients in this precision show.

        Norms over few pixels, one behind the other, make more of a rounding than estimates know:
        ResNet-50's 53 make of fp32's 2% of the gradient, and of bf16's all of it.
        """
        if self._limit is None:
            theirs = self.runner(channels_last=True)
            theirs.training("eager")()
            shown = self.gradient_error(theirs.gradients())
            self._limit = max(super().gradient_limit(), _TWIN * shown)
        return self._limit

    def run(self):
        device = devices()[0]
        try:
            rows = super().run()
            labels = self.labels | self.side_labels("ours", "NHWC")
            repeats = self.options["repeats"]
            parts = fusion.timed(self._ours, f"{self.name}/ours", labels, device, repeats)
            return [*rows, *(row for row in parts if row["labels"]["function"] != "network")]
        finally:
            self._ours = None
            pytorch.release()
            release(device)

    def networks(self):
        return [(name, self.labels["size"]) for name in words(self.options["network"])]

    @staticmethod
    def make_runner(name, size, precision, n, channels_last=True):
        mine = network(name)
        given = mine, images(n, size), classes(n, mine.num_classes), precision, channels_last
        return pytorch_classifiers.Runner(*given)

    def _side(self, ours, check):
        self._ours = ours
        return super()._side(ours, check)


def classes(n, count):
    """Return a class of `count` for each of `n` images, (N,) int32."""
    return np.random.default_rng(SEED).integers(0, count, n, np.int32)


@functools.lru_cache(1)
def _gradients(name, n, size):
    mine = work(name, n, size)
    targets = classes(n, mine.network.num_classes)
    return pytorch_classifiers.truth(mine.network, mine.images, targets)[1]


SUITE = Suite(
    "networks",
    "P4 and P12: VGG-16 and ResNet by function, by environment, and against PyTorch",
    cases,
    options={
        "network": "vgg16,resnet18,resnet50",
        "n": "1,16,64",
        "n_cpu": "1",
        "size": 224,
        "parts": ",".join(_PARTS),
        "whats": ",".join(_WHATS),
        "precisions": "fp32,tf32,bf16",
        "compiled": "",
        "repeats": 10,
        "plain_repeats": 1,
    },
    # VGG-16 has five times the work of ResNet-50: half a minute of plain loops.
    quick={"network": "resnet18,resnet50", "n": "1", "repeats": 3},
    launches=launches,
)

# Against PyTorch alone, compiled too, in a record of its own.
CONTESTS = replace(
    SUITE,
    name="networks-contest",
    title="VGG-16 and ResNet against PyTorch, compiled too",
    gpus=1,
    options=SUITE.options | {"parts": "contest", "compiled": "inference/tf32,inference/bf16"},
    quick={"network": "resnet50", "n": "16", "precisions": "bf16", "compiled": "", "repeats": 3},
)
