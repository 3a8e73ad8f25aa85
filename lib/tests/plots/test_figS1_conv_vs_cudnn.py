# SPDX-License-Identifier: MIT
"""Against cuDNN: the faster of its layouts, the best kernel of each layer, and the sums."""

import numpy as np
import pytest
import rows

from convstudy import paths, tolerance
from convstudy.conv.algorithm import ALGORITHMS
from convstudy.plots import figS1_conv_vs_cudnn as fig
from convstudy.plots import (
    figS1_roofline,
    figS1_winners,
    tabS1_kernel_resources,
    tabS2_precision,
    tabS3_goals,
    tabS4_tuning,
)

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
            "value_badly_scaled_error": 2e-6 * seconds,
            "passed": (algorithm, layout, layer) != ("cudnn", "NCHW", "enc0a"),
            "intensity": 10.0 if layer == "enc0a" else 100.0,
            "height": 128,
            "width": 191,
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


def test_cudnn_is_flagged_where_its_faster_layout_is_beyond_tolerance(table):
    plotted = fig.compare(table[table["precision"] == "fp32"])
    assert set(plotted[~plotted["cudnn_passed"]]["layer"]) == {"enc0a", fig.ALL}
    shown = fig.display(plotted)["cuDNN's"]
    assert all(each.endswith(fig.BEYOND) for each in shown)


def test_errors_are_compared_layer_by_layer(table):
    (shown,) = fig.exactness(fig.compare(table)).to_dict("records")
    # Of the fastest kernels: 2 against 4 at one layer, 1 against 2 at the other.
    assert shown["error over cuDNN's, at most"] == "0.5"
    assert shown["the same, badly scaled"] == "0.5"
    older = table.drop(columns="value_badly_scaled_error")
    (shown,) = fig.exactness(fig.compare(older)).to_dict("records")
    assert shown["the same, badly scaled"] == ""


def test_the_fastest_kernel_of_each_layer_wins(table):
    drawn = figS1_winners.draw(table)
    won = drawn.table[drawn.table["precision"] == "tf32"].set_index("layer")
    assert won["algorithm"].to_dict() == {
        "enc0a": "conv2d_fprop_8_mma",
        "enc0b": "conv2d_fprop_7_warp_tiles",
    }
    assert won["ratio"].tolist() == [2.0, 2.0]
    written = [text.get_text() for axes in drawn.figure.axes for text in axes.texts]
    assert sorted(written) == ["7"] * 3 + ["8"] * 3
    assert drawn.svg().startswith(b"<?xml")
    assert figS1_winners.draw(rows.nothing()).figure is None


WIDTHS = {"here": 1e12}


def test_the_roof_is_the_lower_of_arithmetic_and_memory(table):
    drawn = figS1_roofline.draw(table, WIDTHS)
    found = drawn.table.set_index(["precision", "layer"])
    # 10 FLOP a byte are fed at 10 TFLOP/s; fp32 is a third of TF32's 40.
    assert found["roof_tflops"].to_dict() == pytest.approx(
        {
            ("fp32", "enc0a"): 10,
            ("fp32", "enc0b"): 40 / 3,
            ("tf32", "enc0a"): 10,
            ("tf32", "enc0b"): 40,
            ("bf16", "enc0a"): 10,
            ("bf16", "enc0b"): 80,
        }
    )
    assert set(found.xs("enc0a", level="layer")["bound"]) == {"memory"}
    assert set(found.xs("enc0b", level="layer")["bound"]) == {"arithmetic"}
    assert found.loc[("fp32", "enc0a"), "roof_share"] == pytest.approx(5 / 10)
    assert found.loc[("fp32", "enc0a"), "units_tflops"] == 10
    assert np.isnan(found.loc[("tf32", "enc0a"), "units_tflops"])
    assert drawn.png().startswith(b"\x89PNG")
    # Where memory was not measured, arithmetic is the only roof.
    alone = figS1_roofline.layers(table, {})
    assert set(alone["bound"]) == {"arithmetic"}
    assert alone["roof_tflops"].tolist() == alone["peak_tflops"].tolist()
    assert figS1_roofline.draw(rows.nothing(), {}).figure is None


