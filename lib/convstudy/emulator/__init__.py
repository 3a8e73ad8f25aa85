# SPDX-License-Identifier: MIT
"""Runs CUDA C++ kernels, unmodified, on the CPU: counts what they do, and stops at their faults.

>>> import numpy as np
>>> text = '''
... extern "C" __global__ void twice(const float* x, float* y, int n) {
...     int i = blockIdx.x * blockDim.x + threadIdx.x;
...     if (i < n) y[i] = 2.0f * x[i];
... }'''
>>> x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
>>> counts = load(text, "twice")(4, 32, (x, y, np.int32(100)))
>>> float(y[99]), counts.global_loads, counts.global_load_sectors
(198.0, 100, 13)
>>> load(text, "twice")(4, 32, (x, y, np.int32(101)))  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
convstudy.emulator.errors.OutOfBounds: kernel.cu:4: twice: thread (4, 0, 0) of block (3, 0, 0) ...

g++ compiles the text of a .cu file behind a header that gives CUDA's built-ins a meaning
(cuda_cpu.h). Blocks run one after the other. The threads of a block are fibers (fiber.h): each
runs until it waits at a barrier, for its warp, or ends, and a barrier opens when every thread of
the block has come to it (runtime.cpp).

Two modes
---------
checked=True
    The compiler puts a call before every load and store (``-fsanitize=thread``), which the
    emulator answers in place of the sanitiser's own library (checker.cpp). It counts the access,
    and raises before it happens where it is a fault. About 30 ns an access, on one core.
checked=False
    Optimised, on all cores, counting barriers alone. An access out of bounds may then crash the
    process. A kernel with atomics runs on one core, so that floats are added in one order.

Both round alike: products and sums are never contracted, and `fmaf` is one rounding. NVRTC does
contract ``a * b + c`` unless told not to: kernels that are to give the same bits on a GPU say
`fmaf` themselves.

What it finds
-------------
OutOfBounds
    An address outside all arrays, shared memory and the thread's own variables; an index outside
    the dimension of an array whose size the type states (shared or local).
MisalignedAccess
    A vector or a number at an address that is no multiple of its size.
SharedRace, GlobalRace
    Two threads at one address, one of them writing, and no barrier between: `__syncthreads()` for
    a block, `__syncwarp()`, a shuffle or a vote for the lanes that take part in it, a barrier of
    phases (mbarrier) for those who arrive and those who wait. Nothing orders the blocks of a
    launch. It does not take luck: the order is judged, not observed. Atomics do not race with each
    other; but what they order otherwise (a flag, a ticket) is not understood, and plain accesses
    that rely on it are called a race.

    A copy of the TMA is known to who has waited for it at its barrier, and a warpgroup reads its
    operands until its products have been waited for: a stage that is read too soon, or overwritten
    too soon, is a race like any other.
UninitialisedShared
    Shared memory read before any thread of the block wrote it. It also starts as NaN bytes. What
    an asynchronous copy is to bring counts as unwritten until its thread has waited for it.
DivergentBarrier, Deadlock
    Threads of a block at different barriers (told apart by their line), or gone while others
    wait; lanes waiting for lanes that never come; threads waiting for a phase that never ends,
    because arrivals or bytes are missing. In both modes.
EmulatorFault
    A barrier of phases of which the TMA was not told, or at which more arrive than it waits for;
    a copy by a map of another kind; products without `wgmma_fence()`, or of what a thread wrote to
    shared memory with no `shared_fence()` behind.

What it cannot say
------------------
Nothing about time: no clocks, bank conflicts, occupancy or caches (`clock64` is a mere counter).
Nothing about the memory model beyond barriers: `__threadfence()` is accepted, and not missed.
An access beyond one array that happens to hit another argument, or that leaves one part of
dynamic shared memory for another, is taken for what it hits. A thread that spins on a flag spins
for ever. Races are sought with the last write and the last two readers of each 4 bytes, so one of
several may go unnamed until another is mended. Special functions (`rsqrtf`, `__expf`) round as
the CPU's library does, not as a GPU; tensor cores drop what does not fit a sum, each GPU in a way
of its own. Registers of a product may be written while it is under way. Of the phases of a barrier
only two are told apart, as on a GPU: who waits a round too late may be found as a deadlock, or not.
Inline PTX is refused by name, but for what ``kernels/ptx.cuh`` and ``kernels/hopper.cuh`` wrap
(ptx_cpu.h, hopper_cpu.h); so are clusters, whose blocks would have to run at the same time, and
CUDA's headers and textures (the compiler does not know them).

Counts are of the loads that g++ leaves: one whose value nothing can have changed since is not
made again, in a loop either, as on a GPU; which ones nvcc finds may differ. Requests and sectors
follow the lanes of a warp through the loops of the machine code (loops.py), so that lanes which a
condition leaves out stay in step.
"""

import functools
import sys

from convstudy.emulator.errors import (
    Deadlock,
    DivergentBarrier,
    EmulatorError,
    EmulatorFault,
    GlobalRace,
    MisalignedAccess,
    OutOfBounds,
    SharedRace,
    UninitialisedShared,
)
from convstudy.emulator.kernel import Counts, EmulatedKernel

__all__ = [
    "Counts",
    "Deadlock",
    "DivergentBarrier",
    "EmulatedKernel",
    "EmulatorError",
    "EmulatorFault",
    "GlobalRace",
    "MisalignedAccess",
    "OutOfBounds",
    "SharedRace",
    "UninitialisedShared",
    "load",
]


def load(source, entry, filename="kernel.cu", checked=True, defines=()):
    """Compile a kernel, or return it as compiled before.

    Parameters
    ----------
    source : str
        CUDA C++, with no `#include` of a file of its own.
    entry : str
        Name of the kernel, which is ``extern "C" __global__``.
    filename : str
        What messages call the source.
    checked : bool
        Count and check every access.
    defines : sequence of (str, object)
        Macros to define before the source.

    Returns
    -------
    EmulatedKernel

    Raises
    ------
    EmulatorError
        Where g++ is missing or refuses the source (its message names `filename` and the line), or
        where the source has what is not emulated.
    """
    if not sys.platform.startswith("linux"):
        raise EmulatorError(
            f"the emulator needs Linux, this is {sys.platform}; run it in a Linux container"
        )
    return _load(source, entry, filename, bool(checked), tuple(defines))


@functools.cache
def _load(source, entry, filename, checked, defines):
    preamble = "".join(f"#define {name} {value}\n" for name, value in defines)
    text = f'{preamble}#line 1 "{filename}"\n{source}'
    return EmulatedKernel(text, entry, filename, checked)
