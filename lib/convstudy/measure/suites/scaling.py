# SPDX-License-Identifier: MIT
"""One GPU to many: training and inference by ranks, the links between them, and one step's times.

Without a GPU the same code runs on CPU ranks, on a narrower network: then "gpus" counts ranks.
"""

import itertools
import os

from convstudy.device import CPU, devices
from convstudy.measure import pytorch
from convstudy.measure.ranked import Job, Session
from convstudy.measure.suite import Case, Suite, check_words, numbers, result
from convstudy.measure.suites.network import HEIGHT, WIDTH
from convstudy.models.unet import WIDTH as CHANNELS
from convstudy.parallel import launch
from convstudy.parallel.grid import CUT_FROM
from convstudy.program.lowering import PRECISIONS

# Bytes; GPUs get the larger ones, too.
_SIZES = tuple(4**power for power in range(6, 13))
_LARGER = tuple(4**power for power in range(13, 15))


def cases(options):
    """Yield a case for each thing done, precision, number of ranks and cut; the most wanted first.

    All of them are asked of the same ranks, which end with the last of the cases.
    """
    check_words(options, precisions=PRECISIONS)
    on_gpu, session = bool(devices()), Session()
    counts = _counts(options["gpus"] if on_gpu else options["ranks"])
    several = [count for count in counts if count > 1]

    def of_each(what, counts, *cut, **how):
        precisions = options["precisions"].split(",") if on_gpu else ["fp32"]
        for precision, count in itertools.product(precisions, counts):
            yield _case(session, what, precision, count, options, *cut, **how)

    yield from of_each("training", counts)
    yield from of_each("training", several, is_pytorch=True)
    for count in several:
        yield _case(session, "links", "fp32", count, options)
    yield from of_each("inference", counts)
    yield from of_each("timeline", counts)
    for cut_from in (CUT_FROM, CUT_FROM - 1):
        yield from of_each("training", [n for n in counts if n % 2 == 0], 2, cut_from)
    if on_gpu:
        yield from of_each("inference from the host", counts)
    yield from of_each("inference", counts, is_pytorch=True)
    yield from of_each("training", [n for n in counts if n == 1], is_pytorch=True)


def _counts(text):
    """Return numbers of ranks: those given, or 1, 2, 4, ... as many as there are GPUs."""
    if text:
        return numbers(text)
    return [2**power for power in range(len(devices()).bit_length())]


def _case(session, what, precision, count, options, model=1, cut_from=CUT_FROM, is_pytorch=False):
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
    return Case(name, lambda: _run(session, name, labels, count, job), labels, skip)


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


def _run(session, name, labels, count, job):
    rows = []
    for row in session.run(count, job):
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
                kernels=row["values"].pop("kernels", None),
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
    least={"gpus": 1},
    quick={"n": "1,16", "n_cpu": "2,4", "repeats": 3, "width_cpu": 8},
)
