# SPDX-License-Identifier: MIT
"""What is asked of NCCL, in what order and on which stream: a stand-in for CuPy writes it down."""

import contextlib
import gc
import os
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from convstudy.parallel import nccl
from convstudy.parallel.communicator import Alone, LostError, OverdueError
from convstudy.parallel.nccl import Nccl

CALLS = ("allReduce", "allGather", "broadcast", "reduceScatter", "send", "recv")


NOT_READY, ILLEGAL_ADDRESS = 600, 700


class Event:
    """Its pointer is what CUDA says when it is asked for it: 0, unless the stand-in says else."""

    def __init__(self, log, status, disable_timing=False):
        self.log, self.ptr, self.timed = log, status, not disable_timing

    def record(self, stream):
        self.log.append((stream.name, "record", self))

    def synchronize(self):
        raise RuntimeError(f"CUDA says {self.ptr}")


class Stream:
    def __init__(self, log, name):
        self.log, self.name, self.ptr = log, name, name

    def wait_event(self, event):
        self.log.append((self.name, "wait", event))


class Opened:
    """A communicator of NCCL's that keeps (stream, call, count) of what it is asked for."""

    def __init__(self, log, lost):
        self.log, self.lost = log, lost

    def __getattr__(self, name):
        if name not in CALLS:
            raise AttributeError(name)
        return lambda *given: self.log.append((given[-1], name, given[:-1]))

    def check_async_error(self):
        if self.lost:
            raise KeyError("unhandled system error")


@pytest.fixture
def stand_in(monkeypatch):
    state = SimpleNamespace(log=[], status=0, lost=False, version=22809)
    main, beside = Stream(state.log, "main"), Stream(state.log, "beside")
    cuda = SimpleNamespace(
        Device=Device,
        Stream=lambda non_blocking: beside,
        Event=lambda disable_timing=False: Event(state.log, state.status, disable_timing),
        runtime=SimpleNamespace(eventQuery=lambda pointer: pointer),
        get_current_stream=lambda index: main,
    )
    kinds = ("SUM", "AVG", "FLOAT32", "FLOAT64", "BFLOAT16", "INT64", "UINT8")
    library = SimpleNamespace(
        get_unique_id=lambda: (1,),
        get_version=lambda: state.version,
        NcclCommunicator=lambda size, name, rank: Opened(state.log, state.lost),
        NcclError=KeyError,
        **{f"NCCL_{kind}": kind for kind in kinds},
    )
    cupy = SimpleNamespace(cuda=cuda)
    monkeypatch.setattr(nccl, "modules", lambda: (cupy, library))
    return state


class Device(contextlib.nullcontext):
    def __init__(self, index):
        super().__init__()

    def use(self):
        pass


def on_gpu(count, dtype=np.float32, at=1000):
    flags, dtype = SimpleNamespace(c_contiguous=True), np.dtype(dtype)

    def rows(number, _):
        size = count // number
        return [on_gpu(size, dtype, at + i * size * dtype.itemsize) for i in range(number)]

    return SimpleNamespace(
        data=SimpleNamespace(ptr=at), size=count, dtype=dtype, flags=flags, reshape=rows
    )


def opened():
    return Nccl(Alone(), SimpleNamespace(index=0, is_gpu=True))


def test_a_sum_begins_behind_what_was_asked_for_and_ends_before_what_waits(stand_in):
    request = opened().start_all_reduce(on_gpu(10, at=77), "mean")
    request.wait()
    (made, before, begun, call, ended, waited) = stand_in.log
    assert (made[:2], before[:2]) == (("main", "record"), ("beside", "wait"))
    assert made[2] is before[2]
    assert begun[:2] == ("beside", "record")
    assert call == ("beside", "allReduce", (77, 77, 10, "FLOAT32", "AVG"))
    assert (ended[:2], waited[:2]) == (("beside", "record"), ("main", "wait"))
    assert ended[2] is waited[2]
    assert request.span == (begun[2], ended[2])
    assert not any(event.timed for event in request.span)


