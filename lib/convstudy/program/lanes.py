# SPDX-License-Identifier: MIT
"""Which launches of a program run beside others, and how two streams keep to that."""

import contextlib
from enum import Enum, auto

from convstudy.device import array_module


class Does(Enum):
    """What is done at a point of a program's course."""

    FORK = auto()  # what is beside waits for what is not
    JOIN = auto()  # and the other way round
    LAUNCH = auto()
    REACH = auto()  # a mark


def last_needed(course):
    """Return, of each step beside others, the last step before these have waited for it."""
    found, held, here = {}, [], 0
    for does, which, is_beside in course:
        if does is Does.LAUNCH:
            here = which + 1
            held += [which] if is_beside else []
        elif does is Does.JOIN:
            found |= dict.fromkeys(held, here - 1)
            held = []
    return found | dict.fromkeys(held, here - 1)


def delayed(course):
    """Yield a course with all that runs beside others put off until these wait for it."""
    held = []
    for each in course:
        does, _, is_beside = each
        if is_beside:
            held.append(each)
            continue
        if does is Does.JOIN:
            yield from held
            held = []
        yield each


class Lanes:
    """CuPy's current stream and one beside it; or no other, and all is done in one order.

    A launch may overlap the one before it in its stream (`driver.launch_overlapping`) where nothing
    but that one has to be waited for.

    Parameters
    ----------
    device : Device
    beside : cupy.cuda.Stream or None
    """

    def __init__(self, device, beside):
        self._beside = beside
        if beside is not None:
            self._cuda = array_module(device).cuda
            self._main = self._cuda.get_current_stream()
        self._may_overlap = {False: True, True: False}
        self._is_joined = True

    def on(self, is_beside):
        """Return a context in which CuPy's current stream is the one for what is asked for."""
        return self._beside if self._is(is_beside) else contextlib.nullcontext()

    def fork(self):
        """Let what is asked for beside wait for all that was asked for in the current stream."""
        if self._beside is not None:
            self._wait(self._main, self._beside)
            self._may_overlap[True] = self._is_joined = False

    def join(self):
        """Let what is asked for in the current stream wait for all that was beside."""
        if not self._is_joined:
            self._wait(self._beside, self._main)
            self._may_overlap[False], self._is_joined = False, True

    def interrupt(self, is_beside):
        """Take note that others may have asked for something there."""
        self._may_overlap[self._is(is_beside)] = False

    def may_overlap(self, is_beside):
        """Return whether the next launch may overlap the one before it, and take note of it."""
        lane = self._is(is_beside)
        may, self._may_overlap[lane] = self._may_overlap[lane], True
        return may

    def _is(self, is_beside):
        return is_beside and self._beside is not None

    def _wait(self, first, second):
        event = self._cuda.Event(disable_timing=True)
        event.record(first)
        second.wait_event(event)
