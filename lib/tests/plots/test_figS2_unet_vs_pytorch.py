# SPDX-License-Identifier: MIT
"""Against PyTorch: its faster layout, its best way, and what only one side measured."""

import math

import pytest
import rows

from convstudy.plots import figS2_unet_vs_pytorch as fig

TIMES = {
    ("ours", "NHWC"): (2.0, 100),
    ("pytorch-eager", "NCHW"): (9.0, 500),
    ("pytorch-eager", "NHWC"): (8.0, 400),
    ("pytorch-graph", "NHWC"): (3.0, 300),
}


def made(times=TIMES, **more):
    return rows.table(
        {
            "what": "inference",
            "precision": "bf16",
            "n": 16,
            "side": side,
            "layout": layout,
            "median_s": seconds,
            "value_peak_bytes": peak,
            "error": 0.01,
        }
        | more
        for (side, layout), (seconds, peak) in times.items()
    )


def test_the_best_way_counts():
    (row,) = fig.compare(made()).to_dict("records")
    assert row["ours_ms"] == 2000
    assert row["pytorch_eager_ms"] == 8000
    assert math.isnan(row["pytorch_compile_ms"])
    assert row["ratio_to_best"] == pytest.approx(1.5)
    assert (row["ours_peak_bytes"], row["pytorch_peak_bytes"]) == (100, 300)


def test_one_side_alone_is_no_comparison():
    alone = {key: each for key, each in TIMES.items() if key[0] == "ours"}
    assert fig.compare(made(alone)).empty
    assert fig.compare(made({k: v for k, v in TIMES.items() if k not in alone})).empty
    assert fig.draw(rows.nothing().assign(what=[], precision=[], n=[], side=[])).figure is None


def test_it_is_drawn_and_shown():
    drawn = fig.draw(made())
    assert drawn.figure is not None
    assert list(drawn.table.columns) == list(fig.COLUMNS)
    assert "1.5" in fig.display(drawn.table).to_string()
