# SPDX-License-Identifier: MIT
"""Ranks that are processes with a GPU each, and talk by NCCL: over NVLink, or over a network.

MPI carries their words, and starts them. All else is enqueued on the current stream of the rank's
GPU, but for `Nccl.start_all_reduce` and `Nccl.start_reduce_scatter`, which have a stream of their
own beside it: so a backward pass goes on while gradients that are ready are added up. Where the
current stream is being captured into a graph, the stream beside is captured with it.
"""

import ctypes
import functools
import platform
import time

from convstudy.parallel import windows
from convstudy.parallel.communicator import (
    Communicator,
    LostError,
    OverdueError,
    Request,
    check_operation,
)

_PAUSE_S = 2e-4
# A rank that has nothing to wait for is not kept from it by the pause.
_QUESTIONS_AT_ONCE = 200
_NOT_READY = 600  # cudaErrorNotReady


def own_gpu(words, devices):
    """Return the GPU of this rank: as many-th of its machine as the rank is among those there.

    Parameters
    ----------
    words : Communicator
        Of processes, such as `Mpi`.
    devices : sequence of Device
        All GPUs of this machine.

    Raises
    ------
    RanksError
        Where a machine has more ranks than GPUs.
    """
    hosts = words.exchange(platform.node())
    place = hosts[: words.rank].count(hosts[words.rank])

    def choose():
        if place >= len(devices):
            raise ValueError(
                f"{hosts.count(hosts[words.rank])} ranks were started on a machine with "
                f"{len(devices)} GPU{'s' * (len(devices) != 1)}; start one for each GPU, and let "
                "each see all of them"
            )
        return devices[place]

    return words.together(choose)


