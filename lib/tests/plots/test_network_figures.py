# SPDX-License-Identifier: MIT
"""VGG's and ResNet's figures: the best of each side, convolution's share, the environments."""

import math

import pandas as pd
import pytest
import rows

from convstudy.plots import figS4_networks, figS4_shares, tabS4_environments

NAIVE, TILED, BLOCKED = (
    f"conv2d_fprop_{rung}" for rung in ("1_naive", "3_tiled", "4_register_blocked")
)
SHARED = {"what": "inference", "size": 224, "n": 1, "precision": "fp32", "rest": "", "gpus": 0}
SHARED |= {"algorithm": "", "environment": "", "clock": "synchronised", "error": 1e-6}


def pieces(execution, convolution, other, **more):
    """Yield the rows of one execution: two functions, and the whole a little longer."""
    times = {"convolution": convolution, "pooling": other, "network": convolution + other + 0.5}
    for function, seconds in times.items():
        yield SHARED | {"execution": execution, "function": function, "median_s": seconds} | more


def whole(execution, seconds, **more):
    return SHARED | {"execution": execution, "function": "network", "median_s": seconds} | more


def network(name):
    gpu = {"gpus": 1, "algorithm": TILED, "environment": "1 GPU, tiled"}
    found = [
        *pieces("cpu-plain", 9.0, 1.0, environment="CPU, plain loops"),
        *pieces("cpu-blas", 3.0, 1.0, environment="CPU, BLAS"),
        *pieces("pytorch-cpu", 2.0, 1.0, layout="NCHW"),
        *pieces("pytorch-cpu", 1.0, 1.0, layout="NHWC"),
        *pieces("offload", 0.5, 1.0, rest="cpu-plain", **gpu),
        *pieces("offload", 0.5, 0.1, rest="cpu-blas", **gpu),
        *pieces("offload", 0.1, 1.0, rest="cpu-plain", **gpu | {"gpus": 2, "environment": ""}),
        *pieces("resident", 0.3, 0.1, **gpu),
        *pieces("resident", 0.06, 0.04, **gpu | {"algorithm": BLOCKED, "environment": ""}),
        whole("resident", 0.08, algorithm=BLOCKED, gpus=1, clock="event"),
        whole("pytorch-eager", 0.05, gpus=1, clock="event", layout="NCHW"),
        whole("pytorch-graph", 0.04, gpus=1, clock="event", layout="NHWC"),
        # Measured on PyTorch's side alone: there is nothing to compare it with.
        whole("pytorch-graph", 0.02, gpus=1, clock="event", layout="NHWC", precision="bf16"),
    ]
    return [row | {"network": name} for row in found]


@pytest.fixture
def table():
    return rows.table([*network("vgg16"), *network("resnet50")])


def test_ours_stands_beside_pytorch_s_best(table):
    plotted = figS4_networks.compare(table)
    assert tuple(plotted) == figS4_networks.COLUMNS
    assert tuple(plotted)[:9] == (
        *("machine", "network", "what", "precision", "n", "ours_ms", "pytorch_best_ms", "ratio"),
        "conv_share",
    )
    vgg = plotted[plotted["network"] == "vgg16"].set_index("what")
    assert len(plotted) == 4
    gpu, cpu = vgg.loc["inference"], vgg.loc["inference, CPU"]
    assert gpu["ours_ms"] == pytest.approx(80)
    assert gpu["pytorch_best_ms"] == pytest.approx(40)
    assert gpu["ratio"] == pytest.approx(0.5)
    assert gpu["conv_share"] == pytest.approx(0.6)
    assert gpu["ours"] == BLOCKED
    assert cpu["ours_ms"] == pytest.approx(4500)
    assert cpu["ratio"] == pytest.approx(2.5 / 4.5)
    assert cpu["conv_share"] == pytest.approx(0.75)
    shown = figS4_networks.display(plotted)
    assert list(shown["network"]) == ["VGG-16", "VGG-16", "ResNet-50", "ResNet-50"]
    assert "0.5×" in set(shown["times as fast"])
    assert set(shown["error"]) == {"1.0e-06"}


