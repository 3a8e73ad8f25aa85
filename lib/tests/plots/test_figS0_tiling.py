# SPDX-License-Identifier: MIT
"""The tile that is drawn is the kernel's: against sizes worked out by hand."""

import numpy as np
import pytest

from convstudy.plots import figS0_tiling as figure
from convstudy.problem import ConvProblem

TILED, BLOCKED = figure.KERNELS


@pytest.fixture(scope="module", params=figure.KERNELS)
def tile(request):
    problem = ConvProblem(n=1, c=2, h=13, w=40, k=16, r=3, s=3, padding=(1, 1))
    return figure.observe(request.param, problem)


def test_a_block_reads_its_outputs_and_a_rim_of_one(tile):
    owned = tile.thread >= 0
    rim = np.zeros_like(owned)
    for row, column in np.argwhere(owned):
        rim[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert np.array_equal(tile.pixels, rim)


def test_the_tile_is_what_the_launch_was_given(tile):
    has = tile.constants
    rows, columns = np.nonzero(tile.thread >= 0)
    wide = has.get("TILE_Q") or has["THREADS_Q"] * has["REG_Q"]
    high = has.get("TILE_P") or has["THREADS_P"]
    assert len(np.unique(columns)) == wide
    assert len(np.unique(rows)) == high
    assert tile.filters == (has.get("TILE_K") or has["THREADS_K"] * has["REG_K"])


def test_each_thread_owns_as_many_neighbours_as_it_has_registers_for(tile):
    owners, outputs = np.unique(tile.thread[tile.thread >= 0], return_counts=True)
    assert set(outputs) == {tile.constants.get("REG_Q", 1)}
    assert list(owners) == list(range(len(owners)))
    for owner in owners:
        rows, columns = np.nonzero(tile.thread == owner)
        assert len(set(rows)) == 1
        assert np.ptp(columns) == len(columns) - 1


def test_a_7x7_filter_with_stride_2_needs_a_wider_halo():
    problem = ConvProblem(n=1, c=1, h=40, w=60, k=4, r=7, s=7, stride=(2, 2), padding=(3, 3))
    tile = figure.observe(TILED, problem)
    high, wide = (len(np.unique(axis)) for axis in np.nonzero(tile.thread >= 0))
    assert wide == problem.q
    assert tile.pixels.sum() == (2 * high + 5) * problem.w
    with pytest.raises(ValueError, match="stride 1"):
        figure.draw([tile])


def test_work_is_counted_from_the_launch():
    tile = figure.observe(BLOCKED, ConvProblem(n=1, c=1, h=4, w=30, k=32, r=3, s=3, padding=(1, 1)))
    has = tile.constants
    words, products = tile.work
    assert words == 3 * (has["REG_Q"] + 2 + 3 * has["REG_K"])
    assert products == 9 * has["REG_Q"] * has["REG_K"]


def test_the_table_is_what_is_drawn(tile):
    drawn = figure.draw([tile])
    assert (drawn.table["what"] == "output").sum() == (tile.thread >= 0).sum()
    assert len(drawn.table) == tile.pixels.sum()
    shown = figure.display([tile]).iloc[0]
    assert shown["pixels it fetches"] == tile.pixels.sum()
    assert shown["its outputs of a filter"] == (tile.thread >= 0).sum()
