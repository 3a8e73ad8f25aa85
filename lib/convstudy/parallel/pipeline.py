# SPDX-License-Identifier: MIT
"""The schedule: which chunk goes through which stream of which GPU, and when it did.

Chunks are dealt out in turn: to the first stream of every GPU, then to the second of every GPU.
A stream does one thing after another (copy in, compute, copy out), so what overlaps is the copy
of one stream with the computing of another: two streams are the double buffer, and within one
a second buffer would gain nothing. One stream is the case without overlap.

Each GPU has a host thread that asks for its work. CUDA's calls release Python's lock, so no GPU
waits for another's launches, or for an allocation there. What computes at once, on the CPU and
on the emulator, runs on the calling thread.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from convstudy.device import Device, get_device
from convstudy.lane import open_lanes
from convstudy.parallel.cuts import whole


@dataclass(frozen=True)
class Chunk:
    """One piece of work.

    Attributes
    ----------
    x_shape : tuple of int
    stage : callable
        ``stage(x)`` writes the chunk's input into page-locked memory.
    compute : callable
        ``compute(lane, x)`` returns the result on the device, without waiting.
    y : array
        Page-locked memory that the result is copied to.
    """

    x_shape: tuple[int, ...]
    stage: Callable
    compute: Callable
    y: object


class Pipeline:
    """Streams of GPUs, and the order in which chunks pass through them.

    Parameters
    ----------
    who : str
        Whose errors these are.
    devices : sequence of Device or int
        An int is a GPU's number.
    streams : int
        Streams of each device.

    Attributes
    ----------
    lanes : list of Lane
        In the order in which chunks are dealt out.
    """

    def __init__(self, who, devices, streams):
        self.devices = _resolve(who, devices)
        self.streams = whole(who, "streams", streams)
        self._who = who
        by_device = [open_lanes(device, self.streams) for device in self.devices]
        self.lanes = [lane for together in zip(*by_device, strict=True) for lane in together]
        asynchronous = sum(lanes[0].asynchronous for lanes in by_device)
        # Made once: starting a thread takes longer than launching a layer.
        self._threads = ThreadPoolExecutor(asynchronous) if asynchronous > 1 else None
        self._events = None

    def run(self, chunks, prepare=None, record=False):
        """Send chunks through the lanes, and return when all results are there.

        Parameters
        ----------
        chunks : list of Chunk
        prepare : callable, optional
            ``prepare(lane)`` is called once for each lane that gets a chunk, before its first.
        record : bool
            Whether to keep the timeline. Events are recorded only then.
        """
        queues = {}
        for number, chunk in enumerate(chunks):
            lane = self.lanes[number % len(self.lanes)]
            queues.setdefault(lane.device, []).append((number, lane, chunk))
        self._events = None
        try:
            if record:
                for lane in self.lanes:
                    if lane.number == 0:
                        lane.align()
            begin = time.perf_counter()
            marks = self._issue_all(queues.values(), prepare, record)
        finally:
            # After an error, too: what is under way still reads and writes the arrays.
            for lane in self.lanes:
                lane.synchronise()
        if record:
            self._events = [event for mark in sorted(marks) for event in _events(*mark, begin)]

    def timeline(self):
        """Return when each copy and each computation of the last recorded run took place.

        Returns
        -------
        list of dict
            gpu, stream, chunk : int; what : "copy in", "compute" or "copy out"; start_s,
            stop_s : float, seconds after the run began. Each begins when the stream is free for
            it: waiting for a copy engine, or for multiprocessors, is part of it.

        Raises
        ------
        RuntimeError
            Where the last run was not recorded.

        Notes
        -----
        Times on one GPU are exact to about a microsecond; GPUs are laid side by side through the
        host's clock, exact to `uncertainty_s`.
        """
        if self._events is None:
            raise RuntimeError(
                f"{self._who}: the last run was not recorded; run it with record=True"
            )
        return list(self._events)

    @property
    def uncertainty_s(self):
        """How far the times of two GPUs may be shifted against each other, in seconds."""
        return max(lane.uncertainty_s for lane in self.lanes)

    def _issue_all(self, queues, prepare, record):
        if self._threads is None:
            return [mark for queue in queues for mark in _issue(queue, prepare, record)]
        futures = [self._threads.submit(_issue, queue, prepare, record) for queue in queues]
        wait(futures)
        return [mark for future in futures for mark in future.result()]


def _issue(queue, prepare, record):
    """Ask for all of one device's chunks; return (number, lane, four marks) of each."""
    ready, marks = set(), []
    for number, lane, chunk in queue:
        with lane.active():
            if prepare and lane not in ready:
                prepare(lane)
                ready.add(lane)
            staged = lane.host_empty(chunk.x_shape)
            chunk.stage(staged)
            passed = [lane.mark()] if record else []
            x = lane.empty(chunk.x_shape)
            lane.copy(x, staged)
            passed += [lane.mark()] if record else []
            y = chunk.compute(lane, x)
            passed += [lane.mark()] if record else []
            lane.copy(chunk.y, y)
            passed += [lane.mark()] if record else []
        marks.append((number, lane, passed))
    return marks


def _events(number, lane, marks, begin):
    times = [lane.seconds(mark) - begin for mark in marks]
    for what, start, stop in zip(
        ("copy in", "compute", "copy out"), times, times[1:], strict=False
    ):
        yield {
            "gpu": lane.device.index,
            "stream": lane.number,
            "chunk": number,
            "what": what,
            "start_s": start,
            "stop_s": stop,
        }


def _resolve(who, devices):
    """Return the devices, or raise where there are none, one is named twice, or one is missing."""
    if isinstance(devices, (int, Device)):
        raise TypeError(f"{who}: devices must be a sequence, got {devices!r}; pass [{devices!r}]")
    found = tuple(
        each if isinstance(each, Device) else get_device(_number(who, each), who)
        for each in devices
    )
    if not found:
        raise ValueError(f"{who}: devices is empty; pass at least one")
    repeated = [each.index for i, each in enumerate(found) if each in found[:i]]
    if repeated:
        raise ValueError(f"{who}: device {repeated[0]} is named twice; name each once")
    return found


def _number(who, value):
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{who}: a device is a Device or a GPU's number, got {value!r}")
    return int(value)
