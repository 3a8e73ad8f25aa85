# SPDX-License-Identifier: MIT
"""Scaling figures: against one GPU, against PyTorch's best, and against what was predicted."""

import math

import pandas as pd
import pytest
import rows

from convstudy.models.unet import UNet
from convstudy.parallel import cost
from convstudy.parallel.cost import Cluster, Cut, Link, Processor
from convstudy.plots import (
    figS3_scaling,
    figS3_second_gpu,
    figS3_step,
    tabS3_links,
    tabS3_predicted,
    tabS3_yadan,
)
from convstudy.plots.fig4_batch import PAYS

TRUE = Processor(1e14, 1e12, 1e-5)
LINK = Link(2e11, 4e-6)
CLUSTER = Cluster(LINK, cost.H200.across, 8)


def row(gpus, n, seconds, side="ours", what="training", **more):
    return {
        "what": what,
        "processor": "gpu",
        "precision": "tf32",
        "gpus": gpus,
        "n": n,
        "model": 1,
        "cut_from": 0,
        "width": 8,
        "size": "32x48",
        "side": side,
        "bytes": math.nan,
        "median_s": seconds,
        **more,
    }


def seconds(batch, cut, training=True):
    layers = cost.layers(UNet(width=8), 32, 48)
    return cost.predict(layers, batch, cut, TRUE, CLUSTER, training).seconds


def made(slower=1.0):
    """Return a table that is exactly as the model has it, but two GPUs `slower`."""
    found = []
    for n in (1, 2, 4, 8, 16):
        found.append(row(1, n, seconds(n, Cut())))
        found.append(row(2, n, slower * seconds(2 * n, Cut(2))))
        found.append(row(2, n, 2 * seconds(2 * n, Cut(2)), "ddp"))
        found.append(row(2, n, 4 * seconds(2 * n, Cut(2)), "pytorch-graph"))
        found.append(row(1, n, seconds(n, Cut(), False), what="inference"))
    cut = Cut(2, 2, 4)
    found.append(row(2, 16, seconds(32, cut), model=2, cut_from=4))
    for size in (10**3, 10**5, 10**7):
        moved = row(2, math.nan, LINK.all_reduce_s(size, 2), what="all-reduce", bytes=size)
        found += [moved, moved | {"side": "library", "median_s": 0.5 * moved["median_s"]}]
        found.append(row(2, math.nan, LINK.send_s(size), what="link", bytes=size))
    events = [
        {"gpu": 0, "what": "forward", "start_s": 0.0, "stop_s": 1.0},
        {"gpu": 0, "what": "backward", "start_s": 1.0, "stop_s": 3.0},
        {"gpu": 0, "what": "wait", "start_s": 3.0, "stop_s": 3.5},
        {"gpu": 0, "what": "all-reduce", "start_s": 2.0, "stop_s": 2.5},
        {"gpu": 0, "what": "all-reduce", "start_s": 2.9, "stop_s": 3.5},
    ]
    return rows.table([*found, row(2, 4, 3.5, what="timeline", value_events=events)])


def test_of_what_is_measured_part_by_part_the_newest_record_counts(monkeypatch):
    def parts(suite, machines, current_sha256, older):
        assert (suite, machines, older) == ("scaling", ["here"], True)
        old = [row(2, n, 1.0, precision=each) for n in (1, 8) for each in ("tf32", "bf16")]
        old.append(row(2, 1, 2.0, what="inference"))
        new = [row(2, 1, 0.5), row(2, 1, math.nan, what="inference", status="skipped")]
        return rows.table(
            [each | {"record": "20240101"} for each in old]
            + [each | {"record": "20240102"} for each in new]
        )

    monkeypatch.setattr(figS3_scaling.records, "table", parts)
    found = figS3_scaling.read(["here"])
    assert found[["precision", "what", "n", "median_s"]].to_numpy().tolist() == [
        *(["bf16", "training", n, 1.0] for n in (1, 8)),
        *(["tf32", "inference", 1, 2.0], ["tf32", "training", 1, 0.5]),
    ]


def test_each_number_of_gpus_is_held_to_one_and_to_pytorchs_best():
    plotted = figS3_scaling.rates(made(slower=1.25))
    assert tuple(plotted.columns)[:9] == (
        *("machine", "what", "precision", "gpus", "images_per_gpu", "images_per_s", "scaling"),
        *("ddp_images_per_s", "ratio_to_ddp"),
    )
    own = plotted.set_index(["what", "gpus", "images_per_gpu", "cut"]).loc["training"]
    two = own.loc[2, 4, "data"]
    time = 1.25 * seconds(8, Cut(2))
    assert two["images_per_s"] == pytest.approx(8 / time)
    assert two["scaling"] == pytest.approx(2 * seconds(4, Cut()) / time)
    assert two["strong_scaling"] == pytest.approx(seconds(8, Cut()) / time)
    assert two["ratio_to_ddp"] == pytest.approx(2 / 1.25)
    assert math.isnan(own.loc[2, 16, "2 model (level 4)"]["ratio_to_ddp"])
    assert own.loc[1, 4, "data"]["scaling"] == 1
    assert math.isnan(own.loc[1, 4, "data"]["ratio_to_ddp"])


