# SPDX-License-Identifier: MIT
"""What every test can use, and which tests a machine without a GPU leaves out."""

import zlib

import numpy as np
import pytest
from nhwc_arrays import Bench

from convstudy.device import EMULATOR, devices, get_device, why_no_gpu


def pytest_configure(config):
    if config.option.markexpr == "gpu" and not devices():
        raise pytest.UsageError(f"the tests of a GPU need one: {why_no_gpu()}")


def pytest_collection_modifyitems(items):
    if devices():
        return
    skip = pytest.mark.skip(
        reason='no CUDA device: run "make test-gpu" on a machine with one',
    )
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rng(request):
    """Random numbers: others for every test, the same on every run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(
    params=[
        pytest.param(lambda: EMULATOR, id="emulator"),
        pytest.param(get_device, id="gpu", marks=pytest.mark.gpu),
    ]
)
def bench(request):
    """Where a test of kernels runs them: on the emulator, and on a GPU where there is one."""
    return Bench(request.param())
