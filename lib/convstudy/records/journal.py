# SPDX-License-Identifier: MIT
"""What a run has finished so far, on disk: a killed run loses no finished case.

A journal is a file of JSON lines. The first says what is being measured; each further one is a
finished result, on disk before the next case begins.
"""

import contextlib
import json
import os
from pathlib import Path

from convstudy.records.record import to_line


class Journal:
    """The journal of one suite on one machine.

    Parameters
    ----------
    path : Path
        Its file. Where there is one with the same header, the run goes on from it; one with
        another header (other code, other options) is set aside under a name of its own, until
        there is a run with its header again.
    header : dict
        All that must be the same for results to belong together.

    Attributes
    ----------
    finished : dict of str to list of dict
        The results of each finished case.
    set_aside : Path or None
        Where a journal of something else went.
    """

    def __init__(self, path, header):
        self.path = Path(path)
        self.set_aside = None
        self.finished = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        every = self.path, *self.path.parent.glob(f"{self.path.stem}.*.jsonl")
        same = [each for each in every if _whole_lines(each)[:1] == [header]]
        for each in same:
            for line in _whole_lines(each)[1:]:
                self.finished.setdefault(line["case"], line["results"])
        if self.path.exists() and self.path not in same:
            self.set_aside = self._free_name()
            self.path.rename(self.set_aside)
        # Written anew, without a torn last line, and only then renamed over the old one.
        fresh = self.path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        _append(fresh, header, *({"case": c, "results": r} for c, r in self.finished.items()))
        fresh.rename(self.path)
        for each in same:
            if each != self.path:
                each.unlink()

    def _free_name(self):
        number = 1
        while (name := self.path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        return name

    def add(self, case, results):
        """Put the results of a finished case on disk."""
        _append(self.path, {"case": case, "results": results})
        self.finished[case] = results

    def remove(self):
        """Remove the journal: its record is written."""
        self.path.unlink(missing_ok=True)


def _whole_lines(path):
    """Return the lines that are whole: one may be torn, where the run was killed."""
    lines = []
    for text in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def _append(path, *lines):
    with path.open("a") as file:
        file.writelines(to_line(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
