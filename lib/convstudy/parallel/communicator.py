# SPDX-License-Identifier: MIT
"""What ranks say to each other: one interface, whoever carries it (`Mpi`, `Nccl`, or nobody).

A rank is one of several processes, or GPUs, that run the same program on different parts of the
work. Every method is called by all ranks, in one order, with arrays of one shape and type; `send`
and `receive` by two of them.
"""

import pickle
import time
from abc import ABC, abstractmethod

import numpy as np

OPERATIONS = ("sum", "mean")


class RanksError(RuntimeError):
    """Ranks cannot go on together, and all of them know: each raises it, with one message."""

    exit_status = 2


class OverdueError(RuntimeError):
    """A rank has waited for the others for too long, and they may not know."""


class LostError(RuntimeError):
    """A rank has lost another one, and others may not know."""


class Request(ABC):
    """Something that was begun, and goes on beside what its rank does."""

    @abstractmethod
    def advance(self):
        """Let it go on, and return whether it is done; return at once."""

    @abstractmethod
    def wait(self):
        """Return when it is done; on a GPU, let what is asked for from now on begin after it."""

    @property
    @abstractmethod
    def span(self):
        """When it began and ended: `time.perf_counter`'s seconds; on a GPU, two events."""


class Communicator(ABC):
    """A group of ranks.

    Arrays are C-contiguous; where methods change them, they do so in place. On a GPU every method
    but `settle`, `exchange`, `tell` and `barrier` returns before it is done, in the order of the
    current stream.

    Attributes
    ----------
    rank, size : int
        This rank's number, from 0, and how many there are.
    patience_s : float
        How long a rank waits for the others before it gives up: one that was stopped never comes.
    """

    rank: int
    size: int
    patience_s = 600.0

    @abstractmethod
    def start_all_reduce(self, array, operation="sum"):
        """Begin to make `array` the ranks' sum or mean, and return a `Request`.

        The array may not be touched before `Request.wait` has returned. All ranks get the same
        bits. On a GPU it begins when what is in the current stream is done, on a stream beside.
        """

    def all_reduce(self, array, operation="sum"):
        """Make `array` the ranks' sum or mean, and return it."""
        self.start_all_reduce(array, operation).wait()
        return array

    def start_reduce_scatter(self, array):
        """Begin to make this rank's part of `array` the ranks' sum, and return a `Request`.

        The array is `size` parts of one length, side by side; the others stay as they are. It may
        not be touched before, and begins, as `start_all_reduce` has it.
        """
        parts = array.reshape(self.size, -1)
        own = parts[self.rank].copy()
        self.reduce_scatter(parts, own)
        parts[self.rank] = own
        return _Done()

    def start_all_gather(self, part, out):
        """Begin what `all_gather` does, and return a `Request`; as `start_all_reduce` has it."""
        self.all_gather(part, out)
        return _Done()

    def room(self, count):  # noqa: B027, most have none
        """Return numbers that `start_all_reduce` adds up fastest, or None where any are as good.

        Returns
        -------
        (count,) float32 array or None
            Zeros, for `give_back` when they are no longer used.
        """

    def give_back(self, room):  # noqa: B027, most have nothing to do
        """Let what `room` has returned be returned again; all ranks at the same time."""

    @abstractmethod
    def bare_all_reduce(self, array):
        """Make `array` the ranks' sum by what carries it alone: what `all_reduce` is held to."""

    @abstractmethod
    def broadcast(self, array, root=0):
        """Make `array` what it is on rank `root`, and return it."""

    @abstractmethod
    def all_gather(self, part, out):
        """Write every rank's `part`, in their order, into `out` of shape (size, \\*part.shape).

        The part may be ``out[rank]``.
        """

    @abstractmethod
    def reduce_scatter(self, parts, out):
        """Write into `out` the ranks' sum of ``parts[rank]``; `parts` is (size, \\*out.shape)."""

    @abstractmethod
    def send(self, array, to):
        """Send an array to another rank, which calls `receive` at the same time."""

    @abstractmethod
    def receive(self, array, source):
        """Fill an array with what rank `source` sends, and return it."""

    @abstractmethod
    def barrier(self):
        """Return when every rank has come here."""

    @abstractmethod
    def split(self, color):
        """Return the communicator of the ranks that give the same number, in the same order."""

    @abstractmethod
    def abort(self, reason):
        """Say why on standard error, and end every rank: nothing that waits goes on waiting."""

    @abstractmethod
    def settle(self):
        """Return when all that was asked for on the current stream is done."""

    # ---- a few words, rather than numbers

    def exchange(self, value):
        """Return every rank's `value`, of any type that pickle knows, in the ranks' order."""
        content = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty((self.size, 1), np.int64)
        self._words.all_gather(np.array([content.size]), sizes)
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: content.size] = content
        every = np.empty((self.size, padded.size), np.uint8)
        self._words.all_gather(padded, every)
        return [
            pickle.loads(each[:count].tobytes())
            for each, count in zip(every, sizes[:, 0], strict=True)
        ]

    def tell(self, value, root=0):
        """Return rank `root`'s value, of any type that pickle knows."""
        content = np.frombuffer(pickle.dumps(value) if self.rank == root else b"", np.uint8)
        size = self._words.broadcast(np.array([content.size]), root)
        told = content.copy() if self.rank == root else np.empty(int(size[0]), np.uint8)
        return pickle.loads(self._words.broadcast(told, root).tobytes())

    @property
    def _words(self):
        """What carries NumPy arrays between these ranks."""
        return self

    def together(self, work):
        """Return ``work()``; where it fails on any rank, raise the same `RanksError` on all.

        Parameters
        ----------
        work : callable
            Talks to no other rank.
        """
        result, fault = None, None
        try:
            result = work()
        except Exception as error:
            if self.size == 1:
                raise
            fault = str(error) or type(error).__name__
        faults = self.exchange(fault)
        if any(faults):
            raise RanksError(described(faults))
        return result

    def agree(self, facts):
        """Raise the same `RanksError` on all ranks unless all have the same facts.

        Parameters
        ----------
        facts : dict of str to value
            Each is named and shown where ranks differ.
        """
        every = self.exchange(facts)
        names = list(dict.fromkeys(name for each in every for name in each))
        others = []
        for name in names:
            values = [each.get(name) for each in every]
            if any(value != values[0] for value in values):
                others.append(f"{name}: {described([repr(value) for value in values])}")
        if others:
            raise RanksError(
                f"the {self.size} ranks are not of one mind: {'; '.join(others)}. Start the same "
                "code with the same options on all of them"
            )


