# SPDX-License-Identifier: MIT
"""One hash over the library's sources: whether two records, or two ranks, are of the same code."""

import hashlib

from convstudy import paths

_SOURCES = ("*.py", "*.cu", "*.cuh", "*.h", "*.cpp", "*.json")


def tree_sha256(folder=paths.PACKAGE):
    """Return one hash over all source files of the library."""
    total = hashlib.sha256()
    files = {file for pattern in _SOURCES for file in folder.rglob(pattern)}
    for file in sorted(files, key=lambda f: f.relative_to(folder).as_posix()):
        total.update(file.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
