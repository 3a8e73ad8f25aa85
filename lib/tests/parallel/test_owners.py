# SPDX-License-Identifier: MIT
"""Whose optimiser changes what: every parameter is somebody's, and small ones are everybody's."""

import dataclasses
import itertools

import pytest

from convstudy.models.unet import UNet
from convstudy.parallel.buckets import LAST_BYTES
from convstudy.parallel.channels import cut_axes
from convstudy.parallel.owners import BucketShares
from convstudy.program.shares import IMAGES, ROW, Shares
from convstudy.program.weights import Layout


def laid_out(width=64):
    network = UNet(width=width)
    shapes = {name: network.shapes[name] for name in network.trained}
    small = {name for name, shape in shapes.items() if len(shape) == 1}
    return Layout(shapes, first=small | {"outc.conv.weight"})


def numbers(run):
    return set(range(run.stop)[run])


@pytest.mark.parametrize("bucket_bytes", [4096, 2**18, 2**26])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_each_parameter_is_one_ranks_or_everybodys(ranks, bucket_bytes):
    layout = laid_out(8)
    every = [
        BucketShares(ranks, column=ranks, among=among, bucket_bytes=bucket_bytes)
        for among in range(ranks)
    ]
    runs = every[0].runs(layout)
    assert all(shares.runs(layout) == runs for shares in every)
    assert runs[0][1].start == 0
    for (_, before), (_, run) in itertools.pairwise(runs):
        assert before.stop == run.start
    assert runs[-1][1].stop == layout.size
    for group, run in runs:
        own = [shares.own(group, run) for shares in every]
        if group is None:
            assert own == [run] * ranks
        else:
            assert group == IMAGES
            assert all(part.start % 4 == (part.stop - part.start) % 4 == 0 for part in own)
            assert sum(part.stop - part.start for part in own) == run.stop - run.start
            assert set.union(*map(numbers, own)) == numbers(run)
    # All that is read as fp32 lies where none is alone.
    last = max(layout.places[name].stop for name in layout.first)
    assert runs[0][0] is None
    assert runs[0][1].stop >= last
    ((_, buckets),) = every[0].buckets(layout)
    assert layout.first <= set(buckets.members[-1])
    scattered = [run for group, run in runs if group == IMAGES]
    own = [part for part, each in zip(*(buckets.parts, buckets.are_scattered), strict=True) if each]
    assert scattered == own[::-1]


def test_two_ranks_share_nearly_all_of_unet():
    layout = laid_out()
    shares = BucketShares(2, column=2)
    (nobodys, first), *others = shares.runs(layout)
    assert nobodys is None
    assert 4 * first.stop <= LAST_BYTES
    assert {group for group, _ in others} == {IMAGES}
    ((_, buckets),) = dataclasses.replace(shares, images=1).buckets(layout)
    assert not any(buckets.are_scattered)


def test_one_alone_and_ranks_that_share_layers_change_all_that_they_have():
    layout = laid_out(8)
    assert BucketShares().runs(layout) == Shares().runs(layout) == [(None, slice(0, layout.size))]
    network = UNet(width=8)
    axes = cut_axes(network, 4)
    shares = BucketShares(2, 2, axes=axes)
    layout = Layout({name: shares.shape(name, network.shapes[name]) for name in network.trained})
    runs = shares.runs(layout)
    assert [group for group, _ in runs] == [None, ROW, None]
    assert [shares.own(*each) for each in runs] == [run for _, run in runs]
    assert not any(any(buckets.are_scattered) for _, buckets in shares.buckets(layout))
