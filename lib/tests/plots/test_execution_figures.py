# SPDX-License-Identifier: MIT
"""Table 1, Fig. 1 and Fig. 4 plot what was measured: known medians in, the same numbers out."""

import math

import pandas as pd
import pytest

from convstudy.plots import (
    fig1_function_share,
    fig4_amdahl,
    fig4_batch,
    fig4_causes,
    fig4_clocks,
    fig4_execution_time,
    tab1_function_time,
)
from convstudy.plots.save import Drawn

TILED, NAIVE = "conv2d_fprop_3_tiled", "conv2d_fprop_1_naive"
COMMON = {
    "machine": "h200",
    "record": "20260101T000000Z-0123456-test",
    "commit": "0123456",
    "status": "ok",
    "reason": None,
    "stale": False,
    "algorithm": "",
    "rest": "",
    "n": 1,
    "clock": "synchronised",
}
NOTHING = pd.DataFrame(columns=["machine", "record", "commit", "case", "status", "stale"])


def rows(*changes):
    made = [COMMON | {"p20_s": c.get("median_s"), "p80_s": c.get("median_s")} | c for c in changes]
    return pd.DataFrame(made)


def skipped(**labels):
    return {"status": "skipped", "reason": "it needs a GPU", "median_s": math.nan} | labels


def is_drawn(drawn, name):
    assert isinstance(drawn, Drawn)
    assert drawn.name == name
    assert drawn.records == (COMMON["record"],)
    assert drawn.png() == drawn.png()
    assert drawn.svg().startswith(b"<?xml")


def in_text(drawn):
    """Return all that is written in a figure."""
    return " ".join(
        text.get_text() for text in drawn.figure.findobj(lambda each: hasattr(each, "get_text"))
    )


def functions():
    resident = {"execution": "resident", "algorithm": TILED}
    offload = {"execution": "offload", "algorithm": TILED, "rest": "cpu-plain"}
    return rows(
        {"execution": "pytorch-cpu", "function": "network", "median_s": 0.5},
        {"function": "network", "median_s": 0.09} | resident,
        {"function": "ReLU", "median_s": 0.02} | resident,
        {"function": "convolution", "median_s": 0.06} | resident,
        {"function": "convolution", "median_s": 1.0} | offload,
        {"function": "up-convolution", "median_s": 3.0} | offload,
        {"execution": "cpu-plain", "function": "convolution", "median_s": 9.0},
        {"execution": "cpu-plain", "function": "head", "median_s": 1.0},
        {"execution": "cpu-plain", "function": "network", "median_s": 10.5},
        skipped(execution="resident", algorithm=NAIVE, function=None),
    )


def test_table_1_has_each_function_and_its_share():
    drawn = tab1_function_time.draw(functions())
    assert list(drawn.table) == list(tab1_function_time.COLUMNS)
    found = (
        drawn.table[["execution", "function", "median_s", "share"]]
        .astype(object)
        .fillna("")
        .values.tolist()
    )
    assert found == [
        ["cpu-plain", "convolution", 9.0, 0.9],
        ["cpu-plain", "head", 1.0, 0.1],
        ["cpu-plain", "network", 10.5, ""],
        ["pytorch-cpu", "network", 0.5, ""],
        ["offload", "convolution", 1.0, 0.25],
        ["offload", "up-convolution", 3.0, 0.75],
        ["resident", "convolution", 0.06, 0.75],
        ["resident", "ReLU", 0.02, 0.25],
        ["resident", "network", 0.09, ""],
    ]
    assert drawn.figure is None


def test_table_1_is_shown_a_line_an_execution():
    shown = tab1_function_time.display(tab1_function_time.functions(functions()))
    assert list(shown["execution"]) == [
        "CPU, plain loops",
        "PyTorch, CPU",
        "offload: 3 tiled, rest in plain loops",
        "resident: 3 tiled",
    ]
    assert shown["convolution"].iloc[0] == "9 s (90.0%)"
    assert shown["network"].iloc[3] == "90 ms"