def test_sums_that_are_scattered_are_made_in_place_beside(stand_in):
    ranks = Nccl(Words(), SimpleNamespace(index=0, is_gpu=True))
    for ranks.rank, at in ((0, 80), (1, 100)):
        stand_in.log.clear()
        ranks.start_reduce_scatter(on_gpu(10, at=80)).wait()
        (_, before, _, call, ended, waited) = stand_in.log
        assert before[:2] == ("beside", "wait")
        assert call == ("beside", "reduceScatter", (80, at, 5, "FLOAT32", "SUM"))
        assert (ended[:2], waited[:2]) == (("beside", "record"), ("main", "wait"))
        assert ended[2] is waited[2]


def test_a_gather_may_go_on_beside(stand_in):
    ranks = Nccl(Words(), SimpleNamespace(index=0, is_gpu=True))
    stand_in.log.clear()
    ranks.start_all_gather(on_gpu(4, at=1), on_gpu(8, at=2)).wait()
    assert [entry for entry in stand_in.log if entry[1] == "allGather"] == [
        ("beside", "allGather", (1, 2, 4, "FLOAT32"))
    ]


def test_a_sum_that_is_waited_for_goes_beside_only_where_something_is_under_way(stand_in):
    ranks, array = opened(), on_gpu(4, at=1)
    ranks.all_reduce(array, "mean")
    begun = ranks.start_all_reduce(array)
    ranks.all_reduce(array)
    begun.wait()
    ranks.all_reduce(array)
    assert [where for where, call, _ in stand_in.log if call == "allReduce"] == [
        *("main", "beside", "beside", "main")
    ]


def test_all_else_is_on_the_current_stream(stand_in):
    ranks = opened()
    part, every = on_gpu(4, np.float64, at=1), on_gpu(8, np.float64, at=2)
    ranks.all_gather(part, every)
    ranks.reduce_scatter(every, part)
    ranks.broadcast(part, 0)
    ranks.send(part, 1)
    ranks.receive(part, 1)
    ranks.bare_all_reduce(part)
    assert stand_in.log == [
        ("main", "allGather", (1, 2, 4, "FLOAT64")),
        ("main", "reduceScatter", (2, 1, 4, "FLOAT64", "SUM")),
        ("main", "broadcast", (1, 1, 4, "FLOAT64", 0)),
        ("main", "send", (1, 4, "FLOAT64", 1)),
        ("main", "recv", (1, 4, "FLOAT64", 1)),
        ("main", "allReduce", (1, 1, 4, "FLOAT64", "SUM")),
    ]
    with pytest.raises(TypeError, match="got float16"):
        ranks.all_reduce(on_gpu(4, np.float16))


def test_a_lost_rank_and_one_that_stands_still_are_told(stand_in):
    ranks = opened()
    ranks.settle()
    stand_in.status, ranks.patience_s = NOT_READY, 0.2
    with pytest.raises(OverdueError, match=r"waited 0.2 s for its GPU"):
        ranks.settle()
    stand_in.lost = True
    with pytest.raises(LostError, match="rank 0 of 1 has lost another one"):
        opened().settle()


def test_a_gpu_that_has_failed_is_not_waited_for(stand_in):
    ranks = opened()
    stand_in.status = ILLEGAL_ADDRESS
    with pytest.raises(RuntimeError, match="CUDA says 700"):
        ranks.settle()


def test_communicators_end_with_the_process(stand_in):
    """A graph that has captured one may end later, and NCCL would wait for it."""
    ranks = opened()
    ended = weakref.ref(ranks._opened)
    del ranks
    gc.collect()
    assert ended() is not None


def test_where_nccl_is_not_installed_that_is_said(monkeypatch):
    def absent():
        raise ImportError("make setup EXTRAS=nccl")

    monkeypatch.setattr(nccl, "modules", absent)
    with pytest.raises(ImportError, match="EXTRAS=nccl"):
        opened()


