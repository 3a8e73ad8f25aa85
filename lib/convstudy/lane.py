# SPDX-License-Identifier: MIT
"""A lane: one queue of work on one device, with the transfers to it and from it.

On a GPU it is a CUDA stream; on the CPU and on the emulator everything is done at once, by the
calling thread. Whoever schedules work asks for it in the same words on both.
"""

import contextlib
import time

import numpy as np

from convstudy.device import array_module, empty


def open_lanes(device, streams):
    """Return `streams` lanes of `device`, numbered from 0, whose times lie on one axis."""
    if device.is_gpu:
        clock = _GpuClock(device)
        return [GpuLane(device, number, clock) for number in range(streams)]
    return [CpuLane(device, number) for number in range(streams)]


class CpuLane:
    """What is asked for is done before the call returns.

    Attributes
    ----------
    device : Device
    number : int
        Its number among the lanes of the device.
    asynchronous : bool
        Whether calls return before their work is done.
    uncertainty_s : float
        How far `seconds` may be off, in seconds.
    """

    asynchronous = False
    uncertainty_s = 0.0

    def __init__(self, device, number=0):
        self.device, self.number = device, number

    def active(self):
        """Return a context inside which CuPy computes on this lane."""
        return contextlib.nullcontext()

    def host_empty(self, shape):
        """Return a float32 NumPy array, not yet written; on a GPU's lane in page-locked memory.

        A GPU copies such memory by itself, while the CPU and the GPU's units do something else.
        """
        return np.empty(shape, np.float32)

    def empty(self, shape):
        """Return a float32 array on the device, not yet written, for this lane alone."""
        return empty(shape, self.device)

    def copy(self, destination, source):
        """Copy between host and device, C-contiguous arrays of one shape."""
        np.copyto(destination, source)

    def mark(self):
        """Return a mark that is passed when all that was asked for before is done."""
        return time.perf_counter()

    def wait(self, mark):
        """Let what is asked for from now on begin after `mark`, which may be another lane's."""

    def align(self):
        """Set the axis of `seconds` anew, while the device is idle."""

    def seconds(self, mark):
        """Return when `mark` was passed, on `time.perf_counter`'s axis."""
        return mark

    def synchronise(self):
        """Return when all that was asked for is done."""


class GpuLane:
    """A CUDA stream of its own, which waits for no other stream, nor for the default one.

    Methods and attributes are `CpuLane`'s. Every method but `active` and `synchronise` is called
    inside ``with lane.active()``: CuPy's current stream belongs to the current device, and its
    pool hands memory that one stream has done with to the same stream only. So an array dropped
    while the GPU still uses it is reused after that use, with no wait and no event.
    """

    asynchronous = True

    def __init__(self, device, number, clock):
        self.device, self.number = device, number
        self._cupy = array_module(device)
        self._clock = clock
        # Page-locked memory has no such order: what is being copied must not go back to its pool.
        self._copying = []
        with self._cupy.cuda.Device(device.index):
            self._stream = self._cupy.cuda.Stream(non_blocking=True)

    @contextlib.contextmanager
    def active(self):
        with self._cupy.cuda.Device(self.device.index), self._stream:
            yield

    def host_empty(self, shape):
        import cupyx

        return cupyx.empty_pinned(shape, np.float32)

    def empty(self, shape):
        return empty(shape, self.device)

    def copy(self, destination, source):
        if isinstance(source, np.ndarray):
            self._copying.append(source)
            destination.set(source, self._stream)
        else:
            self._copying.append(destination)
            source.get(self._stream, out=destination, blocking=False)

    def mark(self):
        event = self._cupy.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, mark):
        self._stream.wait_event(mark)

    def align(self):
        with self.active():
            self._clock.align(self._stream)

    def seconds(self, mark):
        return self._clock.seconds(mark)

    @property
    def uncertainty_s(self):
        return self._clock.uncertainty_s

    def synchronise(self):
        self._stream.synchronize()
        self._copying.clear()


class _GpuClock:
    """Puts one GPU's events on the host's axis of time.

    An event tells only how long after another event of its GPU it was. So one is recorded while
    the GPU is idle, between two readings of the host's clock: it lies somewhere between them. Of
    ten such pairs the narrowest counts.
    """

    def __init__(self, device):
        self._cupy = array_module(device)
        self._device = self._cupy.cuda.Device(device.index)
        self._base = None
        self._zero = self.uncertainty_s = float("nan")

    def align(self, stream):
        self._device.synchronize()
        candidates = []
        for _ in range(10):
            event = self._cupy.cuda.Event()
            before = time.perf_counter()
            event.record(stream)
            event.synchronize()
            after = time.perf_counter()
            candidates.append((after - before, before, event))
        width, before, self._base = min(candidates, key=lambda candidate: candidate[0])
        self.uncertainty_s = width / 2
        self._zero = before + width / 2

    def seconds(self, event):
        return self._zero + self._cupy.cuda.get_elapsed_time(self._base, event) / 1e3