class Alone(Communicator):
    """One rank, which has nobody to talk to.

    Examples
    --------
    >>> Alone().all_reduce(np.arange(3.0))
    array([0., 1., 2.])
    """

    rank, size = 0, 1

    def start_all_reduce(self, array, operation="sum"):
        check_operation(operation)
        return _Done()

    def bare_all_reduce(self, array):
        pass

    def broadcast(self, array, root=0):
        return array

    def all_gather(self, part, out):
        out[0] = part

    def reduce_scatter(self, parts, out):
        out[...] = parts[0]

    def send(self, array, to):
        raise ValueError(f"Alone.send: there is no rank {to} to send to")

    def receive(self, array, source):
        raise ValueError(f"Alone.receive: there is no rank {source} to receive from")

    def barrier(self):
        pass

    def split(self, color):
        return self

    def settle(self):
        pass

    def abort(self, reason):
        raise SystemExit(f"convstudy: {reason}")


class _Done(Request):
    def __init__(self):
        self._at = time.perf_counter()

    def advance(self):
        return True

    def wait(self):
        pass

    @property
    def span(self):
        return self._at, self._at


def check_operation(operation):
    """Raise ValueError unless ranks can do that with numbers."""
    if operation not in OPERATIONS:
        raise ValueError(f"all_reduce: no operation {operation!r}; take {' or '.join(OPERATIONS)}")


def described(values):
    """Return what each rank has, the ranks that have the same together; None is nothing to say.

    Examples
    --------
    >>> described(["8", "8", "12", None])
    'ranks 0 and 1: 8; rank 2: 12'
    """
    by_value = {}
    for rank, value in enumerate(values):
        if value is not None:
            by_value.setdefault(value, []).append(rank)
    return "; ".join(f"{_ranks(ranks, len(values))}: {value}" for value, ranks in by_value.items())


def _ranks(ranks, size):
    if len(ranks) == size:
        return "every rank"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