def test_ours_alone_is_told_without_a_ratio(table):
    alone = table[~table["execution"].str.startswith("pytorch") & (table["clock"] != "event")]
    plotted = figS4_networks.compare(alone).set_index(["network", "what"])
    gpu = plotted.loc["vgg16", "inference"]
    assert gpu["ours_ms"] == pytest.approx(600)
    assert gpu["conv_share"] == pytest.approx(0.6)
    assert math.isnan(gpu["ratio"])
    drawn = figS4_networks.draw(alone)
    assert drawn.figure is None
    assert len(drawn.table) == 4


def test_what_is_not_named_has_no_share():
    contest = [
        whole("program", 0.02, gpus=1, clock="event", network="vgg16", what="training"),
        whole("pytorch-graph", 0.03, gpus=1, clock="event", network="vgg16", what="training"),
    ]
    plotted = figS4_networks.compare(rows.table(contest))
    assert plotted["what"].tolist() == ["training"]
    assert plotted["ratio"].tolist() == pytest.approx([1.5])
    assert plotted["conv_share"].isna().all()
    assert figS4_networks.display(plotted)["convolution"].tolist() == [""]


def test_the_contest_is_drawn(table):
    slow = table["execution"].str.startswith("pytorch") & (table["network"] == "resnet50")
    table.loc[slow, "median_s"] *= 10
    alone = table[table["execution"] == "cpu-blas"].assign(machine="there")
    drawn = figS4_networks.draw(pd.concat([table, alone]))
    assert set(drawn.table["machine"]) == {"here", "there"}
    assert drawn.figure.get_supxlabel().startswith("here · ")
    assert "there" not in drawn.figure.get_supxlabel()
    assert len(drawn.figure.axes) == 4
    assert drawn.png().startswith(b"\x89PNG")
    for panel in drawn.figure.axes:
        low, high = panel.get_ylim()
        assert low == 0
        assert all(low < y < high for line in panel.lines for y in line.get_ydata())
    assert drawn.csv().startswith("machine,network,what,precision,n,ours_ms,pytorch_best_ms,ratio,")


def test_shares_are_of_one_execution_each(table):
    plotted = figS4_shares.shares(table)
    assert tuple(plotted) == figS4_shares.COLUMNS
    ways = ["machine", "network", "execution", "algorithm", "rest"]
    assert plotted.groupby(ways)["share"].sum().tolist() == pytest.approx([1] * 14)
    convolution = plotted[plotted["function"] == "convolution"]
    vgg = convolution[convolution["network"] == "vgg16"]
    assert list(vgg["execution"]) == [
        *("cpu-plain", "cpu-blas", "pytorch-cpu", "offload", "offload", "resident", "resident")
    ]
    # Of PyTorch's layouts the faster; of two GPUs nothing.
    shares = [0.9, 0.75, 0.5, 1 / 3, 5 / 6, 0.75, 0.6]
    assert vgg["share"].tolist() == pytest.approx(shares)
    shown = figS4_shares.display(plotted)
    assert shown["convolution"].iloc[0] == "90.0%"
    assert shown["all functions"].iloc[0] == "10 s"