def test_fig1_puts_the_paper_beside_ours():
    drawn = fig1_function_share.draw(functions())
    is_drawn(drawn, "fig1_function_share")
    table = drawn.table
    assert "network" not in set(table["function"])
    assert table["share"][:2].tolist() == pytest.approx([0.82, 0.18])
    assert table.groupby(["machine", "execution"])["share"].sum().tolist() == pytest.approx([1] * 4)
    assert "75%" in in_text(drawn)
    nearly_all = rows(
        *(
            {"execution": "cpu-plain", "function": name, "median_s": seconds}
            for name, seconds in (("convolution", 99.8), ("head", 0.2))
        )
    )
    assert "99.8%" in in_text(fig1_function_share.draw(nearly_all))
    compared = fig1_function_share.compared(table)
    assert compared["convolution, ours"].tolist() == ["90.0%"]
    assert compared["ceiling, ours"].tolist() == ["10×"]


def environments():
    one = {"environment": "1 GPU, tiled", "execution": "offload", "rest": "cpu-plain"}
    plain = {"environment": "CPU, plain loops", "execution": "cpu"}
    inside = {"environment": "1 GPU, tiled", "execution": "resident"}
    return rows(
        {"what": "network", "median_s": 4.2} | one,
        {"what": "convolution", "median_s": 0.2} | one,
        {"what": "convolution", "median_s": 0.001, "clock": "host"} | one,
        {"what": "network", "median_s": 0.7} | one | {"rest": "cpu-blas"},
        {"what": "network", "median_s": 0.01} | inside,
        {"what": "convolution", "median_s": 0.008} | inside,
        {"what": "convolution", "median_s": 0.007, "clock": "event"} | inside,
        {"what": "convolution", "median_s": 16.0} | plain,
        {"what": "network", "median_s": 20.0} | plain,
        skipped(environment="2 GPUs, tiled + data parallel", execution="resident"),
    )


def test_fig4_has_the_columns_that_were_promised():
    drawn = fig4_execution_time.draw(environments())
    is_drawn(drawn, "fig4_execution_time")
    header = "environment,execution,clock,what,median_s,paper_s,machine"
    assert drawn.csv().splitlines()[0] == header
    assert drawn.table.astype(object).fillna("").values.tolist() == [
        ["CPU, plain loops", "cpu", "synchronised", "convolution", 16.0, 16.6, "h200"],
        ["CPU, plain loops", "cpu", "synchronised", "network", 20.0, 20.4, "h200"],
        ["1 GPU, tiled", "offload", "synchronised", "convolution", 0.2, 0.00039, "h200"],
        ["1 GPU, tiled", "offload", "host", "convolution", 0.001, 0.00039, "h200"],
        ["1 GPU, tiled", "offload", "synchronised", "network", 4.2, 4.0, "h200"],
        ["1 GPU, tiled", "resident", "synchronised", "convolution", 0.008, "", "h200"],
        ["1 GPU, tiled", "resident", "event", "convolution", 0.007, "", "h200"],
        ["1 GPU, tiled", "resident", "synchronised", "network", 0.01, "", "h200"],
        ["GPU, not optimised", "offload", "", "convolution", "", 17.34, "the paper"],
        ["2 GPUs, tiled + data parallel", "offload", "", "convolution", "", 0.00032, "the paper"],
        ["2 GPUs, tiled + data parallel", "offload", "", "network", "", 3.8, "the paper"],
    ]
    assert "200 ms (paper 390 µs)" in in_text(drawn)
    assert "not measured (paper 320 µs)" in in_text(drawn)
    assert "nan" not in drawn.svg().decode()


def test_what_is_measured_with_two_gpus_stands_beside_the_paper():
    two = {"environment": "2 GPUs, tiled + data parallel", "execution": "offload", "rest": ""}
    ours = rows(*({"what": what, "median_s": 1.0} | two for what in ("convolution", "network")))
    plotted = fig4_execution_time.bars(pd.concat([environments(), ours], ignore_index=True))
    found = plotted[plotted["environment"] == two["environment"]]
    assert found["machine"].tolist() == ["h200", "h200"]
    assert found["paper_s"].tolist() == [0.00032, 3.8]


def test_fig4_is_compared_by_the_clock_that_waits():
    compared = fig4_execution_time.compared(fig4_execution_time.bars(environments()))
    assert compared["ours / paper"].tolist() == ["0.96", "0.98", "513", "1.1"]
    assert compared["the paper"].tolist() == ["16.6 s", "20.4 s", "390 µs", "4 s"]


