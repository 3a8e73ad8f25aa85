# SPDX-License-Identifier: MIT
"""The suite that times a forward pass function by function, on a small network."""

import numpy as np
import pytest

from convstudy.measure.suites import functions
from convstudy.measure.suites.network import Work
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps


@pytest.fixture
def cases(monkeypatch):
    network = UNet.initialised(0, width=4)
    images = np.random.default_rng(0).random((1, 3, 32, 48), np.float32)

    def expected():
        return network.forward(images, ReferenceOps())

    work = Work(network, images, network.least_size, expected)
    monkeypatch.setattr(functions, "unet_work", lambda n: work)
    options = functions.SUITE.options | {"repeats": 2}
    return {case.name: case for case in functions.SUITE.cases(options)}


def test_pytorch_is_timed_on_the_cpu_as_ours_is(cases):
    pytest.importorskip("torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"')
    rows = {row["labels"]["function"]: row for row in cases["pytorch-cpu"].run()}
    assert set(rows) == {
        *("convolution", "batch norm", "ReLU", "pooling", "up-convolution"),
        *("padding and concatenation", "head", "network"),
    }
    assert rows["network"]["check"]["passed"]
    assert all(len(row["samples_s"]) == 2 for row in rows.values())


def test_without_pytorch_that_case_is_skipped(monkeypatch, cases):
    monkeypatch.setattr(functions.pytorch, "why_not", lambda: "it is not here")
    found = {case.name: case for case in functions.SUITE.cases(functions.SUITE.options)}
    assert found["pytorch-cpu"].skip == "it is not here"
    assert found["cpu-blas"].skip is None
