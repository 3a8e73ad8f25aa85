# SPDX-License-Identifier: MIT
"""Work captured once as a CUDA graph: a replay of many calls costs the host one launch."""

import math

from convstudy.device import array_module
from convstudy.measure.clocks import laps

_FEWEST = 5


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


def alternating(replays, calls, device, repeats, warmup=2, most_s=math.inf):
    """Return samples of the seconds of one call of each side, taken in turn.

    Whatever drifts (clocks, temperature) then drifts for all sides alike.

    Parameters
    ----------
    replays : dict of str to callable
    calls : int
        How many calls a replay holds.
    device : Device
    repeats, warmup : int
        Rounds that are kept, and rounds before them that are not.
    most_s : float
        Stop once the rounds kept have taken so many seconds, but not before five of them.

    Returns
    -------
    dict of str to list of float
    """
    for _ in range(warmup):
        laps(tuple(replays.values()), device)
    rounds = []
    while len(rounds) < repeats:
        rounds.append(laps(tuple(replays.values()), device))
        if len(rounds) >= _FEWEST and sum(map(sum, rounds)) > most_s:
            break
    # An event tells seven digits; more of them are of its conversion.
    columns = zip(*rounds, strict=True)
    return {
        side: [float(f"{seconds / calls:.7g}") for seconds in column]
        for side, column in zip(replays, columns, strict=True)
    }
