# SPDX-License-Identifier: MIT
"""What was fastest on GPUs of one name, from the records of two suites; choices as text."""

import dataclasses
import functools

from convstudy import records
from convstudy.problem import ConvProblem
from convstudy.records import statistics

# Of U-Net's layers, and of classifiers'.
SUITE, NETWORKS_SUITE = "tuning", "tuning-networks"


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a record says of one pass of one problem.

    Attributes
    ----------
    algorithm : str
        The kernel that was taken.
    choice : str
        How it was cut, as `text` says it; empty where there is but one way.
    seconds : float
    tried : int
        How many were timed.
    source_sha256 : str
        Of the kernel's source, with its constants.
    record : str
        The record's id.
    """

    algorithm: str
    choice: str
    seconds: float
    tried: int
    source_sha256: str
    record: str


def find(which, problem, device):
    """Return the newest `Tuned` of a pass of `problem` on GPUs of the name of `device`, or None."""
    return _table(device.name).get((which, problem)) if device.is_gpu else None


def has_table(device):
    """Return whether anything was tuned on GPUs of the name of `device`."""
    return device.is_gpu and bool(_table(device.name))


@functools.cache
def _table(name):
    found = {}
    for record in sorted(
        (*records.every(SUITE), *records.every(NETWORKS_SUITE)), key=lambda record: record["id"]
    ):
        if [gpu["name"] for gpu in record["machine"]["gpus"][:1]] != [name]:
            continue
        for result in record["results"]:
            if result["status"] == "ok":
                found[_key(result)] = _tuned(result, record["id"])
    return found


read_again = _table.cache_clear


def _key(result):
    labels = result["labels"]
    sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in result["problem"].items()}
    return labels["pass"], ConvProblem(**sizes, precision=labels["precision"])


def _tuned(result, record):
    return Tuned(
        result["labels"]["algorithm"],
        result["labels"]["choice"],
        statistics.median(result["samples_s"]),
        len(result["values"]["candidates"]),
        result["source_sha256"],
        record,
    )


def text(choice):
    """Return one of a family's choices as text: what it is made of, by name.

    Examples
    --------
    >>> from convstudy.conv import gemm, halo
    >>> text(halo.Choice(128)), text(None)
    ('columns=128', '')
    >>> text(gemm.Choice("anything", 2))
    'tile=anything splits=2'
    """
    return " ".join(_words("", choice))


def _words(name, value):
    if value is None or value is False:
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _words(field.name, getattr(value, field.name))
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", ("",) * len(value))
        for inner, part in zip(names, value, strict=True):
            yield from _words(inner, part)
    else:
        yield f"{name}={value}" if name else str(value)


def parse(words, choices):
    """Return that of `choices` which `text` puts as `words`, or None."""
    return next((choice for choice in choices if text(choice) == words), None)
