# SPDX-License-Identifier: MIT
"""Ranks that are GPUs, and talk by NCCL: over NVLink on one machine, over the network beyond.

Either one process drives several GPUs (`open_here`), as a notebook does, or each process drives
one and MPI carries their words (`open_ranks`), as under ``mpiexec``. Everything is enqueued: on
the current stream of the rank's GPU, but for `Nccl.start_all_reduce`, which has a stream of its
own beside it. So a backward pass goes on while gradients that are ready are added up; where the
current stream is being captured into a graph, the stream beside is captured with it.
"""

from convstudy.parallel.communicator import (
    Alone,
    Communicator,
    RanksError,
    Request,
    check_operation,
)


def open_here(devices):
    """Return the communicators of several GPUs that this process drives, one for each.

    What all ranks do has to be done for all of them inside one `group`, or NCCL waits for those
    that are still to come; `start_all_reduce_on` does.

    Parameters
    ----------
    devices : sequence of Device
        GPUs.
    """
    cupy, nccl = _modules()
    opened = nccl.NcclCommunicator.initAll([device.index for device in devices])
    return [
        Nccl(cupy, nccl, each, device, Alone())
        for each, device in zip(opened, devices, strict=True)
    ]


def open_ranks(words, device):
    """Return the communicator of this process's GPU and those of all other ranks.

    Parameters
    ----------
    words : Communicator
        Of processes, such as `Mpi`.
    device : Device
        This rank's GPU, which no other rank has.
    """
    cupy, nccl = words.together(_modules)
    unique_id = words.tell(nccl.get_unique_id() if words.rank == 0 else None)
    with cupy.cuda.Device(device.index):
        opened = nccl.NcclCommunicator(words.size, unique_id, words.rank)
    return Nccl(cupy, nccl, opened, device, words)


class Nccl(Communicator):
    """One GPU among several; made by `open_here` or `open_ranks`. Arrays are CuPy's.

    Attributes
    ----------
    device : Device
    beside : cupy.cuda.Stream
        Where `start_all_reduce` does its work.
    """

    def __init__(self, cupy, nccl, opened, device, words):
        self._cupy, self._nccl, self._opened = cupy, nccl, opened
        self.device, self._talk = device, words
        self.rank, self.size = opened.rank_id(), opened.size()
        with cupy.cuda.Device(device.index):
            self.beside = cupy.cuda.Stream(non_blocking=True)

    def start_all_reduce(self, array, operation="sum"):
        (request,) = start_all_reduce_on([self], [array], operation)
        return request

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
        self._here().synchronize()
        self._talk.barrier()

    def split(self, color):
        return open_ranks(self._talk.split(color), self.device)

    def abort(self, reason):
        self._opened.abort()
        self._talk.abort(reason)

    def check(self):
        """Raise RanksError where NCCL has lost another rank: what waits for it never ends."""
        try:
            self._opened.check_async_error()
        except self._nccl.NcclError as error:
            raise RanksError(
                f"rank {self.rank} of {self.size} has lost another one: {error}; "
                "NCCL_DEBUG=INFO makes NCCL say more"
            ) from error

    @property
    def _words(self):
        return self._talk

    def _here(self):
        return self._cupy.cuda.get_current_stream(self.device.index)

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

    def _all_reduce(self, array, operation, stream):
        how = {"sum": self._nccl.NCCL_SUM, "mean": self._nccl.NCCL_AVG}[operation]
        self._opened.allReduce(
            *self._pair(array, array), array.size, *self._how(array, how, stream=stream)
        )


def start_all_reduce_on(communicators, arrays, operation="sum"):
    """Begin one all-reduce for several ranks of this process, and return their requests.

    Parameters
    ----------
    communicators : sequence of Nccl
    arrays : sequence of array
        One for each rank, on its GPU.
    operation : {"sum", "mean"}
    """
    check_operation(operation)
    for each in communicators:
        with each._cupy.cuda.Device(each.device.index):
            each.beside.wait_event(_mark(each, each._here()))
    with group(communicators):
        for each, array in zip(communicators, arrays, strict=True):
            each._all_reduce(array, operation, each.beside)
    # Only now is it in the streams.
    return [_Enqueued(each, _mark(each, each.beside)) for each in communicators]


class group:
    """A context inside which calls for several ranks of one process are one call of NCCL's."""

    def __init__(self, communicators):
        self._nccl = communicators[0]._nccl

    def __enter__(self):
        self._nccl.groupStart()

    def __exit__(self, *_):
        self._nccl.groupEnd()


class _Enqueued(Request):
    """Work in a stream beside the current one."""

    def __init__(self, communicator, done):
        self._communicator, self._done = communicator, done

    def advance(self):
        # Within a capture nothing may be asked; NCCL needs no asking to go on.
        return False

    def wait(self):
        self._communicator._here().wait_event(self._done)


def _mark(communicator, stream):
    cupy = communicator._cupy
    with cupy.cuda.Device(communicator.device.index):
        event = cupy.cuda.Event(disable_timing=True)
        event.record(stream)
    return event


def _pointer(array):
    if not hasattr(array, "data") or not hasattr(array.data, "ptr"):
        raise TypeError(
            f"Nccl: it takes arrays on a GPU, got {type(array).__name__}; NumPy's are for Mpi"
        )
    if not array.flags.c_contiguous:
        raise TypeError("Nccl: it takes C-contiguous arrays; use cupy.ascontiguousarray")
    return array.data.ptr


def _modules():
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
