# SPDX-License-Identifier: MIT
"""Runs CUDA C++ kernels, unmodified, on the CPU: counts what they do and stops at their faults."""

import functools

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
    return _load(source, entry, filename, bool(checked), tuple(defines))


@functools.cache
def _load(source, entry, filename, checked, defines):
    preamble = "".join(f"#define {name} {value}\n" for name, value in defines)
    text = f'{preamble}#line 1 "{filename}"\n{source}'
    return EmulatedKernel(text, entry, filename, checked)