def test_memory_is_as_wide_as_it_was_measured():
    assert figS1_roofline.bandwidths(("nvidia-h200",))["nvidia-h200"] == pytest.approx(4.4e12, 0.1)
    assert figS1_roofline.bandwidths(("amd-epyc-2c",)) == {}


@pytest.fixture
def goals(tmp_path, monkeypatch):
    """Goals of the tests' own: twice for fp32, and for TF32 more than its roof allows."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    lines = ["fprop,fp32,1,2", "fprop,tf32,1,1000", "fprop,bf16,1,4", "wgrad,fp32,1,1"]
    (tmp_path / "goals.csv").write_text("\n".join(["pass,precision,n,goal", *lines]) + "\n")


def test_a_goal_that_is_missed_has_its_reason(table, goals):
    drawn = tabS3_goals.draw(table, WIDTHS)
    found = drawn.table.set_index(["pass", "precision"])
    assert found["ratio"].tolist()[:3] == [2.0] * 3
    assert found.loc[("fprop", "fp32"), "reason"] == ""
    # cuDNN takes 4 s and 2 s; at 10 and 40 TFLOP/s, 10 TFLOP take 1 s and 0.25 s.
    assert found.loc[("fprop", "tf32"), "roof_ratio"] == pytest.approx(6 / 1.25)
    assert found.loc[("fprop", "tf32"), "reason"] == "the roofline allows 4.8×"
    # To be four times as fast, enc0a may take 1 s and takes 2, enc0b 0.5 s and takes 1.
    assert found.loc[("fprop", "bf16"), "reason"] == (
        "most is lost at enc0a (2×, 50% of what memory allows), "
        "enc0b (2×, 12% of what arithmetic allows)"
    )
    assert found.loc[("wgrad", "fp32"), "reason"] == tabS3_goals.MISSING
    shown = tabS3_goals.display(drawn.table)
    assert shown["met"].tolist() == ["✓", "", "", ""]
    told = tabS3_goals.in_the_way(drawn.table).splitlines()
    assert told[0] == "here: fprop, tf32, N = 1: 2× of 1000×: the roofline allows 4.8×"
    assert told[2] == "here: wgrad, fp32, N = 1: ? of 1×: not all 18 layers are measured"
    assert tabS3_goals.draw(rows.nothing(), {}).table.empty


def test_tuning_is_compared_with_what_the_estimates_took(monkeypatch):
    first, second = "conv2d_fprop_8_mma splits=1", "conv2d_fprop_10_wgmma splits=2"

    def row(layer, taken, samples):
        algorithm, choice = taken.split(" ")
        return {
            "pass": "fprop",
            "precision": "tf32",
            "n": 1,
            "layer": layer,
            "algorithm": algorithm,
            "choice": choice,
            "median_s": min(map(np.median, samples)),
            "value_candidates": [first, second],
            "value_candidate_samples_s": samples,
        }

    measured = [row("enc0b dec0b", second, [[3, 4, 5], [1, 2, 3]]), row("enc1a", first, [[1], [9]])]
    monkeypatch.setattr(tabS4_tuning.records, "table", lambda *_: rows.table(measured))
    drawn = tabS4_tuning.draw(("here",))
    (found,) = drawn.table.to_dict("records")
    assert (found["layers"], found["tried"], found["changed"]) == (3, 4, 2)
    assert (found["estimated_ms"], found["tuned_ms"]) == (9000, 5000)
    assert found["gain"] == pytest.approx(9 / 5)
    (shown,) = tabS4_tuning.display(drawn.table).to_dict("records")
    assert shown["other kernels or cuts"] == "2 of 3 layers"
    monkeypatch.setattr(tabS4_tuning.records, "table", lambda *_: rows.nothing())
    assert tabS4_tuning.draw(("here",)).table.empty


def test_there_is_a_goal_for_each_pass_precision_and_batch():
    goals = tabS3_goals.goals()
    assert len(goals) == 27 == len(goals.drop_duplicates(["pass", "precision", "n"]))
    assert goals["goal"].between(1, 3).all()


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
