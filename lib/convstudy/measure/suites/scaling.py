# SPDX-License-Identifier: MIT
"""One GPU to many: training and inference by ranks, the links between them, and one step's times.

Without a GPU the same code runs on CPU ranks, on a narrower network: then "gpus" counts ranks.
"""

import itertools
import os

from convstudy.device import CPU, devices
from convstudy.measure import pytorch
from convstudy.measure.ranked import Job, run
from convstudy.measure.suite import Case, Suite, result
from convstudy.measure.suites.network import HEIGHT, WIDTH, numbers
from convstudy.models.unet import WIDTH as CHANNELS
from convstudy.parallel import launch
from convstudy.parallel.grid import CUT_FROM

_WHATS = ("training", "inference")
# Bytes; GPUs get the larger ones, too.
_SIZES = tuple(4**power for power in range(6, 13))
_LARGER = tuple(4**power for power in range(13, 15))


def cases(options):
    """Yield a case for each thing done, precision, number of ranks and cut."""
    on_gpu = bool(devices())
    counts = _counts(options["gpus"] if on_gpu else options["ranks"])
    precisions = options["precisions"].split(",") if on_gpu else ["fp32"]
    for count in counts:
        for precision in precisions:
            for what in _WHATS:
                yield _case(what, precision, count, options)
                yield _case(what, precision, count, options, is_pytorch=True)
            if on_gpu:
                yield _case("inference from the host", precision, count, options)
            yield _case("timeline", precision, count, options)
        if count > 1:
            yield _case("links", "fp32", count, options)
        if count % 2 == 0:
            for precision, cut_from in itertools.product(precisions, (CUT_FROM, CUT_FROM - 2)):
                yield _case("training", precision, count, options, 2, cut_from)


def _counts(text):
    """Return numbers of ranks: those given, or 1, 2, 4, ... as many as there are GPUs."""
    if text:
        return numbers(text)
    return [2**power for power in range(len(devices()).bit_length())]


def _case(what, precision, count, options, model=1, cut_from=CUT_FROM, is_pytorch=False):
    on_gpu = bool(devices())
    job = Job(
        what,
        "gpu" if on_gpu else "cpu",
        precision,
        _amounts(what, count, options, on_gpu),
        CHANNELS if on_gpu else options["width_cpu"],
        [HEIGHT, WIDTH] if on_gpu else [48, 72],
        options["repeats"],
        model,
        cut_from,
        is_pytorch,
    )
    labels = {
        "what": what,
        "processor": job.processor,
        "precision": precision,
        "gpus": count,
        "model": model,
        "cut_from": cut_from if model > 1 else 0,
        "width": job.width,
        "size": "x".join(map(str, job.size)),
    }
    name = f"{what}/{precision}/{count} ranks"
    name += f"/model {model} from {cut_from}" if model > 1 else ""
    name += "/PyTorch" if is_pytorch else ""
    skip = (is_pytorch and pytorch.why_not()) or _why_not(count, on_gpu)
    return Case(name, lambda: _run(name, labels, count, job), labels, skip)


def _amounts(what, count, options, on_gpu):
    """Return the images of all ranks together, so that one batch has several numbers of ranks."""
    if what == "links":
        return [*_SIZES, *(_LARGER if on_gpu else ())]
    each = numbers(options["n"] if on_gpu else options["n_cpu"])
    if what == "timeline":
        return [count * each[len(each) // 2]]
    weak = {count * n for n in each}
    if count == 1:
        # What two ranks share, one has alone.
        return sorted(weak | {2 * n for n in each if 2 * n <= max(each)})
    return sorted(weak | ({max(each)} if max(each) % count == 0 else set()))


def _why_not(count, on_gpu):
    if on_gpu and count > len(devices()):
        return f"it needs {count} GPUs and this machine has {len(devices())}"
    if not on_gpu and count > (os.cpu_count() or 1):
        return f"it needs {count} cores and this machine has {os.cpu_count()}"
    if count > 1 and launch.mpiexec() is None:
        return "ranks need mpiexec, which is not here: make setup"
    return None


def _run(name, labels, count, job):
    rows = []
    for row in run(count, job):
        own = labels | row["labels"]
        images = own.pop("images", 0)
        if images:
            own["n"] = images // count
        amount = f"n{own['n']}" if images else f"{own['what']}/{own['bytes']} bytes"
        rows.append(
            result(
                f"{name}/{amount}/{own['side']}",
                own,
                row["samples"],
                clock="synchronised",
                cache="warm",
                transfers=_transfers(job),
                warmup=2,
                values=row["values"],
                device=devices()[0] if job.processor == "gpu" else CPU,
            )
        )
    return rows


def _transfers(job):
    if job.processor == "cpu":
        return None
    return "included" if job.what.endswith("host") else "excluded"


SUITE = Suite(
    "scaling",
    "One GPU to many: training, inference, links, one step's times",
    cases,
    options={
        "n": "1,8,16,64",
        "n_cpu": "1,4,8",
        "precisions": "tf32,bf16",
        "gpus": "",
        "ranks": "1,2",
        "width_cpu": 16,
        "repeats": 10,
    },
    quick={"n": "1,16", "n_cpu": "2,4", "repeats": 3, "width_cpu": 8},
)
