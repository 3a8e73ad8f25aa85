# SPDX-License-Identifier: MIT
"""The whole network, run and trained: ours as one CUDA graph, and PyTorch in each of its ways."""

import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from convstudy import compile, tolerance
from convstudy.device import array_module, devices
from convstudy.images import load_sample
from convstudy.measure import pytorch, pytorch_unet
from convstudy.measure.graphs import alternating
from convstudy.measure.suite import Case, Suite, check_words, checked, compared, numbers, result
from convstudy.measure.suites.network import images, no_gpu, unet
from convstudy.program.backend import GpuBackend
from convstudy.program.inference import Inference
from convstudy.program.lowering import PRECISIONS

_WHATS = ("inference", "training")


def cases(options):
    """Yield a case for each thing done, precision and batch."""
    check_words(options, whats=_WHATS, precisions=PRECISIONS)
    compiled(options)
    for what in _words(options["whats"]):
        for precision in _words(options["precisions"]):
            for n in numbers(options["n"]):
                labels = {"what": what, "precision": precision, "n": n}
                contest = Contest(f"{what}/{precision}/n{n}", labels, options)
                yield Case(contest.name, contest.run, labels, no_gpu() or pytorch.why_not())


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


@functools.cache
def masks(n):
    """Return the masks of ``network.images(n)``, (N, 128, 191) int32."""
    _, found = load_sample()
    return np.ascontiguousarray(found[np.arange(n) % len(found)]).astype(np.int32)


@functools.cache
def _truth(n):
    """Return float64 scores and gradients for ``network.images(n)``."""
    return pytorch_unet.truth(unet(), images(n), masks(n))


@dataclass
class Side:
    """One way to do it: ``run()``, the bytes that it takes at most, and how right it is.

    Ours also says how many bytes were planned, and by which kernels it runs.
    """

    run: Callable
    peak_bytes: int
    check: dict
    predicted_bytes: int = 0
    kernels: str = ""


