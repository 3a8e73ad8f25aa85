# SPDX-License-Identifier: MIT
"""A kernel that can be called: its arguments checked, its faults told in words."""

import ctypes
import functools
import math
import os
from dataclasses import dataclass, fields

import numpy as np

from convstudy.emulator import build, errors
from convstudy.emulator.errors import EmulatorError
from convstudy.emulator.loops import Loops, find_loops

MAX_THREADS = 1024
MAX_SHARED_BYTES = 227 * 1024
MAX_GRID = (2**31 - 1, 65535, 65535)


# ---- launch.h, mirrored --------------------------------------------------------------------------
class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("end", ctypes.c_uint64))


class _TracedBlock(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("loop", ctypes.c_int32),
        ("begins", ctypes.c_uint32),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_void_p),
        ("dynamic_shared", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("argument_block", _Range),
        ("arrays", ctypes.POINTER(_Range)),
        ("traced_blocks", ctypes.POINTER(_TracedBlock)),
        ("loop_parents", ctypes.POINTER(ctypes.c_int32)),
        ("array_count", ctypes.c_uint32),
        ("block_count", ctypes.c_uint32),
        ("loop_count", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_bytes", ctypes.c_uint32),
    )


_COUNTED = (
    *("global_loads", "global_stores", "shared_loads", "shared_stores"),
    *("global_load_bytes", "global_store_bytes", "shared_load_bytes", "shared_store_bytes"),
    *("global_load_requests", "global_store_requests"),
    *("global_load_sectors", "global_store_sectors", "atomics", "barriers"),
)


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in _COUNTED)


class _Site(ctypes.Structure):
    _fields_ = (
        ("pc", ctypes.c_uint64),
        ("line", ctypes.c_uint32),
        ("access", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
    )


class _Fault(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("sites", ctypes.c_uint32),
        ("here", _Site),
        ("other", _Site),
        ("shared", _Range),
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("index", ctypes.c_int64),
        ("type", ctypes.c_char * 128),
    )


class _Parameter(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char),
        ("pointee_kind", ctypes.c_char),
        ("size", ctypes.c_short),
        ("pointee_size", ctypes.c_short),
    )


# In the order of launch.h's FaultKind, from 1.
_FAULTS = (
    errors.OutOfBounds,
    errors.OutOfBounds,
    errors.MisalignedAccess,
    errors.SharedRace,
    errors.UninitialisedShared,
    errors.GlobalRace,
    errors.DivergentBarrier,
    errors.DivergentBarrier,
    errors.Deadlock,
    errors.Deadlock,
    errors.EmulatorFault,
)
_INDEX_OUT_OF_BOUNDS, _EXITED_BEFORE_BARRIER, _ENDLESS_PHASE, _MISUSE = 2, 8, 10, 11
_VERBS = ("reads", "writes", "updates", "waits", "fills")
_COPY = 4


@dataclass(frozen=True)
class Counts:
    """What a launch did. Launches add up with ``+``.

    Attributes
    ----------
    threads, blocks : int
    barriers : int
        Block barriers, one for each time a block passed one.
    global_loads, global_stores, shared_loads, shared_stores : int or None
        Accesses, one for each thread that made it; a float4 is one of 16 bytes. None where the
        launch was not checked, as all that follows. A copy of the TMA is a global load, and a
        shared store for each line of 128 bytes; of the operands of a warpgroup's product, each 16
        bytes are a shared load.
    global_load_bytes, global_store_bytes, shared_load_bytes, shared_store_bytes : int or None
        Their sizes, added up.
    atomics : int or None
        Atomic operations, global and shared; they count as neither loads nor stores.
    global_load_requests, global_store_requests : int or None
        Warp-level instructions: accesses that the lanes of a warp made from one place of the
        code, the n-th of each lane since the warp last waited with the n-th of the others.
    global_load_sectors, global_store_sectors : int or None
        Distinct 32-byte sectors that each request touched, added up: 4 for a warp of neighbouring
        floats, 32 for a warp that strides.
    """

    threads: int
    blocks: int
    barriers: int
    global_loads: int | None = None
    global_stores: int | None = None
    shared_loads: int | None = None
    shared_stores: int | None = None
    global_load_bytes: int | None = None
    global_store_bytes: int | None = None
    shared_load_bytes: int | None = None
    shared_store_bytes: int | None = None
    atomics: int | None = None
    global_load_requests: int | None = None
    global_store_requests: int | None = None
    global_load_sectors: int | None = None
    global_store_sectors: int | None = None

    def __add__(self, other):
        if not isinstance(other, Counts):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Counts(*(None if a is None or b is None else a + b for a, b in pairs))


