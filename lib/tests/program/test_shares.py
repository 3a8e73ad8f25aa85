# SPDX-License-Identifier: MIT
"""What a rank of a row is told is its own: which calls it makes, and what is exchanged."""

import pytest

from convstudy.models.unet import UNet
from convstudy.parallel.channels import cut_axes
from convstudy.program.shares import Shares
from convstudy.program.trace import trace

WIDTH, N, SIZE = 8, 2, 32
IMAGES, CHANNELS, OWN, REPLICATED = "images", "channels", "own images", "replicated"


def traced(cut_from, bilinear=False, row=2):
    network = UNet.initialised(0, width=WIDTH, bilinear=bilinear)
    images = 1 if cut_from == 0 else row
    shares = Shares(images, row, axes=cut_axes(network, cut_from))
    return trace(network, (N, 3, SIZE, SIZE), shares.recorder(N))


def exchanged(calls):
    return [call for call in calls if call.method == "exchange"]


@pytest.mark.parametrize(
    ("cut_from", "bilinear", "kinds"),
    [
        (4, False, [IMAGES, CHANNELS, OWN]),
        (4, True, [IMAGES, CHANNELS, OWN]),
        # Of the convolutions at levels 3 and 4, the first apart, and enlarging between them.
        (3, False, [IMAGES, *[CHANNELS] * 6, OWN]),
        # Interpolation takes channel by channel.
        (3, True, [IMAGES, *[CHANNELS] * 5, OWN]),
        (0, False, [*[CHANNELS] * 21, REPLICATED]),
    ],
)
def test_a_cut_layer_needs_all_channels_and_a_whole_one_its_own_images(cut_from, bilinear, kinds):
    found = traced(cut_from, bilinear)
    assert [call.options["kind"] for call in exchanged(found.calls)] == kinds
    assert found.output.shape == (N, 2, SIZE, SIZE)


def test_a_rank_has_a_part_of_the_channels_of_its_rows_images():
    found = traced(3, row=4)
    deep = [call for call in found.calls if call.method == "conv2d" and call.output.shape[2] <= 4]
    assert [call.output.shape[0] for call in deep] == [4 * N] * 6
    assert [call.output.shape[1] for call in deep] == [w * WIDTH // 4 for w in (8, 8, 16, 16, 8, 8)]
    assert all(call.inputs[0].shape[1] == call.parameters[0].shape[1] for call in deep)
    # What is joined is gathered at once, and each side put beside its own.
    (joined,) = [call for call in exchanged(found.calls) if len(call.options.get("sides", ())) == 2]
    assert joined.options["sides"] == (8 * WIDTH // 4,) * 2


def test_alone_nothing_is_exchanged():
    network = UNet.initialised(0, width=WIDTH)
    assert not exchanged(trace(network, (N, 3, SIZE, SIZE), Shares().recorder(N)).calls)
    assert Shares().shape("inc.bias", (8,)) == (8,)
