# SPDX-License-Identifier: MIT
"""What the driver is given, seen by a library of its own functions that writes it down."""

import ctypes
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest

from convstudy import compile, driver, paths
from convstudy.device import EMULATOR

NOTES = """
#include <cuda.h>
#include <string.h>
static int status;
static unsigned long long notes[16];
static double numbers[4];
extern "C" void answer(int with) { status = with; }
extern "C" unsigned long long *written() { return notes; }
extern "C" double *given() { return numbers; }
extern "C" CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **p, void **extra)
{
    const unsigned long long all[] = {
        c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
        c->sharedMemBytes, (unsigned long long)c->hStream, c->numAttrs, c->attrs[0].id,
        (unsigned long long)c->attrs[0].value.programmaticStreamSerializationAllowed,
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, (unsigned long long)f,
        *(unsigned long long *)p[0], extra != 0};
    memcpy(notes, all, sizeof all);
    numbers[0] = *(int *)p[1];
    numbers[1] = *(float *)p[2];
    numbers[2] = ((unsigned char *)p[3])[127];
    return (CUresult)status;
}
extern "C" CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute which, int value)
{
    const unsigned long long all[] = {
        (unsigned long long)f, which == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
        (unsigned long long)value};
    memcpy(notes, all, sizeof all);
    return (CUresult)status;
}
"""


def headers():
    import nvidia

    found = [each for root in nvidia.__path__ for each in Path(root).glob("*/include/cuda.h")]
    return found[0].parent if found else None


@pytest.fixture
def library(tmp_path, monkeypatch):
    folder = headers()
    if folder is None:
        pytest.skip("cuda.h is not here; it comes with the package nvidia-cuda-runtime")
    (tmp_path / "notes.cpp").write_text(NOTES)
    made = tmp_path / "notes.so"
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-I{folder}", "-o", made, tmp_path / "notes.cpp"], check=True
    )
    library = ctypes.CDLL(str(made))
    library.written.restype = ctypes.POINTER(ctypes.c_ulonglong)
    library.given.restype = ctypes.POINTER(ctypes.c_double)
    monkeypatch.setattr(driver, "library", lambda: library)
    return library


ADDRESS = 0x7F0000001200


class OnGpu:
    """What CuPy's array shows of itself."""

    __cuda_array_interface__ = None
    data = types.SimpleNamespace(ptr=ADDRESS)


def arguments():
    whole = np.full(128, 7, np.uint8).view("V128")
    return OnGpu(), np.int32(-5), np.float32(0.25), whole


def test_the_driver_is_given_what_was_asked_for(library):
    driver.launch_overlapping(0x1234, (5, 6), (32,), 70_000, 0x99, arguments())
    assert library.written()[:15] == [
        *(5, 6, 1, 32, 1, 1, 70_000, 0x99),
        *(1, 6, 1, 6, 0x1234, ADDRESS, 0),
    ]
    assert library.given()[:3] == [-5, 0.25, 7]


def test_a_refusal_says_what_was_asked_for(library):
    library.answer(701)
    with pytest.raises(RuntimeError, match=r"error 701.*grid \(5,\).*70000 bytes"):
        driver.launch_overlapping(0x1234, (5,), (32,), 70_000, 0, arguments())


def test_large_clusters_are_asked_for(library):
    driver.allow_large_clusters(0x123456789A)
    assert library.written()[:3] == [0x123456789A, 1, 1]
    library.answer(801)
    with pytest.raises(RuntimeError, match=r"clusters of more than 8 blocks \(error 801\)"):
        driver.allow_large_clusters(0x1234)


def test_what_overlaps_waits():
    """A kernel that is launched early calls `wait_for_others`, and nobody else is."""
    including = {kernel for kernel in compile.kernels() if compile._includes(kernel, "overlap.cuh")}
    for kernel in including:
        text = (paths.KERNELS / f"{kernel}.cu").read_text()
        text += "".join(
            (paths.KERNELS / name).read_text()
            for name in compile._INCLUDE.findall(text)
            if name != "overlap.cuh"
        )
        assert "wait_for_others();" in text, kernel
    others = set(compile.kernels()) - including
    assert not any(compile._overlaps(kernel, EMULATOR) for kernel in others)
