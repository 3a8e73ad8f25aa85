# SPDX-License-Identifier: MIT
"""Ranks that are processes, on one machine or several, and talk by MPI.

MPICH comes as a wheel, so that nothing but pip is needed: `make setup` installs it. On a cluster,
its own MPI is faster between machines: there mpi4py is built on it.
"""

import faulthandler
import os
import sys
import time

import numpy as np

from convstudy.parallel.communicator import (
    Communicator,
    OverdueError,
    Request,
    check_operation,
)
from convstudy.problem import BFLOAT16

PATIENCE_VARIABLE = "CONVSTUDY_PATIENCE_S"
# A rank that waits asks again and again at first, and then after a pause.
_BUSY_S = 5e-3
_PAUSE_S = 2e-4
# The launcher hears what ranks say beside that they end, and what it has not heard by then is lost.
_LAST_WORDS_S = 0.5


class Mpi(Communicator):
    """The ranks of an MPI communicator; arrays are NumPy's.

    MPI waits busily, which takes a core from a rank that works where there are more ranks than
    cores. So everything here is begun without waiting and asked for, after a while from time to
    time, and a rank that never comes is an error and no hang.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm, optional
        All ranks, if not given.
    patience_s : float, optional
        By default what the environment variable `PATIENCE_VARIABLE` says.

    Raises
    ------
    ImportError
        If mpi4py, or an MPI, is not installed.
    """

    def __init__(self, communicator=None, patience_s=None):
        self.patience_s = _patience() if patience_s is None else patience_s
        self._mpi = _opened(self.patience_s)
        self._comm = self._mpi.COMM_WORLD if communicator is None else communicator
        self.rank, self.size = self._comm.rank, self._comm.size

    def start_all_reduce(self, array, operation="sum"):
        check_operation(operation)
        _check("all_reduce", array)
        begun = self._comm.Iallreduce(self._mpi.IN_PLACE, array, self._mpi.SUM)

        def finish():
            if operation == "mean":
                array[...] /= self.size

        return self._request(begun, "all_reduce", finish)

    def bare_all_reduce(self, array):
        self._comm.Allreduce(self._mpi.IN_PLACE, array, self._mpi.SUM)

    def broadcast(self, array, root=0):
        _check("broadcast", array)
        self._request(self._comm.Ibcast(array, root), "broadcast").wait()
        return array

    def all_gather(self, part, out):
        _check("all_gather", part, out)
        _check_parts("all_gather", out, part, self.size)
        if np.may_share_memory(part, out):  # which MPI forbids
            part = part.copy()
        if part.dtype == BFLOAT16:  # which MPI does not know
            part, out = part.view(np.uint16), out.view(np.uint16)
        self._request(self._comm.Iallgather(part, out), "all_gather").wait()

    def reduce_scatter(self, parts, out):
        _check("reduce_scatter", parts, out)
        _check_parts("reduce_scatter", parts, out, self.size)
        if parts.dtype == BFLOAT16:
            wide = np.empty(out.shape, np.float32)
            self.reduce_scatter(parts.astype(np.float32), wide)
            out[...] = wide
            return
        begun = self._comm.Ireduce_scatter_block(parts, out, self._mpi.SUM)
        self._request(begun, "reduce_scatter").wait()

    def send(self, array, to):
        _check("send", array)
        self._request(self._comm.Issend(array, to), f"send to rank {to}").wait()

    def receive(self, array, source):
        _check("receive", array)
        self._request(self._comm.Irecv(array, source), f"receive from rank {source}").wait()
        return array

    def barrier(self):
        self._request(self._comm.Ibarrier(), "barrier").wait()

    def settle(self):
        pass  # there are no streams: each call has returned when it was done

    def split(self, color):
        return Mpi(self._comm.Split(color, self.rank), self.patience_s)

    def abort(self, reason):
        print(f"convstudy: rank {self.rank} of {self.size}: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        time.sleep(_LAST_WORDS_S)
        self._mpi.COMM_WORLD.Abort(1)

    def _request(self, begun, what, finish=None):
        def overdue():
            return OverdueError(
                f"rank {self.rank} of {self.size} has waited {self.patience_s:g} s for the others "
                f"in {what}; one of them stands still, or does something else. Where that long is "
                f"right, set {PATIENCE_VARIABLE} to more seconds"
            )

        return _Begun(begun, self.patience_s, overdue, finish)


class _Begun(Request):
    """A request of MPI's."""

    def __init__(self, request, patience_s, overdue, finish):
        self._request, self._patience_s = request, patience_s
        self._overdue, self._finish = overdue, finish
        self._began, self._ended = time.perf_counter(), None

    def advance(self):
        if self._request is not None and self._request.Test():
            self._request = None
            if self._finish:
                self._finish()
            self._ended = time.perf_counter()
        return self._request is None

    @property
    def span(self):
        return self._began, self._ended

    def wait(self):
        began = time.monotonic()
        while not self.advance():
            waited = time.monotonic() - began
            if waited < _BUSY_S:
                os.sched_yield()
            else:
                time.sleep(_PAUSE_S)
            if waited > self._patience_s:
                raise self._overdue()


def _opened(patience_s):
    """Return mpi4py's module, which finds the other ranks when it is first imported.

    It waits for them inside MPI, where Python cannot interrupt it: a rank that never starts has
    this one ended from outside.
    """
    if "mpi4py.MPI" not in sys.modules:
        faulthandler.dump_traceback_later(patience_s, exit=True, file=sys.__stderr__)
    try:
        from mpi4py import MPI
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI


def _patience():
    word = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        patience = float(word or Mpi.patience_s)
    except ValueError:
        patience = 0
    if not patience > 0:
        raise ValueError(f"{PATIENCE_VARIABLE}={word}: it has to be a number of seconds above 0")
    return patience


def _check(what, *arrays):
    for array in arrays:
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise TypeError(
                f"Mpi.{what}: it takes C-contiguous NumPy arrays, got "
                f"{type(array).__name__}; arrays on a GPU are for Nccl"
            )


def _check_parts(what, parts, part, size):
    if parts.shape != (size, *part.shape) or parts.dtype != part.dtype:
        raise ValueError(
            f"Mpi.{what}: {size} parts are {part.dtype} of shape {(size, *part.shape)}, got "
            f"{parts.dtype} of shape {parts.shape}"
        )
