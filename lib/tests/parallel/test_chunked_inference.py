# SPDX-License-Identifier: MIT
"""Programs on streams: the scores are the network's, whatever the cut."""

import dataclasses

import numpy as np
import pytest

from convstudy.device import EMULATOR, devices
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel.inference import ChunkedInference
from convstudy.tolerance import assert_close

EMULATORS = (EMULATOR, dataclasses.replace(EMULATOR, index=1))


def network_of(width):
    network = UNet.initialised(7, width=width)
    network.randomise_statistics(8)
    return network


def test_scores_are_the_networks_and_their_order_the_images(rng):
    network, x = network_of(4), rng.standard_normal((3, 3, 16, 19), dtype=np.float32)
    expected = network.forward(x, ReferenceOps())
    for devices_, streams, chunks in ((EMULATORS, 1, None), (EMULATORS[:1], 2, 3)):
        inference = ChunkedInference(network, devices_, streams, chunks, "fp32")
        for turn in (slice(None), slice(None, None, -1)):  # what was there before is gone
            found = inference.run(np.ascontiguousarray(x[turn]), record=True)
            assert_close(found, expected[turn], *network.terms())
        assert [e["what"] for e in inference.timeline()][:3] == ["copy in", "compute", "copy out"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("streams", [1, 3])
def test_scores_on_gpus(precision, streams, rng):
    network, x = network_of(64), rng.standard_normal((7, 3, 33, 50), dtype=np.float32)
    expected = network.forward(x, ReferenceOps())
    inference = ChunkedInference(network, devices(), streams, 5, precision)
    for _ in range(3):
        found = inference.run(x)
        assert_close(found, expected, *network.terms(), precision=precision)
