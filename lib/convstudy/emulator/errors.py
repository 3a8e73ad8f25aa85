# SPDX-License-Identifier: MIT
"""What can go wrong: a source that does not run, a call that cannot be made, a kernel's fault."""


class EmulatorError(RuntimeError):
    """The emulator cannot compile or launch this, or the kernel has a fault."""


class EmulatorFault(EmulatorError):
    """A kernel did what CUDA forbids; its launch was abandoned there.

    Attributes
    ----------
    line : int or None
        Line of the kernel's file.
    block, thread : tuple of int
        Where it happened, (x, y, z).
    other_line, other_block, other_thread
        The same of the second thread of a race; None for other faults.
    """

    line = block = thread = other_line = other_block = other_thread = None


class OutOfBounds(EmulatorFault):
    """An access outside every array, or an index outside an array of known size."""


class MisalignedAccess(EmulatorFault):
    """An address that is no multiple of the access's size: a GPU stops there."""


class SharedRace(EmulatorFault):
    """Two threads of a block at one shared address, one writing, with no barrier between."""


class UninitialisedShared(EmulatorFault):
    """Shared memory read that no thread of the block has written."""


class GlobalRace(EmulatorFault):
    """Two threads at one global address, one writing, and nothing orders them."""


class DivergentBarrier(EmulatorFault):
    """Threads of a block at different barriers, or some at one and others gone."""


class Deadlock(EmulatorFault):
    """Lanes of a warp wait for lanes that will never arrive, or threads for a phase to end."""