def test_shares_of_a_program_are_of_its_inference_in_fp32(table):
    shared = {"gpus": 1, "clock": "event", "layout": "NHWC", "network": "vgg16"}
    program = [
        *pieces("program", 0.03, 0.01, **shared),
        *pieces("program", 0.02, 0.02, **shared | {"precision": "bf16"}),
        *pieces("program", 0.08, 0.02, **shared | {"what": "training"}),
        whole("pytorch-graph", 1.0, **shared),
        whole("pytorch-graph", 1.0, **shared | {"what": "training"}),
    ]
    both = pd.concat([table, rows.table(program)], ignore_index=True)
    plotted = figS4_shares.shares(both)
    fused = plotted[plotted["execution"] == "program"].set_index("function")
    assert fused["share"].to_dict() == pytest.approx({"convolution": 0.75, "pooling": 0.25})
    assert "one program" in set(figS4_shares.display(plotted)["execution"])
    alone = figS4_networks.compare(rows.table(program)).set_index(["what", "precision"])
    assert alone.loc[("inference", "fp32"), "conv_share"] == pytest.approx(0.75)
    assert alone.loc[("training", "fp32"), "conv_share"] == pytest.approx(0.8)


def test_shares_are_drawn(table):
    drawn = figS4_shares.draw(table)
    assert len(drawn.figure.axes) == 2
    text = " ".join(
        each.get_text() for each in drawn.figure.findobj(lambda one: hasattr(one, "get_text"))
    )
    for words in ("here: VGG-16", "here: ResNet-50", "CPU, plain loops", "90%", "pooling"):
        assert words in text
    assert drawn.svg().startswith(b"<?xml")


def test_records_without_pytorch_have_no_layouts(table):
    alone = table[~table["execution"].str.startswith("pytorch")].drop(columns="layout")
    assert len(figS4_shares.shares(alone)) == 2 * 6 * 2


def test_environments_are_the_paper_s(table):
    plotted = tabS4_environments.draw(table).table
    assert tuple(plotted) == tabS4_environments.COLUMNS
    vgg = plotted[plotted["network"] == "vgg16"]
    assert vgg[["environment", "execution"]].values.tolist() == [
        ["CPU, plain loops", "cpu-plain"],
        ["CPU, BLAS", "cpu-blas"],
        ["1 GPU, tiled", "offload"],
        ["1 GPU, tiled", "resident"],
    ]
    assert vgg["network_speedup"].tolist() == pytest.approx([1, 10.5 / 4.5, 10.5 / 2, 10.5 / 0.9])
    assert vgg["functions_s"].tolist() == pytest.approx([10, 4, 1.5, 0.4])
    assert vgg["convolution_share"].tolist() == pytest.approx([0.9, 0.75, 1 / 3, 0.75])
    shown = tabS4_environments.display(plotted)
    assert shown["times as fast"].iloc[2] == "5.2×"


@pytest.mark.parametrize("module", [figS4_networks, figS4_shares, tabS4_environments])
def test_nothing_measured_is_nothing_drawn(module, table):
    skipped = table.assign(status="skipped", median_s=float("nan"))
    for empty in (rows.nothing(), skipped):
        drawn = module.draw(empty)
        assert drawn.figure is None
        assert tuple(drawn.table) == module.COLUMNS
        assert drawn.table.empty
        assert module.display(drawn.table).empty
    assert isinstance(drawn.table, pd.DataFrame)


def test_of_contests_in_two_records_the_newer_counts(table, monkeypatch):
    later = [
        whole("program", ours, gpus=1, clock="event", network="vgg16", n=n, record="2030")
        for n, ours in ((1, 0.01), (64, 0.5))
    ]
    theirs = [row | {"execution": "pytorch-graph", "median_s": 1.0} for row in later]
    suites = {"networks": table, "networks-contest": rows.table([*later, *theirs])}
    monkeypatch.setattr(
        figS4_networks.records, "table", lambda suite, *given, **more: suites[suite]
    )
    both = figS4_networks.compare(figS4_networks.read(["here"]))
    gpu = both[(both["network"] == "vgg16") & (both["what"] == "inference")].set_index("n")
    assert gpu["ratio"].to_dict() == {1: pytest.approx(100), 64: pytest.approx(2)}
    assert len(both[both["what"] == "inference, CPU"]) == 2
    suites["networks-contest"] = rows.nothing()
    assert figS4_networks.read(["here"]).equals(table)