def test_times_that_cannot_be_are_named():
    table = fig4_execution_time.bars(environments())
    assert fig4_execution_time.impossible(table) == []
    event = (table["clock"] == "event") & (table["what"] == "convolution")
    table.loc[event, "median_s"] = 0.0089
    assert fig4_execution_time.impossible(table) == [
        "h200, 1 GPU, tiled, resident: convolution by event is longer than "
        "convolution by synchronised"
    ]
    table.loc[table["environment"] == "CPU, plain loops", "median_s"] = [23.0, 20.0]
    assert "network by synchronised" in fig4_execution_time.impossible(table)[0]


def test_amdahl_is_drawn_from_the_plain_loops():
    drawn = fig4_amdahl.draw(environments())
    is_drawn(drawn, "fig4_amdahl")
    by = drawn.table.set_index(["machine", "environment", "execution"])
    offload = by.loc[("h200", "1 GPU, tiled", "offload")]
    assert offload["convolution_share"] == pytest.approx(0.8)
    assert offload["convolution_speedup"] == pytest.approx(80)
    assert offload["network_speedup"] == pytest.approx(20 / 4.2)
    assert offload["amdahl"] == pytest.approx(1 / (0.2 + 0.8 / 80))
    assert offload["ceiling"] == pytest.approx(5)
    assert by.loc[("h200", "1 GPU, tiled", "resident"), "network_speedup"] == pytest.approx(2000)
    paper = by.loc["the paper"]
    assert paper["network_speedup"].tolist() == pytest.approx([20.4 / 4.0, 20.4 / 3.8])
    assert paper["ceiling"].tolist() == pytest.approx([20.4 / 3.8] * 2)


def launches():
    return rows(
        {"algorithm": TILED, "median_s": 0.01},
        {"algorithm": TILED, "median_s": 0.0002, "clock": "host"},
        {"algorithm": TILED, "median_s": 0.01, "clock": "event"},
        {"algorithm": NAIVE, "median_s": 0.08},
        {"algorithm": TILED, "median_s": 0.16, "n": 16},
    ).assign(gpu="NVIDIA H200")


def test_each_clock_is_turned_into_a_speed():
    drawn = fig4_clocks.draw(launches())
    is_drawn(drawn, "fig4_clocks")
    # paper.md's arithmetic: 33.65 GFLOP for one image.
    assert fig4_clocks.convolution_flops(1) == pytest.approx(33.65e9, rel=1e-3)
    assert fig4_clocks.convolution_flops(16) == 16 * fig4_clocks.convolution_flops(1)
    by = drawn.table.set_index(["machine", "algorithm", "n", "clock"])["tflops"]
    assert by["h200", TILED, 1, "host"] == pytest.approx(168.3, rel=1e-3)
    assert by["h200", TILED, 16, "synchronised"] == pytest.approx(by["h200", TILED, 1, "event"])
    paper = drawn.table[drawn.table["machine"] == "the paper"]
    assert paper["n"].tolist() == [1, 1]
    assert paper["tflops"].tolist() == pytest.approx([86.3, 105.2], rel=1e-3)
    assert paper["of_peak"].tolist() == pytest.approx([86.3 / 10.3, 105.2 / 20.6], rel=1e-3)
    ours = drawn.table.iloc[0]
    assert ours["of_peak"] == pytest.approx(ours["tflops"] / 67)
    shown = fig4_clocks.display(drawn.table)
    assert shown["clock not stated"].iloc[-2] == "390 µs: 86 TFLOP/s, 838% of peak"


def test_a_gpu_without_a_data_sheet_has_no_share_of_a_peak():
    drawn = fig4_clocks.draw(launches().assign(gpu="another"))
    ours = drawn.table[drawn.table["machine"] == "h200"]
    assert ours["of_peak"].isna().all()
    assert "H200" not in in_text(drawn)


def startup():
    return rows(
        {"what": "compile", "memory": "", "median_s": 0.9},
        {"what": "import", "memory": "", "median_s": 1.1},
        {"what": "second launch", "memory": "", "median_s": 0.07},
        {"what": "transfers", "memory": "pinned", "median_s": 0.004},
        {"what": "transfers", "memory": "pageable", "median_s": 1.734},
    )


