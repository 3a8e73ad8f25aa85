# SPDX-License-Identifier: MIT
"""Table 1 on a GPU, before and after fusion: layer by layer, and as one program."""

from dataclasses import dataclass

import numpy as np

from convstudy import compile
from convstudy.device import devices
from convstudy.measure.graphs import alternating
from convstudy.measure.suite import Case, Suite, numbers, result
from convstudy.measure.suites.against_pytorch import masks
from convstudy.measure.suites.network import images, no_gpu, pieces, unet, unet_work
from convstudy.nn.cuda import ResidentOps
from convstudy.program.backend import GpuBackend
from convstudy.program.capture import Replay
from convstudy.program.inference import Inference
from convstudy.program.program import Program

# What a launch is for, by how its kernel's name begins. Others serve convolutions, transposed
# ones and linear layers alike: the program knows whose they are.
_FUNCTIONS = {
    "batchnorm_": "batch norm",
    "relu_": "ReLU",
    "maxpool_": "pooling",
    "upsample_": "up-convolution",
    "head_": "head",
    "loss_": "loss",
    "gradient_": "optimiser",
    "sgd_": "optimiser",
    "rmsprop_": "optimiser",
    "adamw_": "optimiser",
    "images_": "images",
    "add_": "residual sum",
    "avgpool_": "pooling",
}


def cases(options):
    """Yield a case for each way of executing the network, and each batch."""
    for n in numbers(options["n"]):
        before = {"execution": "resident", "what": "inference", "precision": "fp32", "n": n}
        yield _case(
            before,
            lambda name, labels: pieces(
                name, labels, ResidentOps(), unet_work(labels["n"]), options["repeats"]
            ),
        )
        for what in ("inference", "training"):
            for precision in ("fp32", "tf32", "bf16"):
                after = {"execution": "program", "what": what, "precision": precision, "n": n}
                yield _case(
                    after, lambda name, labels: _functions(name, labels, options["repeats"])
                )


def _case(labels, run):
    name = "/".join(str(value) for value in labels.values())
    return Case(name, lambda: run(name, labels), labels, no_gpu())


def functions(program):
    """Return what each step of a program is for: a row of Table 1, or what training adds.

    Parameters
    ----------
    program : Program

    Returns
    -------
    list of str
    """
    return [
        next((each for start, each in _FUNCTIONS.items() if launch.kernel.startswith(start)), own)
        for (launch, _), own in zip(program.steps, program.functions, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Part:
    """Some steps of a program: what they compute is meaningless, how long they take is not."""

    program: Program
    chosen: frozenset

    @property
    def device(self):
        return self.program.device

    def prepare(self):
        self.program.prepare()

    def allocate_once(self):
        self.program.allocate_once()

    def run(self, checked=True, reached=None):
        self.program.run(checked, reached, self.chosen)


def _functions(name, labels, repeats):
    device, n = devices()[0], labels["n"]
    if labels["what"] == "inference":
        ours = Inference(unet(), images(n).shape, labels["precision"], device)
        ours.load(images(n))
    else:
        ours = GpuBackend(unet(), images(n).shape, labels["precision"], device=device)
        ours.load(images(n), masks(n), 0.0)
    return timed(ours, name, labels, device, repeats)


def timed(ours, name, labels, device, repeats):
    """Time a program, and the launches of each function alone; return a row for each.

    Parameters
    ----------
    ours : Inference or GpuBackend
        With a batch.
    name : str
        What the rows' names begin with.
    labels : dict
        Of every row; "function" is added.
    device : Device
    repeats : int
    """
    ours.run()
    of = np.array(functions(ours.program))
    # The last function first, right behind the whole network: an optimiser would skip a step of
    # what is left of gradients once other parts have used their memory, and be done too soon.
    parts = {
        each: _Part(ours.program, frozenset(np.flatnonzero(of == each)))
        for each in reversed(dict.fromkeys(of.tolist()))
    }
    replays = {each: Replay(part).run for each, part in parts.items()} | {"network": ours.run}
    samples = alternating(replays, 1, device, repeats)
    launches = {
        each: [ours.program.steps[number][0] for number in part.chosen]
        for each, part in parts.items()
    } | {"network": ours.program.launches}
    return [
        result(
            f"{name}/{function}",
            labels | {"function": function},
            seconds,
            clock="event",
            cache="warm",
            transfers="excluded",
            warmup=2,
            kernels=compile.words(launches[function]),
            values={"launches": len(parts[function].chosen) if function in parts else len(of)},
            device=device,
        )
        for function, seconds in samples.items()
    ]


SUITE = Suite(
    "fusion",
    "Table 1 on a GPU, before and after fusion",
    cases,
    gpus=1,
    options={"n": "1,16", "repeats": 10},
    quick={"n": "1", "repeats": 5},
)