def test_groups_of_ranks_have_their_own(stand_in):
    ranks = opened()
    half = ranks.split(1)
    assert half is not ranks
    assert (half.rank, half.size, half.device) == (0, 1, ranks.device)
    assert half.beside is ranks.beside
    ranks.barrier()
    assert ranks.exchange("word") == ["word"]
    with pytest.raises(SystemExit, match="enough"):
        ranks.abort("enough")
    stand_in.lost, stand_in.status = True, NOT_READY
    ranks.split(2)
    with pytest.raises(LostError, match="has lost another one"):  # of a group: all give up
        ranks.settle()


class Words(Alone):
    """Of one of two ranks, which hears its own words twice; of two machines, if told so."""

    size, hosts = 2, 1

    def exchange(self, value):
        return [value, value if self.hosts == 1 else None]


class Library:
    """NCCL in C: it writes down what it is asked for, and gives out NumPy's memory."""

    def __init__(self, log):
        self.log, self.memory, self.status = log, [], 0

    def ncclMemAlloc(self, pointer, size):
        self.memory.append(np.full(size.value, 255, np.uint8))
        pointer._obj.value = self.memory[-1].ctypes.data
        return self.status

    def ncclCommWindowRegister(self, handle, pointer, size, window, flags):
        at = self.memory[-1].ctypes.data
        self.log.append((handle.value, pointer.value == at, size.value, flags.value))
        return self.status

    def ncclGetLastError(self, handle):
        return b"no memory"


@pytest.fixture
def pair(stand_in, monkeypatch):
    """One of two ranks, and NCCL in C behind it."""
    library = Library(stand_in.log)
    monkeypatch.setattr(nccl.windows, "library", lambda: library)
    monkeypatch.setattr(Opened, "comm", 99, raising=False)
    cupy, _ = nccl.modules()
    cupy.ndarray = lambda shape, dtype, start: start.view(dtype)
    cupy.cuda.UnownedMemory = lambda pointer, size, owner: owner and library.memory[-1]
    cupy.cuda.MemoryPointer = lambda memory, offset: memory
    ranks = Nccl(Words(), SimpleNamespace(index=0, is_gpu=True))
    return SimpleNamespace(ranks=ranks, library=library)


def test_a_room_is_a_window_and_is_given_out_again(pair, stand_in):
    room, other = pair.ranks.room(10), pair.ranks.room(10)
    assert stand_in.log == [(99, True, 40, 1)] * 2
    assert (room.shape, room.dtype, room.any()) == ((10,), np.float32, False)
    room[:] = 1
    assert other is not room
    pair.ranks.give_back(None)
    assert pair.ranks.room(10) is not other
    pair.ranks.give_back(room)
    assert pair.ranks.room(11) is not room
    assert pair.ranks.room(10) is room
    assert not room.any()


def test_where_nccl_cannot_there_is_no_room_or_a_reason(pair, stand_in, monkeypatch):
    pair.library.status = 5
    with pytest.raises(RuntimeError, match=r"no memory \(5\); NCCL_WIN_ENABLE=0 does without"):
        pair.ranks.room(10)
    assert opened().room(10) is None  # one alone has nobody to reach
    monkeypatch.setattr(Words, "hosts", 2)
    assert Nccl(Words(), pair.ranks.device).room(10) is None
    monkeypatch.setattr(Words, "hosts", 1)
    stand_in.version = 22604
    assert Nccl(Words(), pair.ranks.device).room(10) is None
    stand_in.version = 22809

    def absent():
        raise OSError("libnccl.so.2: cannot open shared object file")

    monkeypatch.setattr(nccl.windows, "library", absent)
    assert Nccl(Words(), pair.ranks.device).room(10) is None


def test_nccl_is_told_how_many_blocks_unless_the_user_says(stand_in, monkeypatch):
    monkeypatch.delenv("NCCL_SYM_CTAS", raising=False)
    opened()
    assert os.environ["NCCL_SYM_CTAS"] == nccl.windows._BLOCKS
    monkeypatch.setenv("NCCL_SYM_CTAS", "5")
    opened()
    assert os.environ["NCCL_SYM_CTAS"] == "5"
