# SPDX-License-Identifier: MIT
"""Every kernel under NVIDIA's compute-sanitizer: memory, races, what was never written, barriers.

Each kernel of each pass and precision computes two or three small, odd problems, and each of the
network's functions one; all are compared with float64 too. They run in a process of its own for
each tool, behind one without any, which compiles what CuPy's cache does not have.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convstudy import compile, device, tolerance
from convstudy.conv import reference
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.device import array_module
from convstudy.models.unet import UNet
from convstudy.nn.cuda import KERNELS, ResidentOps
from convstudy.nn.gradients import batch_norm_train
from convstudy.nn.reference import ReferenceOps
from convstudy.problem import ConvProblem
from convstudy.program.backend import GpuBackend
from convstudy.program.training import Step
from convstudy.train.losses import cross_entropy_dice

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_PROGRAM = "compute-sanitizer"
# Where NVIDIA's installers put it, beside what is on the PATH.
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
_FAILED, _MOST_S = 86, 120

# Images that follow each other, tiles that are not full, sums that are split, strides, vectors of
# one and of several numbers; and for kernels that take lines of channels, the same in lines.
PROBLEMS = (
    ConvProblem(2, 3, 9, 21, 5, 3, 3, padding=(1, 1)),
    ConvProblem(1, 160, 4, 5, 72, 3, 3, padding=(1, 1)),
    ConvProblem(1, 4, 9, 22, 68, 5, 3, (2, 2), (2, 1)),
    ConvProblem(2, 64, 9, 13, 64, 3, 3, padding=(1, 1)),
    ConvProblem(1, 512, 5, 7, 128, 3, 3, padding=(1, 1)),
)
# Training steps of a small network: precision, whether it interpolates, and the optimiser.
_STEPS = (("fp32", False, "sgd"), ("tf32", True, "rmsprop"), ("bf16", False, "adamw"))
_IMAGES = (2, 3, 19, 22)
# What no such step launches: VGG's and ResNet's, pictures of bytes and masks, which
# `pytest -m gpu` runs.
LEFT_OUT = (
    *("avgpool_fprop_1_image", "avgpool_dgrad_1_spread", "maxpool_fprop_2_winners"),
    *("maxpool_dgrad_1_winners", "relu_dgrad_1_mask", "images_layout_2_bytes"),
    *("mask_fprop_1_argmax", "concat_fprop_2_border"),
)
# How many of them each kernel computes in each precision.
_EACH = 3
_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """One call of one kernel, or of several in a row.

    Attributes
    ----------
    name : str
    launches : tuple of Launch
        What it launches, to be compiled ahead; empty where that is not worth it.
    run : callable
        Takes no argument, and raises AssertionError where the result is wrong.
    """

    name: str
    launches: tuple
    run: Callable


def cases(where):
    """Yield all cases on a device, in the ladder's order and then the network's."""
    for row in ALGORITHMS.values():
        if row.plan:
            yield from _of_kernel(row, where)
    for method in KERNELS.values():
        yield Case(method, (), lambda method=method: _check_function(method, where))
    for precision, bilinear, rule in _STEPS:
        yield _of_step(precision, bilinear, rule, where)


def _of_kernel(row, where):
    known = set()
    for precision in row.precisions:
        taken = 0
        for problem in PROBLEMS:
            kind = {"dtype": _DTYPES[precision], "precision": precision}
            problem = replace(problem, layout=row.layouts[0], **kind)
            if taken == _EACH or not row.supports(problem, where)[0]:
                continue
            launch = plan(row.id, problem, where)
            taken += 1
            if launch not in known:  # a kernel may do for TF32 what it does for fp32
                known.add(launch)
                sizes = "x".join(str(getattr(problem, letter)) for letter in "nchwkrs")
                yield Case(
                    f"{row.id} {precision} {sizes}",
                    launch.all_launches,
                    lambda launch=launch, problem=problem: _check(row, problem, launch, where),
                )


def _of_step(precision, bilinear, rule, where):
    """Return the case of a small network's training step, by a program."""
    network = UNet.initialised(0, bilinear=bilinear, width=8)
    rng = np.random.default_rng(0)
    images, masks = rng.random(_IMAGES, np.float32), rng.integers(0, 2, (2, 19, 22))

    def run():
        backend = GpuBackend(network, _IMAGES, precision, rule, device=where)
        expected, _, _ = cross_entropy_dice(network.forward(images, _Batches()), masks)
        loss, _, norm = backend.step(images, masks, 1e-3)
        terms, nearest = network.terms(), "fp32" if precision == "fp32" else "bf16"
        limit = tolerance.tolerance(np.float32, *terms, precision=nearest)
        if not (abs(loss - expected) <= limit * expected and np.isfinite(norm)):
            raise AssertionError(f"the loss is {loss:.6g}, not {expected:.6g}")

    planned = Step(network, _IMAGES, precision, rule, {}, None, where).program
    launches = tuple(launch for launch, _ in planned.steps)
    return Case(f"step {precision} {rule}", launches, run)


class _Batches(ReferenceOps):
    """In float64, with the statistics of the batch."""

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        return batch_norm_train(x, weight, bias, eps)[0]


