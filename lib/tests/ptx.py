# SPDX-License-Identifier: MIT
"""A launch's kernel as PTX, in which its loads and its bounds can still be read."""

import functools
import re

import pytest

from convstudy import compile


@functools.cache
def ptx(launch):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", exc_type=ImportError)
    text = compile.source(launch.kernel, launch.defines)
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", "-arch=compute_90"))
    found = nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)
    return found.decode() if isinstance(found, bytes) else found


def bound(launch):
    """Return the threads of a block that the kernel is compiled for: a GPU refuses more."""
    return int(re.search(r"\.maxntid (\d+)", ptx(launch))[1])