class Nccl(Communicator):
    """One GPU among several. Arrays are CuPy's; all ranks make theirs at the same time.

    From then on it is the GPU that CuPy uses where nothing else is said.

    Parameters
    ----------
    words : Communicator
        Of the processes, such as `Mpi`.
    device : Device
        This rank's GPU, which no other rank has.
    whole : Nccl, optional
        Of which this is a group.

    Attributes
    ----------
    device : Device
    beside : cupy.cuda.Stream
        Where sums that were started are made, and those of all groups of the same ranks.
    timed : bool
        Whether requests know when they began and ended; not within a graph.

    Raises
    ------
    RanksError
        Where CuPy, or NCCL, is not installed.
    """

    timed = False

    def __init__(self, words, device, whole=None):
        self._cupy, self._nccl = words.together(modules)
        self.device, self._talk = device, words
        self.rank, self.size, self.patience_s = words.rank, words.size, words.patience_s
        windows.ask_for_blocks()
        unique_id = words.tell(self._nccl.get_unique_id() if words.rank == 0 else None)
        self._cupy.cuda.Device(device.index).use()
        self._opened = self._nccl.NcclCommunicator(self.size, unique_id, self.rank)
        _keep(self._opened)
        # Groups begin their sums one after the other, as every rank does: two at the same time
        # could each have some of the GPUs, and wait for the rest.
        self.beside = whole.beside if whole else self._cupy.cuda.Stream(non_blocking=True)
        self._under_way = whole._under_way if whole else set()
        self._all = whole._all if whole else []
        self._all.append(self._opened)
        self._rooms = []

    def start_all_reduce(self, array, operation="sum"):
        how = self._operation(operation)
        return self._start(self._opened.allReduce, array, array, array.size, how)

    def all_reduce(self, array, operation="sum"):
        if self._under_way:
            return super().all_reduce(array, operation)
        # With nothing beside, events would be all that a stream beside adds.
        how = self._how(array, self._operation(operation))
        self._opened.allReduce(*self._pair(array, array), array.size, *how)
        return array

    def start_reduce_scatter(self, array):
        # In place is what ends where this rank's part has begun.
        own = array.reshape(self.size, -1)[self.rank]
        how = self._nccl.NCCL_SUM
        return self._start(self._opened.reduceScatter, array, own, own.size, how)

    def start_all_gather(self, part, out):
        return self._start(self._opened.allGather, part, out, part.size)

    def _operation(self, operation):
        check_operation(operation)
        return {"sum": self._nccl.NCCL_SUM, "mean": self._nccl.NCCL_AVG}[operation]

    def _start(self, collective, source, destination, count, *how):
        """Enqueue `collective` on the stream beside, and return a `Request`."""
        self.beside.wait_event(self._mark(self._here()))
        began = self._mark(self.beside, self.timed)
        how = self._how(source, *how, stream=self.beside)
        collective(*self._pair(source, destination), count, *how)
        return _Enqueued(self, began, self._mark(self.beside, self.timed), self._under_way)

    def room(self, count):
        if self.size == 1 or not self._has_windows:
            return None
        # All ranks have taken and given back the same.
        for room in self._rooms:
            if not room.is_taken and room.numbers.size == count:
                room.is_taken = True
                room.numbers.fill(0)
                return room.numbers
        with self._cupy.cuda.Device(self.device.index):
            made = windows.Room(self._cupy, self._opened, count)
        self._rooms.append(made)
        return made.numbers

    def give_back(self, room):
        for each in self._rooms:
            each.is_taken &= each.numbers is not room

    @functools.cached_property
    def _has_windows(self):
        """Whether NCCL knows windows, and all ranks are of one machine."""
        is_known = windows.are_known(self._nccl.get_version())
        every = self._talk.exchange((is_known, platform.node()))
        return is_known and len(set(every)) == 1

    def bare_all_reduce(self, array):
        self._opened.allReduce(
            *self._pair(array, array), array.size, *self._how(array, self._nccl.NCCL_SUM)
        )

    def broadcast(self, array, root=0):
        self._opened.broadcast(*self._pair(array, array), array.size, *self._how(array, root))
        return array

    def all_gather(self, part, out):
        self._opened.allGather(*self._pair(part, out), part.size, *self._how(part))

    def reduce_scatter(self, parts, out):
        self._opened.reduceScatter(
            *self._pair(parts, out), out.size, *self._how(out, self._nccl.NCCL_SUM)
        )

    def send(self, array, to):
        self._opened.send(_pointer(array), array.size, *self._how(array, to))

    def receive(self, array, source):
        self._opened.recv(_pointer(array), array.size, *self._how(array, source))
        return array

    def barrier(self):
        self.settle()
        self._talk.barrier()

    def split(self, color):
        return Nccl(self._talk.split(color), self.device, self)

    def abort(self, reason):
        self._talk.abort(reason)

    def settle(self):
        """Return when all that was asked for is done.

        Raises
        ------
        LostError
            Where NCCL has lost another rank.
        OverdueError
            After `patience_s`: what waits for a rank that stands still never ends.
        RuntimeError
            Where this GPU has failed (CuPy's ``CUDARuntimeError``).
        """
        done = self._mark(self._here())
        asked, until = 0, time.monotonic() + self.patience_s
        while status := self._cupy.cuda.runtime.eventQuery(done.ptr):
            if status != _NOT_READY:
                done.synchronize()  # raises what has gone wrong
            asked += 1
            if asked > _QUESTIONS_AT_ONCE:
                time.sleep(_PAUSE_S)
                self._check()
            if time.monotonic() > until:
                raise OverdueError(
                    f"rank {self.rank} of {self.size} has waited {self.patience_s:g} s for its "
                    "GPU, which waits for others; one of them stands still"
                )

    @property
    def _words(self):
        return self._talk

    def _check(self):
        try:
            for opened in self._all:
                opened.check_async_error()
        except self._nccl.NcclError as error:
            raise LostError(
                f"rank {self.rank} of {self.size} has lost another one: {error}; "
                "NCCL_DEBUG=INFO makes NCCL say more"
            ) from error

    def _here(self):
        return self._cupy.cuda.get_current_stream(self.device.index)

    def _mark(self, stream, timed=False):
        with self._cupy.cuda.Device(self.device.index):
            event = self._cupy.cuda.Event(disable_timing=not timed)
            event.record(stream)
        return event

    def _pair(self, source, destination):
        return _pointer(source), _pointer(destination)

    def _how(self, array, *more, stream=None):
        """Return what every call ends with: the numbers' type, what else, and the stream."""
        types = {
            "float32": self._nccl.NCCL_FLOAT32,
            "float64": self._nccl.NCCL_FLOAT64,
            "bfloat16": self._nccl.NCCL_BFLOAT16,
            "int64": self._nccl.NCCL_INT64,
            "uint8": self._nccl.NCCL_UINT8,
        }
        if array.dtype.name not in types:
            raise TypeError(f"Nccl: it takes {' or '.join(types)}, got {array.dtype}")
        return types[array.dtype.name], *more, (stream or self._here()).ptr


class _Enqueued(Request):
    """Work in a stream beside the current one."""

    def __init__(self, communicator, began, done, under_way):
        self._communicator, self._began, self._done = communicator, began, done
        self._under_way = under_way
        under_way.add(self)

    def advance(self):
        # Within a capture nothing may be asked; NCCL needs no asking to go on.
        return False

    def wait(self):
        self._communicator._here().wait_event(self._done)
        self._under_way.discard(self)

    @property
    def span(self):
        return self._began, self._done


def _keep(opened):
    """Let a communicator of NCCL's live until the process ends.

    To end one waits for all graphs that have captured a call of it to be gone, and Python does not
    say which goes first: a training that had ended hung there.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))


def _pointer(array):
    if not hasattr(array, "data") or not hasattr(array.data, "ptr"):
        raise TypeError(
            f"Nccl: it takes arrays on a GPU, got {type(array).__name__}; NumPy's are for Mpi"
        )
    if not array.flags.c_contiguous:
        raise TypeError("Nccl: it takes C-contiguous arrays; use cupy.ascontiguousarray")
    return array.data.ptr


def modules():
    """Return CuPy and its NCCL, or raise ImportError."""
    import warnings

    import cupy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where NCCL is missing; here it is an error
        from cupy.cuda import nccl
    if not getattr(nccl, "available", False):
        raise ImportError(
            "several GPUs talk by NCCL, which is not installed: make setup EXTRAS=nccl"
        )
    return cupy, nccl