def _check(row, problem, launch, where):
    """Run into an array that is not written yet, so that initcheck sees what a kernel leaves."""
    rng = np.random.default_rng(problem.terms)
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "dy": problem.y_shape}
    host = {
        name: rng.standard_normal(shape, dtype=np.float32).astype(problem.dtype)
        for name, shape in shapes.items()
    }
    bias = rng.standard_normal(problem.k, dtype=np.float32)
    xp = array_module(where)
    inputs = {"fprop": "xw", "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[row.which]
    given = [xp.asarray(host[name]) for name in inputs]
    if row.which == "fprop":
        given.append(xp.asarray(bias))
    result = {"fprop": "dy", "dgrad": "x", "wgrad": "w"}[row.which]
    out = device.empty(shapes[result], where, problem.dtype)
    launch.run(where, (*given, out))
    truth, terms = _truth(row.which, problem, *host.values(), bias)
    actual = out if xp is np else out.get()
    tolerance.assert_close(actual, truth, terms, dtype=np.float32, precision=problem.precision)


def _truth(which, problem, x, w, dy, bias):
    """Return the float64 result as the arrays lie, and how many terms one number of it has."""
    p, last = problem, problem.layout == "NHWC"
    x, w, dy = (np.moveaxis(a, 3, 1) if last else a for a in (x, w, dy))
    x, w, dy, bias = (a.astype(float) for a in (x, w, dy, bias))
    if which == "fprop":
        result, terms = reference.conv2d(x, w, bias, p.stride, p.padding), p.terms + 1
    elif which == "dgrad":
        result = reference.conv2d_dgrad(dy, w, (p.h, p.w), p.stride, p.padding)
        terms = p.k * p.r * p.s
    else:
        result = reference.conv2d_wgrad(x, dy, (p.r, p.s), p.stride, p.padding)
        terms = p.n * p.p * p.q
    return np.moveaxis(result, 1, 3) if last else result, terms


# Arguments of each function of a network: an odd plane, more channels than a tile has.
_X = (2, 17, 9, 13)
_ARGUMENTS = {
    "batch_norm": (_X, (17,), (17,), (17,), (17,)),
    "relu": (_X,),
    "max_pool2d": (_X,),
    "conv_transpose2d": (_X, (17, 19, 2, 2), (19,)),
    "upsample_bilinear": (_X,),
    "pad_concat": (_X, (2, 3, 8, 12)),
    "average_pool2d": (_X,),
    "add": (_X, _X),
}


def _check_function(method, where):
    rng = np.random.default_rng(len(method))
    # Positive: one of them is a variance.
    arrays = [rng.random(shape, dtype=np.float32) + 0.5 for shape in _ARGUMENTS[method]]
    truth = getattr(ReferenceOps(), method)(*(array.astype(float) for array in arrays))
    ops = ResidentOps(device=where)
    actual = ops.to_host(getattr(ops, method)(*map(ops.to_device, arrays)))
    tolerance.assert_close(actual, truth, 4 * _X[1], dtype=np.float32)


def run_bare():
    """Run all cases on the first GPU, in this process; return 0, or 1 where one was wrong."""
    (gpu,) = device.require_gpu("sanitize")
    # In a pool, what lies behind an array is another's memory and no fault to read.
    device.allocate_plainly()
    wrong, count = 0, 0
    for case in cases(gpu):
        print(case.name, flush=True)
        count += 1
        try:
            case.run()
        except AssertionError as error:
            wrong += 1
            print(f"{case.name}: {error}", flush=True)
    print(f"{count} cases, {wrong} of them wrong", flush=True)
    return int(wrong > 0)


def program():
    """Return the path of compute-sanitizer.

    Raises
    ------
    RuntimeError
        Where there is none; the message says where it comes from.
    """
    found = shutil.which(_PROGRAM, path=os.pathsep.join((os.environ.get("PATH", ""), *_FOLDERS)))
    if found is None:
        raise RuntimeError(
            f"sanitize: {_PROGRAM} is not on the PATH nor in {_FOLDERS[0]}; it comes with NVIDIA's "
            f"CUDA toolkit, of a version as the driver's or older"
        )
    return found


def check(tools=TOOLS, say=print):
    """Run all cases under each of `tools`, and say what they found.

    Parameters
    ----------
    tools : sequence of str
        Of `TOOLS`.
    say : callable
        Takes one line at a time.

    Returns
    -------
    int
        0, or 1 where a tool found something or a result was wrong.

    Raises
    ------
    ValueError
        Where there is no such tool.
    RuntimeError
        Where there is no GPU, or no compute-sanitizer.
    """
    for tool in tools:
        if tool not in TOOLS:
            raise ValueError(f"sanitize: no tool {tool!r}; choose of {', '.join(TOOLS)}")
    (gpu,) = device.require_gpu("sanitize")
    sanitizer = program()
    compile.compile_ahead(launch for case in cases(gpu) for launch in case.launches)
    bare = [sys.executable, "-m", "convstudy", "sanitize", "--bare"]
    status = _run("no tool", bare, say)
    if status:
        return status
    for tool in tools:
        # What CuPy asks the driver in vain is no fault of a kernel's.
        options = ["--tool", tool, "--error-exitcode", str(_FAILED), "--print-limit", "20"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        status |= _run(tool, [sanitizer, *options, *bare], say)
    return status


def _run(name, command, say):
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_MOST_S
        )
        output, status = done.stdout, done.returncode
        verdict = "clean" if status == 0 else "FAULTS" if status == _FAILED else f"exit {status}"
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(errors="replace"), 1
        verdict = f"not finished after {_MOST_S} s"
    lines = output.splitlines()
    last = next((line for line in reversed(lines) if " cases, " in line), "no case finished")
    say(f"{name}: {verdict}; {last} ({time.perf_counter() - began:.0f} s)")
    if status:
        for line in lines[-100:]:
            say(f"  {line}")
    return int(status != 0)
