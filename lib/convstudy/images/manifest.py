# SPDX-License-Identifier: MIT
"""The committed set, file by file: what it is, where it comes from, and under which licence."""

import csv
import functools
import hashlib
from typing import NamedTuple

from convstudy import paths

KINDS = ("object", "background", "composite", "mask")
SPLITS = ("train", "held-out")
FOLDERS = ("objects", "backgrounds", "composites")
NAME = "manifest.csv"


class Row(NamedTuple):
    """One committed file; `source` is its path in the package, or the files it is made of."""

    file: str
    kind: str
    split: str
    package: str
    source: str
    credit: str
    licence: str
    sha256: str

    @property
    def path(self):
        """Return where the file is."""
        return paths.IMAGES / self.file


@functools.cache
def _read(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            names, first, *others = (line for line in csv.reader(lines) if line)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is empty, or no table at all") from error
    found = first, *others
    if tuple(names) != Row._fields or not all(map(_is_row, found)):
        raise ValueError(f"{path} is garbled: it is no table of {', '.join(Row._fields)}")
    return tuple(map(Row._make, found))


def _is_row(line):
    return len(line) == len(Row._fields) and line[1] in KINDS and line[2] in SPLITS


def rows(kind=None, split=None):
    """Return the rows of the manifest, of one kind and one split if given, in its order.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no manifest, or it is garbled.
    """
    return tuple(
        row
        for row in _read(paths.IMAGES / NAME)
        if kind in (None, row.kind) and split in (None, row.split)
    )


def write(new):
    """Write the manifest anew, from rows."""
    with (paths.IMAGES / NAME).open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows(new)
    _read.cache_clear()


def digest(path):
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems():
    """Return what is wrong with the committed set, a sentence for each fault."""
    try:
        listed = rows()
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    found = []
    for row in listed:
        if not row.path.is_file():
            found.append(f"{row.file} is missing")
        elif digest(row.path) != row.sha256:
            found.append(f"{row.file} is not the file of the manifest")
    names = {row.file for row in listed}
    present = (p for folder in FOLDERS for p in sorted((paths.IMAGES / folder).glob("*")))
    stray = [name for p in present if (name := f"{p.parent.name}/{p.name}") not in names]
    return found + [f"{name} is not in the manifest" for name in stray]