def test_the_model_finds_again_what_made_the_times():
    table = made()
    (machine_model, *_) = tabS3_predicted.models(table).values()
    assert machine_model.links == "measured"
    assert machine_model.cluster.inside.bytes_per_s == pytest.approx(2e11, rel=1e-6)
    assert machine_model.cluster.inside.latency_s == pytest.approx(4e-6, rel=1e-6)
    plotted = tabS3_predicted.predictions(table)
    known = plotted.dropna(subset="error")
    assert set(known["gpus"]) == {1, 2}
    assert known["error"].abs().max() < 0.05
    assert set(plotted["gpus"]) == {1, 2, 4, 8, 64}
    slow = tabS3_predicted.predictions(made(slower=1.5))
    off = slow[(slow["gpus"] == 2) & (slow["cut"] == "data")]["error"].dropna()
    assert off.between(0.4, 0.6).all()
    # One GPU says nothing of links.
    (alone, *_) = tabS3_predicted.models(table[table["gpus"] == 1]).values()
    assert alone.links == "assumed"
    assert alone.cluster.inside == cost.H200.inside


def test_the_second_gpu_is_of_one_batch():
    plotted = figS3_second_gpu.gains(made(slower=1.25))
    own = plotted[plotted["what"] == "training"].set_index("images")
    assert own.loc[8, "gain"] == pytest.approx(seconds(8, Cut()) / seconds(8, Cut(2)) / 1.25)
    assert math.isnan(own.loc[64, "gain"])


def test_a_second_gpu_pays_from_where_it_keeps_paying():
    keys = {"machine": "here", "what": "training", "precision": "tf32"}
    measured = {2: 1.2, 4: 1.05, 8: 1.1, 16: 1.9}
    gains = pd.DataFrame(
        [
            keys | {"images": n, "predicted_gain": n, "gain": measured.get(n)}
            for n in (2, 4, 8, 16, 32)
        ]
    )
    (first,) = figS3_second_gpu.pays_from(gains).to_dict("records")
    assert (first["predicted_from"], first["predicted_most"]) == (2, 32)
    assert (first["measured_from"], first["measured_most"]) == (8, 1.9)


def test_yadans_shares_are_of_one_gpus_time():
    saved = tabS3_yadan.yadan()
    assert [round(saved[key], 2) for key in ((2, "model"), (2, "data"), (4, "model and data"))] == [
        0.37,
        0.33,
        0.54,
    ]
    plotted = tabS3_yadan.saved(made()).set_index(["gpus", "parallelism"])
    expected = 1 - seconds(32, Cut(2)) / seconds(16, Cut()) / 2
    assert plotted.loc[(2, "data"), "saved"] == pytest.approx(expected)
    assert plotted.loc[(2, "model"), "saved"] > 0
    assert math.isnan(plotted.loc[(4, "model and data"), "saved"])
    assert (plotted["predicted_saved"] - plotted["saved"]).abs().max() < 0.05


def test_a_bus_has_its_bandwidth():
    last = tabS3_links.bandwidths(made()).to_dict("records")[-1]
    assert last["bytes"] == 10**7
    assert last["all_reduce_bytes_per_s"] == pytest.approx(10**7 / LINK.all_reduce_s(10**7, 2))
    assert last["ratio"] == pytest.approx(0.5)
    assert last["link_bytes_per_s"] == pytest.approx(10**7 / LINK.send_s(10**7))


def test_a_step_is_told_by_its_slowest_rank():
    (told,) = figS3_step.hidden(figS3_step.events(made())).to_dict("records")
    assert (told["step_s"], told["wait_s"], told["backward_s"]) == (3.5, 0.5, 2.0)
    assert told["reduce_s"] == pytest.approx(1.5)


def test_what_pays_is_said_with_its_limit():
    (panel,) = figS3_second_gpu.draw(made()).figure.axes
    assert f"pays above {PAYS}" in [text.get_text() for text in panel.texts]


@pytest.mark.parametrize("module", [figS3_scaling, figS3_second_gpu, figS3_step])
def test_it_is_drawn_and_shown(module):
    drawn = module.draw(made())
    assert drawn.figure is not None
    assert list(drawn.table.columns) == list(module.COLUMNS)
    assert len(module.display(drawn.table))


@pytest.mark.parametrize(
    "module",
    [figS3_scaling, figS3_second_gpu, figS3_step, tabS3_links, tabS3_predicted, tabS3_yadan],
)
def test_without_a_record_there_is_nothing(module):
    drawn = module.draw(rows.nothing())
    assert drawn.figure is None
    assert drawn.table.empty
    assert list(drawn.table.columns) == list(module.COLUMNS)
