# SPDX-License-Identifier: MIT
"""A lane that keeps a GPU's promises and no more: work is done later, in order."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convstudy.lane import CpuLane

# The lane that a thread's `with lane.active()` has made current.
current = threading.local()


class DeferredLane(CpuLane):
    """A stream of a thread of its own: what is asked for happens a little later, in order."""

    asynchronous = True

    def __init__(self, device, number=0):
        super().__init__(device, number)
        self._stream = ThreadPoolExecutor(1)
        self._asked = []
        self.asked_by = set()

    @contextlib.contextmanager
    def active(self):
        before, current.lane = getattr(current, "lane", None), self
        yield
        current.lane = before

    def defer(self, work, *arguments):
        def later():
            time.sleep(0.002)
            return work(*arguments)

        self.asked_by.add(threading.get_ident())
        self._asked.append(self._stream.submit(later))
        return self._asked[-1]

    def empty(self, shape):
        return np.full(shape, np.nan, np.float32)

    host_empty = empty

    def copy(self, destination, source):
        self.defer(np.copyto, destination, source)

    def mark(self):
        return self.defer(time.perf_counter)

    def wait(self, mark):
        self.defer(mark.result)

    def seconds(self, mark):
        assert mark.done(), "a time is read before its run was waited for"
        return mark.result()

    def synchronise(self):
        while self._asked:
            self._asked.pop(0).result()
