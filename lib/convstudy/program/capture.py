# SPDX-License-Identifier: MIT
"""A program as one CUDA graph: the host asks once for all of its launches."""

from convstudy.device import array_module


class Replay:
    """Runs a program; on a GPU as a CUDA graph, which is captured when it first runs.

    Parameters
    ----------
    program : Program
    reached : callable, optional
        As in `Program.run`. What it asks for on the current stream, or on others that wait for
        it and that it waits for, becomes part of the graph: it is called once, and never again.
    """

    def __init__(self, program, reached=None):
        self.program, self._reached = program, reached
        self._graph = None

    def run(self):
        """Run it once, on CuPy's current stream; on a GPU, return before it is done."""
        device = self.program.device
        if not device.is_gpu:
            self.program.run(checked=False, reached=self._reached)
            return
        cuda = array_module(device).cuda
        with cuda.Device(device.index):
            if self._graph is None:
                self._graph = self._captured(cuda)
                # Whoever holds both this and `reached` is then held by neither.
                self._reached = None
            self._graph.launch(cuda.get_current_stream())

    def run_beforehand(self):
        """Make what is made of parameters alone, whenever they have changed."""
        device = self.program.device
        if not device.is_gpu:
            self.program.run_beforehand()
            return
        with array_module(device).cuda.Device(device.index):
            if self._graph is None:
                self.program.prepare()
            self.program.run_beforehand()

    def _captured(self, cuda):
        # Compiled and allocated before: neither can be done inside a graph.
        self.program.prepare()
        self.program.allocate_once()
        stream = cuda.Stream(non_blocking=True)
        cuda.get_current_stream().synchronize()
        with stream:
            stream.begin_capture()
            self.program.run(reached=self._reached)
            return stream.end_capture()
