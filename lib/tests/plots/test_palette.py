# SPDX-License-Identifier: MIT
"""One look for one thing, and no two alike."""

import itertools

import pytest

from convstudy.conv.algorithm import ALGORITHMS
from convstudy.plots import palette


def test_every_algorithm_has_a_look_of_its_own():
    fprop = {row.id for row in ALGORITHMS.values() if row.which == "fprop"}
    assert fprop <= set(palette.ALGORITHMS)


@pytest.mark.parametrize(
    "group", [palette.ALGORITHMS, palette.FUNCTIONS, palette.ENVIRONMENTS], ids=["a", "f", "e"]
)
def test_no_two_of_a_group_look_alike(group):
    for one, other in itertools.combinations(group.values(), 2):
        assert one.label != other.label
        assert one.marker != other.marker, "grey print tells lines apart by their markers"
        assert (one.color, one.hatch) != (other.color, other.hatch)


def test_an_environment_has_the_colour_of_its_algorithm():
    tiled = palette.look("conv2d_fprop_3_tiled").color
    assert palette.look("1 GPU, tiled").color == tiled
    assert palette.look("2 GPUs, tiled + data parallel").color == tiled


def test_a_new_name_gets_a_look_that_stays():
    new = palette.look("conv2d_fprop_99_unheard_of")
    assert new.label == "conv2d_fprop_99_unheard_of"
    assert new == palette.look("conv2d_fprop_99_unheard_of")
    assert new.marker not in {each.marker for each in palette.ALGORITHMS.values()}