def test_causes_are_those_that_the_first_image_waits_for():
    drawn = fig4_causes.draw(startup(), launches())
    is_drawn(drawn, "fig4_causes")
    assert drawn.table[["cause", "median_s"]].values.tolist() == [
        ["importing the library", 1.1],
        ["compiling the kernels", 0.9],
        ["copying each layer, pageable memory", 1.734],
        ["copying each layer, pinned memory", 0.004],
        ["access order: naive", 0.08],
    ]
    assert drawn.table["of_paper"][2] == pytest.approx(0.1)
    assert fig4_causes.excess() == pytest.approx(0.74)
    assert "0.74 s" in in_text(drawn)
    shown = fig4_causes.display(drawn.table)
    assert shown["of the paper's 17.34 s"].iloc[2] == "10.00%"


def batches():
    resident = {"execution": "resident", "algorithm": TILED}
    offload = {"execution": "offload", "algorithm": TILED, "rest": "cpu-blas"}
    times = {1: (0.010, 0.010), 2: (0.020, 0.016), 4: (0.040, 0.039), 8: (0.08, 0.05)}
    return rows(
        *(
            {"gpus": gpus, "n": n, "median_s": seconds} | resident
            for n, pair in times.items()
            for gpus, seconds in enumerate(pair, start=1)
        ),
        *({"gpus": gpus, "n": 8, "median_s": 0.8} | offload for gpus in (1, 2)),
        skipped(gpus=2, n=16, **resident),
    )


def test_a_second_gpu_pays_from_where_it_keeps_paying():
    drawn = fig4_batch.draw(batches())
    is_drawn(drawn, "fig4_batch")
    by = drawn.table.set_index(["execution", "gpus", "n"])
    assert by.loc[("resident", 2, 8), "images_per_s"] == pytest.approx(160)
    assert by.loc[("resident", 2, 8), "gain"] == pytest.approx(1.6)
    pays = fig4_batch.pays_from(drawn.table).set_index("execution")
    # It gains 1.25 times at 2 images too, but not at 4: it pays from 8 on.
    assert pays.loc["resident", "from"] == 8
    assert math.isnan(pays.loc["offload", "from"])
    shown = fig4_batch.display(drawn.table)
    assert shown["they pay from"].tolist() == ["8 images", "no size measured"]
    assert shown["most gained"].tolist() == ["1.6×", "1×"]
    assert "more GPUs are at least 1.1 times as fast as one" in in_text(drawn)
    assert fig4_batch.first_that_keeps_paying(pd.Series([1.09, 1.1], index=[1, 2])) == 2


@pytest.mark.parametrize(
    ("draw", "tables"),
    [
        (fig4_execution_time.draw, 1),
        (fig4_clocks.draw, 1),
        (fig4_causes.draw, 2),
        (fig4_batch.draw, 1),
        (tab1_function_time.draw, 1),
    ],
)
def test_nothing_measured_draws_nothing(draw, tables):
    drawn = draw(*[NOTHING] * tables)
    assert drawn.figure is None
    assert set(drawn.table.get("machine", ())) <= {"the paper"}


@pytest.mark.parametrize("draw", [fig1_function_share.draw, fig4_amdahl.draw])
def test_the_papers_own_numbers_are_drawn_without_ours(draw):
    drawn = draw(NOTHING)
    assert set(drawn.table["machine"]) == {"the paper"}
    assert drawn.png()


def test_stale_rows_are_marked():
    stale = functions().assign(stale=True)
    assert "†" in in_text(fig1_function_share.draw(stale))
    assert tab1_function_time.functions(stale)["stale"].all()
    for draw in (fig4_execution_time.draw, fig4_amdahl.draw):
        assert "measured before" in in_text(draw(environments().assign(stale=True)))
    assert "†" in in_text(fig4_clocks.draw(launches().assign(stale=True)))
    assert "†" in in_text(fig4_causes.draw(startup(), launches().assign(stale=True)))
    assert "†" in in_text(fig4_batch.draw(batches().assign(stale=True)))
