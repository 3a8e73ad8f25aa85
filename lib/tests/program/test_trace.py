# SPDX-License-Identifier: MIT
"""What is read off a network, and what of it is made one."""

import numpy as np
import pytest

from convstudy.device import EMULATOR
from convstudy.models.resnet import ResNet
from convstudy.models.unet import UNet
from convstudy.models.vgg import VGG16
from convstudy.nn.reference import ReferenceOps
from convstudy.program import fuse
from convstudy.program.program import Builder
from convstudy.program.trace import trace


@pytest.fixture(params=[False, True], ids=["transposed", "bilinear"])
def network(request):
    return UNet.initialised(0, bilinear=request.param)


def test_shapes_are_those_of_a_run(network):
    found = trace(network, (2, 3, 17, 35))
    x = np.zeros((2, 3, 17, 35), np.float32)
    assert found.output.shape == network.forward(x, ReferenceOps(np.float32)).shape
    methods = [call.method for call in found.calls]
    assert methods.count("conv2d") == 18
    assert methods.count("pad_concat") == 4


def test_unet_is_fused(network):
    found = trace(network, (1, 3, 16, 31))
    operations = fuse.fuse(found)
    convolutions = [each for each in operations if isinstance(each, fuse.Convolution)]
    assert len(convolutions) == 18
    assert all(each.norm and each.relu for each in convolutions)
    assert [each.norm[0].name for each in convolutions[:2]] == [
        "inc.double_conv.1.weight",
        "inc.double_conv.4.weight",
    ]
    assert sum(each.pooled is not None for each in convolutions) == 4
    assert len(operations) == 18 + 4 + 4 + 1
    assert operations[-1].y is found.output


def test_what_is_joined_lies_where_it_is_joined(network):
    found = trace(network, (1, 3, 16, 31))
    operations = fuse.fuse(found)
    lies = fuse.homes(operations, found, Builder(EMULATOR), np.float32)
    joined = [each for each in operations if isinstance(each, fuse.Concatenation)]
    for each in joined:
        whole, skip, x = lies[each.y], lies[each.skip], lies[each.x]
        assert whole.buffer is skip.buffer is x.buffer
        assert (skip.offset, skip.pitch) == (0, whole.shape[3])
        assert x.shape[1:3] == each.x.shape[2:]
        top, left = each.corner
        assert x.offset == top * whole.strides[1] + left * whole.strides[2] + skip.shape[3]
    # At the uppermost level 15 enlarged columns stand beside 31: the last is a frame.
    assert lies[joined[-1].y].buffer.kept
    assert not lies[joined[0].y].is_whole or lies[joined[0].y].offset == 0


def test_classifiers_are_fused():
    network = ResNet.initialised(0, 50, num_classes=7, width=4)
    found = trace(network, (2, 3, 64, 64))
    assert found.output.shape == (2, 7)
    operations = fuse.fuse(found)
    kinds = [type(each) for each in operations]
    assert kinds.count(fuse.Convolution) == 53
    assert kinds[1] is fuse.Pooling
    assert kinds[-2:] == [fuse.Averaging, fuse.Linear]
    convolutions = [each for each in operations if isinstance(each, fuse.Convolution)]
    sums = [each for each in convolutions if each.residual]
    assert len(sums) == 16
    # One behind each block's sum, and between its convolutions.
    assert all(each.relu for each in sums)
    assert sum(each.relu for each in convolutions) == 1 + 3 * 16
    # What is added is there by then.
    places = {each.y: place for place, each in enumerate(operations)}
    assert all(places[each.residual] < places[each.y] for each in sums)
    assert operations[-1].y is found.output
    assert not operations[-1].relu


def test_linear_layers_are_filters_of_an_images_size():
    operations = fuse.fuse(trace(VGG16.initialised(0, num_classes=7, width=4), (1, 3, 40, 32)))
    averaging, *linear = operations[-4:]
    assert (type(averaging), averaging.size) == (fuse.Averaging, 7)
    assert [each.shape for each in linear] == [(256, 32, 7, 7), (256, 256, 1, 1), (7, 256, 1, 1)]
    assert [each.relu for each in linear] == [True, True, False]


def test_what_is_no_launch_says_so():
    network = UNet.initialised(0)
    network.apply = lambda x, ops: ops.relu(x)
    with pytest.raises(NotImplementedError, match="run it by ResidentOps"):
        fuse.fuse(trace(network, (1, 3, 16, 16)))
