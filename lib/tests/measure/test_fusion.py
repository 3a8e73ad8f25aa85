# SPDX-License-Identifier: MIT
"""Which function each launch of a program is for, and that a function is timed by itself."""

import numpy as np
import pytest

from convstudy.device import EMULATOR
from convstudy.measure.suites import fusion
from convstudy.models.unet import UNet
from convstudy.program.backend import GpuBackend
from convstudy.program.inference import Inference
from convstudy.records import validate_result

SHAPE = (1, 3, 33, 34)


@pytest.fixture
def network():
    return UNet.initialised(0, width=8)


def test_every_launch_is_for_a_function(network):
    inference = fusion.functions(Inference(network, SHAPE, "fp32", EMULATOR).program)
    # Norms are folded, ReLU is in an epilogue, and nothing is joined or padded.
    assert set(inference) == {"convolution", "up-convolution", "pooling", "head", "images"}
    training = fusion.functions(GpuBackend(network, SHAPE, "fp32", device=EMULATOR).program)
    assert set(training) == set(inference) - {"pooling"} | {"batch norm", "loss", "optimiser"}
    assert training.count("convolution") >= 3 * 18


def test_parts_are_timed_apart_and_together_are_the_whole(network, monkeypatch):
    launched = {}

    def alternating(replays, calls, device, repeats):
        for name, run in replays.items():
            steps.clear()
            run()
            launched[name] = list(steps)
        return {name: [1e-3] * repeats for name in replays}

    steps, once = [], type(Inference(network, SHAPE, "fp32", EMULATOR).program.steps[0][0])
    run = once.run
    monkeypatch.setattr(once, "run", lambda self, *a: (steps.append(self.kernel), run(self, *a)))
    monkeypatch.setattr(fusion, "alternating", alternating)
    monkeypatch.setattr(fusion, "devices", lambda: (EMULATOR,))
    monkeypatch.setattr(fusion, "unet", lambda: network)
    monkeypatch.setattr(fusion, "images", lambda n: np.zeros(SHAPE, np.float32))
    labels = {"execution": "program", "what": "inference", "precision": "fp32", "n": 1}
    rows = fusion._functions("a name", labels, 3)
    for row in rows:
        validate_result(row, row["case"])
    whole = launched.pop("network")
    assert sorted(whole) == sorted(step for part in launched.values() for step in part)
    assert all("maxpool" in step for step in launched["pooling"])
    by_name = {row["labels"]["function"]: row["values"]["launches"] for row in rows}
    assert by_name["network"] == len(whole)
    kernels = {row["labels"]["function"]: row["values"]["kernels"].split() for row in rows}
    assert [name.split("_")[0] for name in kernels["pooling"]] == ["maxpool"]
    assert set(kernels["pooling"]) < set(kernels["network"])
    assert by_name["pooling"] == len(launched["pooling"]) == 4
