# SPDX-License-Identifier: MIT
"""The loads that are drawn are those that arithmetic expects of each kernel."""

import pytest

from convstudy.plots import fig2_kernel_loads as figure
from convstudy.problem import ConvProblem

# No padding, so that no product is left out; 32 filters fill a warp of the naive kernel.
PROBLEM = ConvProblem(n=1, c=2, h=6, w=34, k=32, r=3, s=3)


@pytest.fixture(scope="module")
def counted():
    return figure.count(PROBLEM).set_index("algorithm")


def test_without_tiles_every_product_loads_both_operands(counted):
    for rung in ("1_naive", "2_coalesced"):
        row = counted.loc[f"conv2d_fprop_{rung}"]
        assert row["global_loads"] == 2 * PROBLEM.macs
        assert row["global_loads_per_mac"] == 2
        assert row["shared_loads"] == row["barriers"] == 0


def test_a_naive_warp_asks_for_one_sector_of_pixels_and_32_of_weights(counted):
    row = counted.loc["conv2d_fprop_1_naive"]
    assert row["sectors_per_request"] == pytest.approx((1 + 32) / 2)
    assert row["global_bytes_per_mac"] == pytest.approx(33)


def test_a_tiled_thread_reads_two_words_for_a_product(counted):
    row = counted.loc["conv2d_fprop_3_tiled"]
    # Threads beyond the image's edge read, too.
    threads = row["shared_loads"] / 2 / PROBLEM.terms
    assert threads == int(threads)
    assert threads * PROBLEM.terms >= PROBLEM.macs
    assert row["barriers_per_block"] == 2


def test_each_rung_goes_to_global_memory_less(counted):
    falling = counted["global_bytes_per_mac"]
    assert list(falling) == sorted(falling, reverse=True)
    words = counted["shared_loads_per_mac"]
    assert words["conv2d_fprop_4_register_blocked"] < words["conv2d_fprop_3_tiled"]


def test_a_bar_is_as_long_as_its_number(counted):
    drawn = figure.draw(counted.reset_index(), PROBLEM)
    for axes, (column, _) in zip(drawn.figure.axes, figure._PANELS, strict=True):
        assert [bar.get_width() for bar in axes.patches] == list(drawn.table[column])


def test_counting_twice_gives_the_same():
    assert figure.draw(figure.count(PROBLEM)).csv() == figure.draw(figure.count(PROBLEM)).csv()
