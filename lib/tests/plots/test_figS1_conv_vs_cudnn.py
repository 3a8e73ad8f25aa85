# SPDX-License-Identifier: MIT
"""Against cuDNN: the faster of its layouts, the best kernel of each layer, and the sums."""

import pytest
import rows

from convstudy import tolerance
from convstudy.conv.algorithm import ALGORITHMS
from convstudy.plots import figS1_conv_vs_cudnn as fig
from convstudy.plots import tabS1_kernel_resources, tabS2_precision

# Seconds by layer; cuDNN in two layouts.
TIMES = {
    ("conv2d_fprop_7_warp_tiles", "NHWC"): (4.0, 1.0),
    ("conv2d_fprop_8_mma", "NHWC"): (2.0, 3.0),
    ("cudnn", "NCHW"): (4.0, 9.0),
    ("cudnn", "NHWC"): (8.0, 2.0),
}


@pytest.fixture
def table():
    return rows.table(
        {
            "pass": "fprop",
            "precision": precision,
            "n": 1,
            "layer": layer,
            "algorithm": algorithm,
            "layout": layout,
            "median_s": seconds,
            "flops": 1e13,
            "peak_flops": 1e13,
            "peak_tf32_flops": 4e13,
            "peak_bf16_flops": 8e13,
            "error": 1e-6 * seconds,
        }
        for precision in ("fp32", "tf32", "bf16")
        for (algorithm, layout), times in TIMES.items()
        for layer, seconds in zip(("enc0a", "enc0b"), times, strict=True)
    )


def test_each_layer_stands_beside_cudnns_faster_layout_and_sums_beside_sums(table):
    plotted = fig.compare(table)
    fp32 = plotted[plotted["precision"] == "fp32"].set_index(["algorithm", "layer"])
    warp, mma = "conv2d_fprop_7_warp_tiles", "conv2d_fprop_8_mma"
    ratios = {key: row["ratio"] for key, row in fp32.iterrows()}
    assert ratios == {
        (warp, "enc0a"): 1.0,
        (warp, "enc0b"): 2.0,
        (warp, fig.ALL): 6 / 5,
        (mma, "enc0a"): 2.0,
        (mma, "enc0b"): 2 / 3,
        (mma, fig.ALL): 6 / 5,
        (fig.BEST, fig.ALL): 6 / 3,
    }
    best = fp32.loc[(fig.BEST, fig.ALL)]
    assert (best["ours_ms"], best["cudnn_ms"]) == (3000, 6000)
    assert best["tflops"] == pytest.approx(2 / 3 * 10)
    assert best["peak_share"] == pytest.approx(2 / 3)
    assert best["max_rel_error"] == pytest.approx(2e-6)
    assert best["cudnn_max_rel_error"] == pytest.approx(4e-6)
    shares = plotted[plotted["algorithm"] == fig.BEST].set_index("precision")["peak_share"]
    assert shares["tf32"] == pytest.approx(1 / 6)
    assert shares["bf16"] == pytest.approx(1 / 12)


def test_a_kernel_that_lacks_a_layer_has_no_sum(table):
    lacking = table[(table["algorithm"] != "conv2d_fprop_8_mma") | (table["layer"] != "enc0a")]
    plotted = fig.compare(lacking)
    sums = plotted[plotted["layer"] == fig.ALL]["algorithm"]
    assert set(sums) == {"conv2d_fprop_7_warp_tiles", fig.BEST}


def test_winners_are_counted_by_layer(table):
    counted = fig.winners(fig.compare(table))
    assert sorted(counted["layers won"]) == [1] * 6


def test_it_is_drawn_and_shown(table):
    drawn = fig.draw(table)
    assert len(drawn.figure.axes) == 3
    assert drawn.png().startswith(b"\x89PNG")
    assert list(fig.display(drawn.table)["times as fast"]) == ["1.2", "1.2", "2"] * 3
    nothing = fig.draw(rows.nothing())
    assert nothing.figure is None
    assert list(nothing.table.columns) == list(fig.COLUMNS)


def test_resources_are_those_that_the_compiler_gives():
    drawn = tabS1_kernel_resources.draw()
    table = drawn.table
    assert set(table["arch"]) == set(tabS1_kernel_resources.ARCHITECTURES)
    assert (table["spill_bytes"] == 0).all()
    assert table["registers"].between(8, 255).all()
    halves = set(table[table["dtype"] == "bfloat16"]["kernel"])
    assert halves == {
        *(row.id for row in ALGORITHMS.values() if row.plan and "bf16" in row.precisions),
        "conv2d_splits_1_sum",
    }
    shown = tabS1_kernel_resources.display(table)
    assert len(shown) == table["kernel"].nunique() + len(halves)


def test_errors_fall_in_the_order_of_precision():
    table = tabS2_precision.draw().table
    errors = table.set_index(["algorithm", "precision", "input"])["error"]
    for kind in table["input"].unique():
        fused = errors["conv2d_fprop_4_register_blocked", "fp32", kind]
        split = errors["conv2d_fprop_8_mma", "fp32", kind]
        rounded = errors["conv2d_fprop_8_mma", "tf32", kind]
        assert split < 1.5 * fused
        assert 100 * split < rounded < 0.01
        halved = errors["conv2d_fprop_8_mma", "bf16", kind]
        assert rounded < halved < tolerance.tolerance("float32", 1, precision="bf16")