class Contest:
    """Ours and PyTorch at one batch: same images, same weights, same clock, turn by turn."""

    def __init__(self, name, labels, options):
        self.name, self.labels, self.options = name, labels, options
        self.what, self.precision, self.n = (labels[key] for key in ("what", "precision", "n"))

    # ---- whose contest it is ---------------------------------------------------------------------
    def network(self):
        return unet()

    def images(self):
        return images(self.n)

    def targets(self):
        return masks(self.n)

    def scores(self):
        """Return the network's result in float64."""
        return _truth(self.n)[0]

    def gradients(self):
        """Return the gradients of a training step in float64, by name."""
        return _truth(self.n)[1]

    def runner(self, channels_last):
        """Return PyTorch's side."""
        given = self.network(), self.images(), self.targets(), self.precision, channels_last
        return pytorch_unet.Runner(*given)

    def side_labels(self, way, layout):
        return {"side": way, "layout": layout}

    # ---- how it goes -----------------------------------------------------------------------------
    def run(self):
        """Check each side, then time them in turn; return a row for each."""
        device = devices()[0]
        sides = {"ours/NHWC": getattr(self, f"_our_{self.what}")(device)}
        ways = [w for w in pytorch_unet.WAYS if w != "compile" or self._is_compiled()]
        for way in ways:
            for layout in ("NHWC",) if way == "compile" else ("NCHW", "NHWC"):
                sides[f"pytorch-{way}/{layout}"] = self._pytorch(way, layout)
        replays = {name: side.run for name, side in sides.items()}
        samples = alternating(replays, 1, device, self.options["repeats"])
        return [self._row(name, side, samples[name], device) for name, side in sides.items()]

    def _is_compiled(self):
        """Return whether PyTorch takes part compiled; at first, compile what the suite wants."""
        wanted = compiled(self.options)
        if (self.what, self.precision) not in wanted:
            return False
        jobs = itertools.product(self.networks(), wanted, numbers(self.options["n"]))
        _compile_ahead(self.make_runner, tuple((*own, *which, n) for own, which, n in jobs))
        return True

    def networks(self):
        """Return what tells `make_runner` of each network of the suite, as tuples."""
        return [()]

    @staticmethod
    def make_runner(precision, n):
        """Return PyTorch's side as it is compiled, also in another process."""
        return pytorch_unet.Runner(unet(), images(n), masks(n), precision, True)

    def _our_inference(self, device):
        ours = Inference(self.network(), self.images().shape, self.precision, device)
        ours.load(self.images())
        ours.run()
        check = self._checked_scores(ours.scores(), is_ours=True)
        return self._side(ours, check)

    def _our_training(self, device):
        shape = self.images().shape
        ours = GpuBackend(self.network(), shape, self.precision, device=device)
        ours.load(self.images(), self.targets(), 1e-4)
        ours.run()
        check = self._checked_gradients(ours.gradients(), is_ours=True)
        return self._side(ours, check)

    def _side(self, ours, check):
        planned = ours.program.arena_bytes + ours.program.kept_bytes
        kernels = compile.words(ours.program.launches)
        return Side(ours.run, ours.program.allocated_bytes, check, planned, kernels)

    def _pytorch(self, way, layout):
        def begin():
            runner = self.runner(layout == "NHWC")
            run = getattr(runner, self.what)(way)
            first = run()
            if self.what == "training":
                # A graph has trained before it is captured: its gradients are of other weights.
                first = runner.gradients() if way == "eager" else None
            for _ in range(3):
                run()
            return run, first

        # A graph keeps what it was captured with; the others look for algorithms first, and what
        # that takes is not theirs for long.
        (run, first), peak = pytorch_unet.with_peak(begin, once_more=way == "eager")
        check = None
        if first is not None:
            compare = self._checked_scores if self.what == "inference" else self._checked_gradients
            check = compare(first)
        return Side(run, peak, check)

    def _checked_scores(self, scores, is_ours=False):
        if not isinstance(scores, np.ndarray):
            scores = scores.float().cpu().numpy()
        compare = checked if is_ours else compared
        truth, terms = self.scores(), self.network().terms()
        return compare(scores, truth, *terms, precision=self.precision)

    def gradient_error(self, gradients):
        """Return the length of all gradients' error together, by that of the gradients."""
        truth = self.gradients()
        error = sum(float(np.square(gradients[k] - truth[k]).sum()) for k in truth)
        size = sum(float(np.square(truth[k]).sum()) for k in truth)
        return (error / size) ** 0.5

    def gradient_limit(self):
        """Return how large that may be."""
        terms = self.network().terms()
        return tolerance.gradient_tolerance("float32", *terms, precision=self.precision)

    def _checked_gradients(self, gradients, is_ours=False):
        relative, limit = self.gradient_error(gradients), self.gradient_limit()
        if is_ours and not relative <= limit:
            raise RuntimeError(
                f"the gradients are wrong: together they err by {relative:.3g} of their size, "
                f"the tolerance is {limit:.3g}"
            )
        return {
            "reference": "float64",
            "max_relative_error": relative,
            "tolerance": limit,
            "passed": relative <= limit,
        }

    def _row(self, name, side, samples, device):
        way, layout = name.split("/")
        values = {"peak_bytes": side.peak_bytes}
        if side.predicted_bytes:
            values["predicted_bytes"] = side.predicted_bytes
        return result(
            f"{self.name}/{name}",
            self.labels | self.side_labels(way, layout),
            samples,
            clock="event",
            cache="warm",
            transfers="excluded",
            warmup=3,
            kernels=side.kernels,
            values=values,
            check=side.check,
            device=device,
        )


def compiled(options):
    """Return what is compiled, [(what, precision), ...], of the option ``inference/tf32,...``."""
    wanted = [tuple(word.split("/")) for word in _words(options["compiled"])]
    known = [(what, precision) for what in _WHATS for precision in PRECISIONS]
    unknown = [each for each in wanted if each not in known]
    if unknown:
        raise ValueError(
            f"compiled: no {'/'.join(unknown[0])!r}; there are "
            f"{', '.join('/'.join(each) for each in known)}"
        )
    return [each for each in wanted if each[0] in _words(options["whats"])]


@functools.cache
def _compile_ahead(make_runner, jobs):
    """Let torch.compile fill its cache for all cases at once, a process each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, os.cpu_count() // 2), mp_context=context) as pool:
        list(pool.map(functools.partial(_compile, make_runner), jobs))


def _compile(make_runner, job):
    *own, what, precision, n = job
    run = getattr(make_runner(*own, precision, n), what)("compile")
    for _ in range(2):
        run()
    array_module(devices()[0]).cuda.Device().synchronize()


SUITE = Suite(
    "unet",
    "U-Net run and trained, ours and PyTorch",
    cases,
    gpus=1,
    options={
        "n": "1,16,64",
        "whats": ",".join(_WHATS),
        "precisions": "fp32,tf32,bf16",
        "compiled": "inference/tf32,inference/bf16,training/tf32,training/bf16",
        "repeats": 20,
    },
    quick={"n": "1", "repeats": 5, "compiled": ""},
)
