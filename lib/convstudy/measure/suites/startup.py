# SPDX-License-Identifier: MIT
"""P8: what a GPU's first convolution waits for besides arithmetic."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from convstudy.device import array_module, devices
from convstudy.measure.clocks import sample
from convstudy.measure.suite import Case, Suite, result
from convstudy.measure.suites.network import layers, no_gpu

# Runs in a process of its own, since a context and a compiled kernel are made once in a process.
_FIRST = """
import json, time
marks = [time.perf_counter()]
def mark():
    marks.append(time.perf_counter())
import cupy
from convstudy.device import devices
from convstudy.measure.suites.network import layers, Convolutions
mark()
cupy.cuda.runtime.free(0)
device = devices()[0]
mark()
convolutions = Convolutions([p for _, p in layers(1)], "conv2d_fprop_1_naive", device)
cupy.cuda.Device(0).synchronize()
mark()
for launch, _ in convolutions.steps:
    launch.prepare(device)
mark()
for _ in range(2):
    convolutions.run()
    cupy.cuda.Device(0).synchronize()
    mark()
print(json.dumps([b - a for a, b in zip(marks, marks[1:])]))
"""
_STEPS = ("import", "context", "arrays", "compile", "first launch", "second launch")


def cases(options):
    """Yield the first use of a GPU by a process, and the transfers of a forward pass."""
    repeats = options["repeats"]
    yield Case("process", lambda: _process(repeats), {"what": "context"}, no_gpu())
    for memory in ("pageable", "pinned"):
        yield Case(
            f"transfers/{memory}",
            lambda memory=memory: _transfers(memory, repeats),
            {"what": "transfers", "memory": memory},
            no_gpu(),
        )


def _process(repeats):
    runs = []
    for _ in range(repeats):
        # An empty cache, so that compilation is what it is the first time.
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-c", _FIRST],
                env=os.environ | {"CUPY_CACHE_DIR": cache},
                capture_output=True,
                text=True,
            )
        if done.returncode:
            raise RuntimeError(f"the process failed: {done.stderr.strip().splitlines()[-1]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return [
        result(f"process/{what}", {"what": what, "memory": ""}, samples, clock="synchronised")
        for what, samples in zip(_STEPS, zip(*runs, strict=True), strict=True)
    ]


def _transfers(memory, repeats):
    """Copy each layer's input and filters there and its output back, and nothing else."""
    device = devices()[0]
    xp = array_module(device)
    rng = np.random.default_rng()
    moves, moved = [], 0
    for _, problem in layers(1):
        for shape, there in (
            (problem.x_shape, True),
            (problem.w_shape, True),
            (problem.y_shape, False),
        ):
            host = _host_array(xp, memory, shape)
            host[...] = rng.standard_normal(shape, dtype=np.float32)
            there_array = xp.empty(shape, np.float32)
            moves.append((there_array, host, there))
            moved += host.nbytes

    def run():
        for array, host, there in moves:
            if there:
                array.set(host)
            else:
                array.get(out=host)

    labels = {"what": "transfers", "memory": memory}
    samples = sample(run, "synchronised", device, 10 * repeats)
    return [
        result(
            f"transfers/{memory}",
            labels,
            samples,
            clock="synchronised",
            transfers="included",
            warmup=3,
            values={"bytes": moved},
            device=device,
        )
    ]


def _host_array(xp, memory, shape):
    if memory == "pageable":
        return np.empty(shape, np.float32)
    size = int(np.prod(shape))
    return np.frombuffer(xp.cuda.alloc_pinned_memory(4 * size), np.float32, size).reshape(shape)


SUITE = Suite(
    "startup",
    "P8: context, compilation, transfers",
    cases,
    gpus=1,
    options={"repeats": 5},
    quick={"repeats": 2},
)
