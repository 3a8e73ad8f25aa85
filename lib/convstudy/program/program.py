# SPDX-License-Identifier: MIT
"""Launches on arrays that are named before they exist: put together once, then run many times."""

import contextlib
import math
from dataclasses import dataclass, field, replace

import numpy as np

from convstudy.compile import Sequence, prepare
from convstudy.device import array_module, empty
from convstudy.program import arena
from convstudy.program.lanes import Does, Lanes, delayed, last_needed


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of a program: `size` numbers, side by side.

    Attributes
    ----------
    size : int
    dtype : dtype
    kept : bool
        Whether it keeps what it holds from run to run, zeros at first. All others share memory
        with those that live at other times.
    """

    size: int
    dtype: np.dtype
    kept: bool = False

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Tensor:
    """An image batch in a buffer, channels last; or some channels, and a part, of a wider one.

    Attributes
    ----------
    shape : (N, H, W, C)
    buffer : Buffer
    offset : int
        Of its first number in the buffer.
    strides : (int, int, int)
        Numbers from one image to the next, from row to row, and from pixel to pixel: the last is
        the pitch.
    """

    shape: tuple[int, int, int, int]
    buffer: Buffer
    offset: int
    strides: tuple[int, int, int]

    @property
    def pitch(self):
        return self.strides[2]

    @property
    def dtype(self):
        return self.buffer.dtype

    @property
    def pixels(self):
        n, h, w, _ = self.shape
        return n * h * w

    @property
    def is_whole(self):
        """Whether its numbers lie side by side."""
        _, h, w, c = self.shape
        return self.strides == (h * w * c, w * c, c)

    def part(self, channels, top=0, left=0, size=None):
        """Return channels ``(first, count)`` of it, and the part of `size` that begins there."""
        n, h, w, _ = self.shape
        height, width = size or (h, w)
        first, count = channels
        offset = self.offset + top * self.strides[1] + left * self.strides[2] + first
        return replace(self, shape=(n, height, width, count), offset=offset)


class Builder:
    """Takes down what is to be launched on what, and makes a `Program` of it.

    Attributes
    ----------
    function : str
        What is launched from here on is for.
    """

    def __init__(self, device):
        self.device, self.function = device, ""
        self._steps, self._beforehand, self._functions = [], [], []
        self._course, self._touched = [], []
        self._is_beside = False

    def buffer(self, size, dtype=np.float32, kept=False):
        """Return a new `Buffer`."""
        return Buffer(int(size), np.dtype(dtype), kept)

    def tensor(self, shape, dtype=np.float32, kept=False):
        """Return a new `Tensor` of (N, H, W, C) with a buffer of its own."""
        _, h, w, c = shape
        buffer = self.buffer(math.prod(shape), dtype, kept)
        return Tensor(tuple(shape), buffer, 0, (h * w * c, w * c, c))

    def run(self, launch, *arrays, constant=()):
        """Launch on `arrays`: tensors, buffers, (buffer, offset) pairs, or None for null.

        Parameters
        ----------
        constant : tuple of int
            Which of them, by number, are parameters that no run changes. What is made of these
            alone is made beforehand, and kept.
        """
        places = [_place(array) for array in arrays]
        if not isinstance(launch, Sequence):
            self._add(launch, places)
            return
        made, beforehand = self._made_beforehand(launch, len(places), constant)
        made |= {len(places) + i for i in launch.zeros}
        places += [
            (self.buffer(math.prod(shape), kept=i in made), 0)
            for i, shape in enumerate(launch.temporaries, start=len(places))
        ]
        for number, (step, chosen) in enumerate(launch.steps):
            given = [None if i is None else places[i] for i in chosen]
            if number in beforehand:
                self._beforehand.append((step, given))
            else:
                self._add(step, given)

    def _add(self, launch, places):
        self._course.append((Does.LAUNCH, len(self._steps), self._is_beside))
        self._steps.append((launch, places))
        self._functions.append(self.function)

    @staticmethod
    def _made_beforehand(launch, given, constant):
        """Return the temporaries that are made of constants alone, and the steps for that."""
        made, steps, seen = set(), set(), set(range(given))
        for number, (_, chosen) in enumerate(launch.steps):
            new = {i for i in chosen if i is not None} - seen
            seen |= new
            if new and set(chosen) - new and set(chosen) - new <= {*constant, *made}:
                made |= new
                steps.add(number)
        return made, steps

    @contextlib.contextmanager
    def beside(self):
        """Let what is launched within run beside what comes behind, until `join`.

        It begins when all before it has ended. What it writes nobody else may touch until then,
        nor write what it reads.
        """
        self._course.append((Does.FORK, None, False))
        self._is_beside = True
        try:
            yield
        finally:
            self._is_beside = False

    def join(self):
        """Let what is launched from here on begin when all that ran beside has ended."""
        self._course.append((Does.JOIN, None, False))

    def mark(self, name, *touched):
        """Name this place: whoever runs the program may do something when it is reached.

        Parameters
        ----------
        name : str
        *touched : Buffer
            What that reads or writes: both hold something before this place, and after.
        """
        here = len(self._steps)
        self._course.append((Does.REACH, name, self._is_beside))
        self._touched += [(step, each) for each in touched for step in (here - 1, here)]

    def finish(self):
        """Return the `Program`."""
        self.join()
        steps, beforehand = (
            tuple((launch, tuple(at)) for launch, at in each)
            for each in (self._steps, self._beforehand)
        )
        given = self._course, self._touched, self._functions
        course, touched, functions = map(tuple, given)
        return Program(self.device, steps, course, beforehand, functions, touched)


def _place(array):
    if array is None or isinstance(array, tuple):
        return array
    if isinstance(array, Tensor):
        return array.buffer, array.offset
    return array, 0


@dataclass(eq=False)
class Program:
    """A fixed list of launches on fixed memory.

    Attributes
    ----------
    device : Device
        A GPU, or the emulator.
    steps : tuple of (Launch, tuple of (Buffer, int) or None)
    course : tuple of (Does, int or str or None, bool)
        What a run does, in an order in which it may be done: which step is launched, or which mark
        reached, and whether beside others. What is beside comes as early as it may.
    beforehand : tuple of (Launch, tuple of (Buffer, int) or None)
        What is launched whenever parameters have changed, by `run_beforehand`.
    functions : tuple of str
        What each step is for, as `Builder.function` said.
    touched : tuple of (int, Buffer)
        What is used at a mark, with the numbers of the steps before and after it.
    arena_bytes, kept_bytes : int
        What is allocated for the buffers that share memory, and for those that are kept.
    allocated_bytes : int
        What was allocated in fact; 0 before that.
    least_bytes : int
        Of the shared ones that live at one time, at the worst step: `arena_bytes` cannot be less.
    """

    device: object
    steps: tuple
    course: tuple = ()
    beforehand: tuple = ()
    functions: tuple = ()
    touched: tuple = ()
    arena_bytes: int = field(init=False)
    kept_bytes: int = field(init=False)
    least_bytes: int = field(init=False)

    def __post_init__(self):
        spans = {}
        last_beside = last_needed(self.course)
        uses = [
            (i, buffer)
            for i, (_, places) in enumerate(self.steps)
            for buffer, _ in filter(None, places)
        ]
        for i, buffer in (*uses, *self.touched):
            first, last = spans.get(buffer, (i, i))
            spans[buffer] = min(first, i), max(last, last_beside.get(i, i))
        for _, places in self.beforehand:
            spans |= {buffer: (0, 0) for buffer, _ in places if buffer not in spans}
        self._kept = [buffer for buffer in spans if buffer.kept]
        self._shared = [buffer for buffer in spans if not buffer.kept]
        lifetimes = [arena.Lifetime(b.nbytes, *spans[b]) for b in self._shared]
        self._offsets, self.arena_bytes = arena.place(lifetimes)
        self.least_bytes = arena.most_alive(lifetimes)
        self.kept_bytes = sum(buffer.nbytes for buffer in self._kept)
        self._arrays, self.allocated_bytes = None, 0
        self._stream = None

    def allocate_once(self):
        """Allocate all memory unless that was done."""
        if self._arrays is None:
            self.allocate()

    def allocate(self, apart=False, given=None):
        """Allocate all memory now, so that `run` does not have to.

        Parameters
        ----------
        apart : bool
            Give each buffer memory of its own, full of NaN: on the emulator, a launch that reaches
            beyond its array is then caught, and so is one that reads what nobody wrote.
        given : dict of Buffer to array, optional
            Zeros that take the place of what would be allocated for a buffer that is kept.
        """
        self._arrays = dict(given or {})
        self.allocated_bytes = sum(array.nbytes for array in self._arrays.values())
        for buffer in self._kept:
            if buffer not in self._arrays:
                self._arrays[buffer] = self._zeros(buffer.size, buffer.dtype)
        if apart:
            for buffer in self._shared:
                self._arrays[buffer] = array = empty((buffer.size,), self.device, buffer.dtype)
                # All bits set are a NaN in every type.
                array.view(np.uint8)[...] = 0 if array.dtype.kind in "iu" else 255
                self.allocated_bytes += array.nbytes
        else:
            room = self._aligned(self.arena_bytes)
            for buffer, at in zip(self._shared, self._offsets, strict=True):
                self._arrays[buffer] = room[at : at + buffer.nbytes].view(buffer.dtype)
        self._bound, self._bound_beforehand = (
            [
                (launch, [None if place is None else self._at(*place) for place in places])
                for launch, places in steps
            ]
            for steps in (self.steps, self.beforehand)
        )

    def array(self, what):
        """Return the array of a buffer or a tensor: one-dimensional, from its first number on."""
        self.allocate_once()
        return self._at(*_place(what))

    def run(self, checked=True, reached=None, only=None, late=False):
        """Launch everything, on CuPy's current stream; on a GPU, return before it is done.

        Parameters
        ----------
        checked : bool
            On the emulator, count and check every access.
        reached : callable, optional
            ``reached(name)`` is called at each mark, between the launches, on the stream of those
            before it.
        only : set of int, optional
            The numbers of the steps to launch, none of them beside others; by default all are.
        late : bool
            On the emulator, do what runs beside others as late as it may be done, and not as
            early.
        """
        self.allocate_once()
        lanes = Lanes(self.device, self._beside_stream() if only is None else None)
        for does, which, is_beside in delayed(self.course) if late else self.course:
            if does is Does.FORK:
                lanes.fork()
            elif does is Does.JOIN:
                lanes.join()
            elif does is Does.REACH and reached:
                with lanes.on(is_beside):
                    reached(which)
                lanes.interrupt(is_beside)
            elif does is Does.LAUNCH and (only is None or which in only):
                launch, arrays = self._bound[which]
                with lanes.on(is_beside):
                    launch.run(self.device, arrays, checked, lanes.may_overlap(is_beside))

    def run_beforehand(self):
        """Make what is made of parameters alone: now, and whenever they have changed."""
        self.allocate_once()
        for launch, arrays in self._bound_beforehand:
            launch.run(self.device, arrays, False)

    @property
    def launches(self):
        """All that it launches, beforehand and in each run."""
        return tuple(launch for launch, _ in (*self.beforehand, *self.steps))

    def prepare(self):
        """Compile all that it launches."""
        prepare(self.launches, self.device)

    def _beside_stream(self):
        """Return a stream for what runs beside others, or None."""
        if not self.device.is_gpu or not any(is_beside for *_, is_beside in self.course):
            return None
        if self._stream is None:
            cuda = array_module(self.device).cuda
            with cuda.Device(self.device.index):
                self._stream = cuda.Stream(non_blocking=True)
        return self._stream

    def _at(self, buffer, offset):
        return self._arrays[buffer][offset:]

    def _zeros(self, size, dtype):
        array = self._aligned(size * dtype.itemsize)
        array[...] = 0
        return array.view(dtype)

    def _aligned(self, size):
        # CuPy's memory begins at a multiple of 512, NumPy's of 16.
        room = empty((size + arena.ALIGNMENT,), self.device, np.uint8)
        self.allocated_bytes += room.nbytes
        start = 0 if self.device.is_gpu else -room.ctypes.data % arena.ALIGNMENT
        return room[start : start + size]