class EmulatedKernel:
    """A compiled kernel; `emulator.load` makes it.

    Attributes
    ----------
    entry, filename : str
    checked : bool
    static_shared_bytes : int
        What the kernel's `__shared__` arrays of known size hold.
    """

    def __init__(self, source, entry, filename, checked):
        self.entry, self.filename, self.checked = entry, filename, checked
        self._path = build.kernel(source, entry, filename, checked)
        self._library = build.open_library(self._path)
        self._launch = build.open_library(build.runtime()).emu_launch
        self._launch.restype = None
        self._shared = build.shared_arrays(self._path)
        self.static_shared_bytes = sum(size for _, size, _ in self._shared)
        # Blocks that meet in an atomic would add in another order at each run.
        parallel = not checked and "atomic" not in source
        self._workers = len(os.sched_getaffinity(0)) if parallel else 1
        loops = find_loops(build.disassemble(self._path)) if checked else Loops([], [])
        self._loops = (
            (_TracedBlock * max(len(loops.blocks), 1))(*loops.blocks),
            (ctypes.c_int32 * max(len(loops.parents), 1))(*loops.parents),
        )
        parameters = ctypes.POINTER(_Parameter)()
        count = self._library.emu_parameters(ctypes.byref(parameters))
        self._parameters = parameters[:count]

    def __repr__(self):
        mode = "checked" if self.checked else "unchecked"
        return f"EmulatedKernel({self.entry!r}, {self.filename!r}, {mode})"

    def __call__(self, grid, block, args, shared_bytes=0):
        """Run the kernel to its end.

        Parameters
        ----------
        grid, block : int or tuple of int
            Blocks, and threads of a block, along x, y and z; what is left out is 1.
        args : sequence
            NumPy arrays (C-contiguous; passed as pointers) and NumPy scalars (by value). A Python
            int is 8 bytes and a float is a double, as in CuPy. np.uint64(0) is a null pointer.
        shared_bytes : int
            Dynamic shared memory of each block.

        Returns
        -------
        Counts

        Raises
        ------
        EmulatorError
            Where the launch is not one that CUDA would accept.
        EmulatorFault
            Where the kernel has a fault. What it wrote before stays written.
        """
        grid = self._size("grid", grid, MAX_GRID)
        block = self._size("block", block, (1024, 1024, 64))
        if math.prod(block) > MAX_THREADS:
            raise EmulatorError(
                f"{self.entry}: block {block} has {math.prod(block)} threads; "
                f"the most is {MAX_THREADS}"
            )
        room = MAX_SHARED_BYTES - self.static_shared_bytes
        if not 0 <= shared_bytes <= room:
            raise EmulatorError(
                f"{self.entry}: {shared_bytes} bytes of dynamic shared memory; with "
                f"{self.static_shared_bytes} static ones a block can have 0 to {room} (227 KiB in "
                "all)"
            )
        arrays, pack = self._pack(args)
        ranges = (_Range * max(len(arrays), 1))(
            *(_Range(a.ctypes.data, a.ctypes.data + a.nbytes) for _, a in arrays)
        )
        begin = ctypes.addressof(pack)
        blocks = math.prod(grid)
        launch = _Launch(
            ctypes.cast(self._library.emu_call, ctypes.c_void_p),
            ctypes.cast(self._library.emu_dynamic_shared, ctypes.c_void_p),
            begin,
            _Range(begin, begin + ctypes.sizeof(pack)),
            ranges,
            *self._loops,
            len(arrays),
            *map(len, self._loops),
            self.checked,
            min(self._workers, blocks),
            grid,
            block,
            shared_bytes,
        )
        counts, fault = _Counts(), _Fault()
        self._launch(ctypes.byref(launch), ctypes.byref(counts), ctypes.byref(fault))
        if fault.kind:
            raise self._fault(fault, arrays)
        size = {"threads": blocks * math.prod(block), "blocks": blocks}
        counted = _COUNTED if self.checked else ("barriers",)
        return Counts(**size, **{name: getattr(counts, name) for name in counted})

    def _size(self, what, size, limits):
        size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        if not 1 <= len(size) <= 3 or not all(isinstance(n, (int, np.integer)) for n in size):
            raise EmulatorError(f"{self.entry}: {what} must be one to three integers, got {size}")
        size = tuple(int(n) for n in size) + (1,) * (3 - len(size))
        if any(not 1 <= n <= limit for n, limit in zip(size, limits, strict=True)):
            raise EmulatorError(
                f"{self.entry}: {what} {size} must be at least 1 and at most {limits} along x, y, z"
            )
        return size

    # ---- arguments -------------------------------------------------------------------------------
    def _pack(self, args):
        """Return the arrays among `args`, with their places, and the block that holds all."""
        if len(args) != len(self._parameters):
            raise EmulatorError(
                f"{self.entry} takes {len(self._parameters)} arguments, got {len(args)}"
            )
        arrays, values = [], []
        for i, (arg, parameter) in enumerate(zip(args, self._parameters, strict=True)):
            if isinstance(arg, np.ndarray):
                self._check_array(i, arg, parameter)
                arrays.append((i, arg))
                values.append(arg.ctypes.data.to_bytes(8, "little"))
            else:
                values.append(self._value(i, arg, parameter))
        # First the table of pointers, then the values, each on a boundary that any type can take.
        boundary = 64
        start = -(-8 * len(values) // boundary) * boundary
        offsets = []
        for value in values:
            offsets.append(start)
            start += -(-len(value) // boundary) * boundary
        raw = (ctypes.c_char * (start + boundary))()
        skip = -ctypes.addressof(raw) % boundary
        pack = (ctypes.c_char * max(start, 1)).from_buffer(raw, skip)
        base = ctypes.addressof(pack)
        table = (ctypes.c_uint64 * max(len(values), 1)).from_buffer(pack)
        for i, (offset, value) in enumerate(zip(offsets, values, strict=True)):
            table[i] = base + offset
            ctypes.memmove(base + offset, value, len(value))
        return arrays, pack

    def _check_array(self, i, array, parameter):
        who = f"{self.entry}: argument {i}"
        if parameter.kind != b"p":
            raise EmulatorError(f"{who} is an array; the kernel takes {self._say(parameter)} there")
        if not array.flags.c_contiguous:
            raise EmulatorError(f"{who} is not C-contiguous; pass np.ascontiguousarray of it")
        kind = {"f": b"f", "i": b"i", "u": b"i", "b": b"i"}.get(array.dtype.kind, b"s")
        any_bytes = parameter.pointee_kind == b"s" or (
            parameter.pointee_kind == b"i" and parameter.pointee_size == 1
        )
        same = kind == parameter.pointee_kind and array.itemsize == parameter.pointee_size
        if not any_bytes and not same:
            raise EmulatorError(
                f"{who} is an array of {array.dtype}; the kernel takes {self._say(parameter)} there"
            )

    def _value(self, i, arg, parameter):
        who = f"{self.entry}: argument {i}"
        if isinstance(arg, np.generic):
            value = arg
        elif isinstance(arg, (bool, int, float)):
            value = np.asarray(arg)[()]
        else:
            raise EmulatorError(
                f"{who} is a {type(arg).__name__}; pass a NumPy array or a NumPy scalar"
            )
        kind = {"f": b"f", "V": b"s"}.get(value.dtype.kind, b"i")
        wanted = b"i" if parameter.kind == b"p" else parameter.kind
        if value.nbytes != parameter.size or kind != wanted:
            raise EmulatorError(
                f"{who} is a {type(arg).__name__} of {value.nbytes} bytes; "
                f"the kernel takes {self._say(parameter)} there"
            )
        return value.tobytes()

    @staticmethod
    def _say(parameter):
        names = {b"f": "floating-point number", b"i": "integer", b"s": "structure"}
        if parameter.kind != b"p":
            return f"a {parameter.size}-byte {names[parameter.kind]}"
        if parameter.pointee_kind in (b"s", b"p"):
            return "a pointer"
        return f"a pointer to {parameter.pointee_size}-byte {names[parameter.pointee_kind]}s"

    # ---- faults ----------------------------------------------------------------------------------
    def _fault(self, fault, arrays):
        line = self._line(fault.here)
        error = _FAULTS[fault.kind - 1](self._sentence(fault, arrays))
        error.line = line
        error.block, error.thread = tuple(fault.here.block), tuple(fault.here.thread)
        if fault.sites == 2:
            error.other_line = self._line(fault.other)
            error.other_block = tuple(fault.other.block)
            error.other_thread = tuple(fault.other.thread)
        return error

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _line_at(self, pc):
        return build.find_line(self._path, pc, self.filename)

    def _line(self, site):
        return site.line or (self._line_at(site.pc) if site.pc else None)

    def _where(self, site):
        return f"{self.filename}:{self._line(site) or '?'}"

    def _sentence(self, fault, arrays):
        here, other = fault.here, fault.other
        start = f"{self._where(here)}: {self.entry}: {_who(here)} {_VERBS[here.access]}"
        place = self._place(fault, arrays)
        kind = _FAULTS[fault.kind - 1]
        if fault.kind == _INDEX_OUT_OF_BOUNDS:
            return (
                f"{self._where(here)}: {self.entry}: {_who(here)} uses index {fault.index} "
                f"of an array of type {fault.type.decode()}"
            )
        if fault.kind == _MISUSE:
            return f"{self._where(here)}: {self.entry}: {_who(here)} {fault.type.decode()}"
        if fault.kind == _ENDLESS_PHASE:
            return f"{start} for the end of a phase that never comes: the barrier is {place}"
        if kind is errors.OutOfBounds:
            return f"{start} {fault.size} bytes out of bounds, {place}"
        if kind is errors.MisalignedAccess:
            return f"{start} {fault.size} bytes at an address that is no multiple of it, {place}"
        if kind is errors.UninitialisedShared:
            return f"{start} shared memory that no thread has written, {place}"
        if kind in (errors.SharedRace, errors.GlobalRace):
            then = f"{_who(other)} {_VERBS[other.access]} it at {self._where(other)}"
            way_out = "put __syncthreads() between"
            if _COPY in (here.access, other.access):
                way_out = "wait at a barrier of phases between"
            elif tuple(here.block) != tuple(other.block):
                way_out = "blocks of one launch are in no order"
            return f"{start} {place}, and {then} with nothing to order the two; {way_out}"
        if kind is errors.Deadlock:
            return f"{start} for lanes of its warp that will never arrive"
        if fault.kind == _EXITED_BEFORE_BARRIER:
            return f"{start} at a barrier, and {_who(other)} has returned without reaching it"
        return f"{start} at a barrier, and {_who(other)} at another, {self._where(other)}"

    def _place(self, fault, arrays):
        address, end = fault.address, fault.address + fault.size
        if fault.shared.begin <= address < fault.shared.end:
            return self._shared_place(address - fault.shared.begin)
        if address < 4096:
            return "through a null pointer"
        distance, i, array = (
            min(
                (max(a.ctypes.data - address, end - a.ctypes.data - a.nbytes, 0), i, a)
                for i, a in arrays
            )
            if arrays
            else (0, 0, None)
        )
        if array is None:
            return f"address {address:#x}"
        offset = address - array.ctypes.data
        if distance == 0:
            return f"byte {offset} of argument {i} (element {offset // array.itemsize})"
        side = "before the start" if offset < 0 else "past the end"
        return f"{distance} bytes {side} of argument {i} ({array.nbytes} bytes)"

    def _shared_place(self, offset):
        start, size, name = max(a for a in self._shared if a[0] <= offset)
        if not size:
            return f"byte {offset - start} of dynamic shared memory ({name})"
        if offset < start + size:
            return f"byte {offset - start} of shared array {name} ({size} bytes)"
        return f"{offset - start - size} bytes past the end of shared array {name} ({size} bytes)"


def _who(site):
    return f"thread {tuple(site.thread)} of block {tuple(site.block)}"
