# SPDX-License-Identifier: MIT
"""A suite of five cases that keeps a list of what it ran; as a program, one that gets killed."""

import os
import signal
import sys
import time
from pathlib import Path

from convstudy import paths
from convstudy.measure import provenance, runner
from convstudy.measure.suite import Case, Suite, result
from convstudy.records import record

NAMES = ("one", "two", "three", "four", "five")
OPTIONS = {"repeats": 2, "n": "1,2", "fast": False, "share": 0.5, "seeds": "0", "gpus": ""}
SHA = "5" * 64
SOFTWARE = "python numpy numba cupy cuda_driver cuda_runtime nvrtc torch cudnn compiler blas"


def use(folder, patch=setattr):
    """Keep everything in `folder`, and let source and software stay what they are."""
    patch(paths, "MEASUREMENTS", folder / "measurements")
    patch(paths, "BUILD", folder / "build")
    patch(provenance, "source", lambda: {"commit": "ab" * 20, "dirty": False, "sha256": SHA})
    patch(provenance, "software", lambda: dict.fromkeys(SOFTWARE.split()))
    patch(provenance, "tree_sha256", lambda: SHA)


def suite(folder, **special):
    """Return the suite; `special` gives what a case does instead, or why it is skipped.

    What ran is in ``<folder>/ran``, a line a case.
    """

    def run(name, repeats):
        with (folder / "ran").open("a") as file:
            file.write(f"{name}\n")
        if name in special:
            return special[name]()
        samples = [0.25 * (i + 1) for i in range(repeats)]
        return [result(name, {"name": name}, samples, clock="synchronised", cache="warm")]

    def cases(options):
        for name in NAMES:
            skip = special[name] if isinstance(special.get(name), str) else None
            yield Case(name, lambda name=name: run(name, options["repeats"]), {"name": name}, skip)

    return Suite("tiny", "A tiny suite", cases, options=OPTIONS, least={"seeds": 0, "gpus": 1})


def ran(folder):
    """Return the names of the cases that ran, in order."""
    return (folder / "ran").read_text().split()


def _wait():
    print("reached", flush=True)
    time.sleep(60)


def _kill(record):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    here, when = Path(sys.argv[1]), sys.argv[2]
    use(here)
    if when == "while writing":
        record._text = _kill
        runner.run(suite(here))
    else:
        runner.run(suite(here, three=_wait))
