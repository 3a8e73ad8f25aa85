# SPDX-License-Identifier: MIT
"""Fig. 3: a batch in chunks over streams and GPUs: the timeline, and the time by chunks."""

from convstudy.device import CPU, devices
from convstudy.measure.clocks import sample
from convstudy.measure.suite import Case, Suite, checked, numbers, result
from convstudy.measure.suites.network import TILED, expected, images, no_gpu, unet
from convstudy.nn.blas import BlasOps
from convstudy.parallel.chunks import ChunkedForward


def cases(options):
    """Yield timelines, and sweeps over chunks and streams, for each number of GPUs."""
    if no_gpu():
        # Without a GPU the same schedule runs on the CPU, where nothing overlaps.
        n = options["n_cpu"]
        yield _case("timeline", 0, 1, 2, n, options)
        for chunks in numbers(options["chunks"]):
            if chunks <= n:
                yield _case("sweep", 0, 1, chunks, n, options)
        return
    counts = sorted({1, len(devices())})
    for gpus in counts:
        for chunks, streams in ((gpus, 1), (4 * gpus, 2)):
            yield _case("timeline", gpus, streams, chunks, options["n"], options)
    for gpus in counts:
        for streams in numbers(options["streams"]):
            for chunks in numbers(options["chunks"]):
                yield _case("sweep", gpus, streams, chunks, options["n"], options)


def _case(kind, gpus, streams, chunks, n, options):
    labels = {
        "kind": kind,
        "gpus": gpus,
        "streams": streams,
        "chunks": chunks,
        "n": n,
        "algorithm": TILED if gpus else "cpu-blas",
        "execution": "resident" if gpus else "cpu",
    }
    name = f"{kind}/{gpus} GPUs/{streams} streams/{chunks} chunks"
    return Case(name, lambda: [_run(name, labels, options["repeats"])], labels)


def _run(name, labels, repeats):
    used = devices()[: labels["gpus"]] or (CPU,)
    make = None if labels["gpus"] else lambda device: BlasOps()
    forward = ChunkedForward(
        unet(), used, labels["streams"], labels["chunks"], labels["algorithm"], make
    )
    n = labels["n"]
    check = checked(forward.run(images(n)), expected(n), *unet().terms())
    values = {}
    if labels["kind"] == "timeline":
        forward.run(images(n), record=True)
        values = {"events": forward.timeline(), "uncertainty_s": forward.uncertainty_s}
        repeats = 1
    samples = sample(lambda: forward.run(images(n)), "synchronised", used[0], repeats, 1)
    return result(
        name,
        labels,
        samples,
        clock="synchronised",
        cache="warm",
        transfers="included" if labels["gpus"] else None,
        warmup=2,
        values=values,
        check=check,
        device=used[0],
    )


SUITE = Suite(
    "chunks",
    "Fig. 3: chunks over streams and GPUs",
    cases,
    options={"n": 16, "n_cpu": 4, "chunks": "1,2,4,8,16", "streams": "1,2,4", "repeats": 10},
    quick={"n_cpu": 2, "repeats": 3},
)
