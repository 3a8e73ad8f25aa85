# SPDX-License-Identifier: MIT
"""Work captured once as a CUDA graph: a replay of many calls costs the host one launch."""

import itertools

from convstudy.device import array_module


def capture(device, calls):
    """Return a function that replays `calls` on CuPy's current stream, and does not wait.

    Parameters
    ----------
    device : Device
        A GPU.
    calls : sequence of callable
        Each asks for work on CuPy's current stream. All are called once before, so that nothing
        is compiled or allocated for the first time while they are captured.
    """
    cuda = array_module(device).cuda
    with cuda.Device(device.index):
        stream = cuda.Stream(non_blocking=True)
        with stream:
            for call in calls:
                call()
            stream.synchronize()
            stream.begin_capture()
            for call in calls:
                call()
            graph = stream.end_capture()

    def replay():
        with cuda.Device(device.index):
            graph.launch(cuda.get_current_stream())

    # The graph works on what the calls hold, and on memory of its stream's pool.
    replay.keeps = graph, stream, tuple(calls)
    return replay


def alternating(stopwatch, replays, calls, repeats, warmup=3):
    """Return samples of the seconds of one call of each side, taken in turn.

    Whatever drifts (clocks, temperature) then drifts for all sides alike.

    Parameters
    ----------
    stopwatch : callable
        ``stopwatch(run) -> seconds``.
    replays : dict of str to callable
    calls : int
        How many calls a replay holds.
    repeats, warmup : int

    Returns
    -------
    dict of str to list of float
    """
    samples = {side: [] for side in replays}
    for turn, (side, replay) in itertools.product(range(warmup + repeats), replays.items()):
        seconds = stopwatch(replay) / calls
        if turn >= warmup:
            samples[side].append(seconds)
    return samples
