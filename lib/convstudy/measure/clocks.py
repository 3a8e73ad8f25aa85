# SPDX-License-Identifier: MIT
"""Three clocks, which are three different things.

host
    A wall clock that stops when the call returns. A GPU's work has then only been asked for.
synchronised
    A wall clock that starts on an idle device and stops when the device is idle again.
event
    The device's own: two events on the stream, before and after the work.

On a CPU a call returns when its work is done: host and synchronised are one, and there are no
events.
"""

import itertools
import time

from convstudy.device import array_module

CLOCKS = ("host", "synchronised", "event")


def synchronise(device):
    """Wait until a device, or each of several, has nothing left to do."""
    for each in device if isinstance(device, tuple) else (device,):
        if each.is_gpu:
            array_module(each).cuda.Device(each.index).synchronize()


def sample(run, clock, device, repeats=20, warmup=3, flush=False, most_s=10.0):
    """Return raw samples of the time of ``run()``.

    Parameters
    ----------
    run : callable
        Asks for the work, on CuPy's current stream of `device` where it is a GPU.
    clock : {"host", "synchronised", "event"}
    device : Device or tuple of Device
        Several devices that work at once have no common events.
    repeats, warmup : int
        Timed calls, and calls before them that are not timed: compilation, module loading and the
        first allocation lie there.
    flush : bool
        Overwrite L2 before each call, outside the timed region; otherwise caches are warm.
    most_s : float
        Stop once this many seconds are spent, but not before two samples.

    Returns
    -------
    list of float
        Seconds, at least two of them where `repeats` is more than one.

    Raises
    ------
    ValueError
        Where there is no such clock, or none such on this device.
    """
    stopwatch = _STOPWATCHES.get(clock)
    if stopwatch is None:
        raise ValueError(f"clocks: no clock {clock!r}; choose one of {', '.join(CLOCKS)}")
    if clock == "event" and (isinstance(device, tuple) or not device.is_gpu):
        raise ValueError("clocks: events are one GPU's; use the synchronised clock")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"clocks: {repeats} repeats after {warmup} warm-ups make no measurement")
    clear = _flusher(device) if flush else lambda: None
    for _ in range(warmup):
        run()
    synchronise(device)
    samples = []
    began = time.perf_counter()
    while len(samples) < repeats:
        clear()
        synchronise(device)
        samples.append(stopwatch(run, device))
        # The host clock has left work behind, which must not fall into the next sample.
        synchronise(device)
        if time.perf_counter() - began > most_s and len(samples) >= 2:
            break
    return samples


def once(clock, device):
    """Return a stopwatch: ``time(run) -> seconds`` of one call."""
    return lambda run: sample(run, clock, device, repeats=1, warmup=0)[0]


def laps(runs, device):
    """Return the seconds that each of `runs` takes on a GPU, one right behind the other.

    All are asked for before any is waited for, behind the last of them once more, so that the
    device always has work waiting: what the host takes to launch one is no part of its time.

    Parameters
    ----------
    runs : sequence of callable
        Each asks for work on CuPy's current stream, in less time than the work takes.
    device : Device

    Returns
    -------
    list of float
    """
    cuda = array_module(device).cuda
    with cuda.Device(device.index):
        marks = [cuda.Event() for _ in range(len(runs) + 1)]
        runs[-1]()
        marks[0].record()
        for run, mark in zip(runs, marks[1:], strict=True):
            run()
            mark.record()
        marks[-1].synchronize()
        return [1e-3 * cuda.get_elapsed_time(*pair) for pair in itertools.pairwise(marks)]


def _host(run, device):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _synchronised(run, device):
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def _event(run, device):
    cuda = array_module(device).cuda
    with cuda.Device(device.index):
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return cuda.get_elapsed_time(start, stop) * 1e-3


_STOPWATCHES = dict(zip(CLOCKS, (_host, _synchronised, _event), strict=True))


def _flusher(device):
    """Return a function that overwrites L2: all of it, with as much again to be sure."""
    if isinstance(device, tuple) or not device.is_gpu:
        raise ValueError("clocks: only one GPU's L2 is flushed; leave other caches warm")
    xp = array_module(device)
    with xp.cuda.Device(device.index):
        buffer = xp.empty(2 * device.l2_bytes, xp.int8)

    def flush():
        with xp.cuda.Device(device.index):
            buffer.data.memset_async(0, buffer.nbytes)

    return flush
