# SPDX-License-Identifier: MIT
"""What a suite is: a title, what it needs, and cases that each give results of a record."""

from collections.abc import Callable
from dataclasses import dataclass, field

from convstudy import compile, tolerance
from convstudy.device import devices
from convstudy.records import sources_sha256


@dataclass(frozen=True)
class Case:
    """One thing to measure, finished or lost as a whole.

    Attributes
    ----------
    name : str
        Unique in its suite; its result's name too, or what its results' names begin with.
    run : callable
        Returns a list of results, made by `result`.
    skip : str or None
        Why this machine cannot measure it, in a sentence that says how one that can does.
    labels : dict
        What a skipped or failed case is called by; results carry their own.
    """

    name: str
    run: Callable
    labels: dict = field(default_factory=dict)
    skip: str | None = None


@dataclass(frozen=True)
class Suite:
    """A set of cases that one record holds.

    Attributes
    ----------
    name, title : str
    cases : callable
        ``cases(options) -> iterable of Case``.
    gpus : int
        How many it needs to be worth running at all.
    options : dict
        The options it takes, with their defaults. One whose default is whole numbers between
        commas takes nothing else.
    least : dict
        The least that an option's numbers may be, where that is neither 1 for whole numbers nor 0
        for others. An option that it names takes numbers, whatever its default.
    quick : dict
        What the options are where a figure is wanted soon.
    launches : callable, optional
        ``launches(options)`` gives what the cases will launch, to be compiled on all processors
        before the first of them.
    """

    name: str
    title: str
    cases: Callable
    gpus: int = 0
    options: dict = field(default_factory=dict)
    least: dict = field(default_factory=dict)
    quick: dict = field(default_factory=dict)
    launches: Callable | None = None

    def why_not(self):
        """Return why this machine cannot run the suite, or None."""
        if len(devices()) >= self.gpus:
            return None
        return f"it needs {self.gpus} GPU(s) and this machine has {len(devices())}"


def numbers(text):
    """Return the integers of an option such as ``1,16``."""
    return [int(part) for part in text.split(",")]


def check_words(options, **known):
    """Raise ValueError where an option such as ``fprop,wgrad`` has a word that is not known."""
    for name, words in known.items():
        for word in options[name].split(","):
            if word.strip() not in words:
                raise ValueError(
                    f"{name}={options[name]!r}: there is no {word.strip()!r}; "
                    f"there are {', '.join(words)}"
                )


def result(
    case,
    labels,
    samples_s=(),
    *,
    clock=None,
    problem=None,
    launch=None,
    kernels=None,
    cache=None,
    transfers=None,
    warmup=0,
    values=None,
    check=None,
    device=None,
):
    """Return one row of a record.

    Parameters
    ----------
    case : str
        Unique in the record.
    labels : dict
        By what tables and figures find it. An ``algorithm`` that is a kernel of ours is kept with
        its source's hash, so that the row is stale once that kernel changes.
    samples_s : sequence of float
        Raw samples, seconds.
    launch : Launch, optional
        Of the kernel that was measured; source hash and resources follow from it.
    kernels : str, optional
        Of all kernels that were, where they are several: `compile.words`.
    check : dict, optional
        Made by `checked`.
    device : Device, optional
        The GPU whose state is kept.
    """
    from convstudy.measure.provenance import gpu_state

    kernel = launch.kernel if launch else labels.get("algorithm")
    kernel = kernel if kernel in compile.kernels() else None
    sha256 = None
    if kernel:
        sha256 = compile.source_sha256(kernel, launch.defines if launch else ())
    elif kernels:
        values = (values or {}) | {"kernels": kernels}
        sha256 = sources_sha256(kernels, compile.source_sha256)
    return {
        "case": case,
        "labels": labels,
        "problem": _problem(problem) if problem else None,
        "kernel": kernel,
        "source_sha256": sha256,
        "launch": _launch(launch) if launch else None,
        "resources": _resources(launch, device) if launch and device and device.is_gpu else None,
        "clock": clock,
        "cache": cache,
        "transfers": transfers,
        "warmup": warmup,
        "samples_s": [float(sample) for sample in samples_s],
        "values": values or {},
        "check": check,
        "gpu_state": gpu_state(device.index) if device and device.is_gpu else None,
        "status": "ok",
        "reason": None,
    }


def not_measured(case, status, reason):
    """Return the row of a case that was skipped, or that failed."""
    return result(case.name, dict(case.labels)) | {"status": status, "reason": reason}


def checked(actual, reference, *terms, precision="fp32"):
    """Compare with a float64 reference, and return the field `check` of a result.

    Parameters
    ----------
    actual, reference : array
    *terms, precision
        As of `tolerance.tolerance`.

    Raises
    ------
    RuntimeError
        Where it does not agree: what is wrong is not timed.
    """
    check = compared(actual, reference, *terms, precision=precision)
    if not check["passed"]:
        raise RuntimeError(
            f"the result is wrong: its relative error is {check['max_relative_error']:.3g}, "
            f"the tolerance {check['tolerance']:.3g}"
        )
    return check


def compared(actual, reference, *terms, precision="fp32"):
    """Return the field `check` as `checked` does, whether it agrees or not."""
    error = tolerance.relative_error(actual, reference)
    limit = tolerance.tolerance("float32", *terms, precision=precision)
    return {
        "reference": "float64",
        "max_relative_error": error,
        "tolerance": limit,
        "passed": error <= limit,
    }


def _problem(problem):
    names = ("n", "c", "h", "w", "k", "r", "s")
    return {name: getattr(problem, name) for name in names} | {
        "stride": list(problem.stride),
        "padding": list(problem.padding),
        "dtype": problem.dtype,
        "layout": problem.layout,
    }


def _launch(launch):
    return {
        "grid": [int(size) for size in launch.grid],
        "block": [int(size) for size in launch.block],
        "shared_bytes": launch.shared_bytes,
        "defines": dict(launch.defines),
    }


def _resources(launch, device):
    # As the driver loaded it: to compile once more, for the assembler's words, took longer than
    # most measurements. No kernel here has local memory but for what does not fit in registers.
    function = launch.main_launch.prepare(device)
    return {
        "registers": function.num_regs,
        "shared_bytes": function.shared_size_bytes + launch.shared_bytes,
        "spill_bytes": function.local_size_bytes,
    }
