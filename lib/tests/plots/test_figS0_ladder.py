# SPDX-License-Identifier: MIT
"""The ladder's sums, rates and shares of peak, on numbers worked out by hand."""

import json
import math

import pytest
from rows import nothing, table

from convstudy import paths, records
from convstudy.plots import figS0_ladder as figure

TILED, NAIVE = "conv2d_fprop_3_tiled", "conv2d_fprop_1_naive"
TFLOP, PEAK = 1e12, 50e12


def measured(algorithm, seconds, n=1, peak=PEAK, **more):
    return [
        {
            "algorithm": algorithm,
            "layer": layer,
            "n": n,
            "median_s": each,
            "flops": TFLOP,
            "peak_flops": peak,
            **more,
        }
        for layer, each in zip(("enc0b", "enc0a"), seconds, strict=True)
    ]


def test_layers_add_up_and_rates_are_of_the_sum():
    plotted = figure.rungs(table(measured(TILED, (0.1, 0.3)))).set_index("layer")
    assert list(plotted.index) == ["enc0b", "enc0a", figure.ALL]
    total = plotted.loc[figure.ALL]
    assert total["median_s"] == pytest.approx(0.4)
    assert total["tflops"] == pytest.approx(5)
    assert total["peak_share"] == pytest.approx(0.1)
    assert plotted.loc["enc0b", "tflops"] == pytest.approx(10)


def test_of_cudnns_layouts_each_layer_has_its_faster():
    rows = measured("cudnn", (0.1, 0.4), layout="NCHW") + measured("cudnn", (0.2, 0.3))
    plotted = figure.rungs(table(rows)).set_index("layer")
    assert plotted["median_s"].to_dict() == pytest.approx(
        {"enc0b": 0.1, "enc0a": 0.3, "all 18": 0.4}
    )


def test_rungs_stand_in_the_ladders_order_and_the_cpu_has_no_peak():
    rows = measured(TILED, (1, 1)) + measured(NAIVE, (2, 2))
    rows += measured("cpu-blas", (4, 4), peak=math.nan)
    plotted = figure.rungs(table(rows))
    assert list(plotted["algorithm"].drop_duplicates()) == ["cpu-blas", NAIVE, TILED]
    assert plotted.loc[plotted["algorithm"] == "cpu-blas", "peak_share"].isna().all()
    assert list(figure.display(plotted)["against naive"]) == ["", "1×", "2×"]


def test_an_unfinished_ladder_has_no_sum():
    rows = measured(TILED, (0.1, 0.3)) + measured(NAIVE, (0.2, 0.6))[:1]
    plotted = figure.rungs(table(rows))
    assert list(plotted[plotted["layer"] == figure.ALL]["algorithm"]) == [TILED]
    assert figure.draw(table(rows)).figure is not None


def test_the_papers_times_stand_beside_ours():
    compared = figure.compared(figure.rungs(table(measured(TILED, (0.0010, 0.00095)))))
    row = compared.iloc[0]
    assert row["the paper"] == "390 µs"
    assert row["ours / paper"] == "5"
    # 2 TFLOP in 0.39 ms.
    assert row["the paper's time as TFLOP/s"] == "5128"


def test_a_stale_layer_marks_the_sum_and_the_name():
    rows = measured(TILED, (0.1, 0.3))
    rows[0]["stale"] = True
    drawn = figure.draw(table(rows))
    assert list(drawn.table["stale"]) == [True, False, True]
    names = [t.get_text() for axes in drawn.figure.axes for t in axes.get_yticklabels()]
    assert any(name.endswith("(the paper's) †") for name in names)


def test_a_machine_without_the_suite_is_left_out():
    drawn = figure.draw(nothing().assign(algorithm=[], layer=[], n=[], flops=[], peak_flops=[]))
    assert drawn.figure is None
    assert list(drawn.table.columns) == list(figure.COLUMNS)
    assert figure.compared(drawn.table).empty


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Write a record of two GPU rows and one CPU row, and return its machine."""
    monkeypatch.setattr(paths, "MEASUREMENTS", tmp_path)
    gpu = {
        "index": 0,
        "name": "GPU",
        "compute_capability": "8.0",
        "sm_count": 10,
        "memory_bytes": 1,
        "l2_bytes": 1,
        "shared_bytes_per_block": 1,
        "ecc": None,
        "power_limit_w": None,
        "clocks_mhz": {"sm_max": 1000, "memory_max": None},
        "pcie": {"generation": None, "width": None},
        "driver": "1",
    }
    problem = {"n": 1, "c": 2, "h": 5, "w": 5, "k": 3, "r": 3, "s": 3}
    problem |= {"stride": [1, 1], "padding": [1, 1], "dtype": "float32", "layout": "NCHW"}
    record = {
        "schema": records.SCHEMA,
        "id": "20260101T000000Z-0123456-ladder",
        "suite": "ladder",
        "created_utc": "2026-01-01T00:00:00Z",
        "duration_s": 1.0,
        "machine": {
            "slug": "there",
            "cpu": {"model": "CPU", "cores": 2},
            "ram_bytes": 1,
            "os": "an OS",
            "kernel": "1",
            "gpus": [gpu],
            "topology": None,
        },
        "software": dict.fromkeys(
            (
                *("python", "numpy", "numba", "cupy", "cuda_driver", "cuda_runtime", "nvrtc"),
                *("torch", "cudnn", "compiler", "blas"),
            )
        ),
        "source": {"commit": "0123456" + 33 * "0", "dirty": False, "sha256": 64 * "0"},
        "method": {"seed": 0, "options": {}},
        "results": [_result(name, problem) for name in (TILED, "cudnn", "cpu-blas")],
    }
    record["digest"] = records.digest(record)
    folder = tmp_path / "there"
    records.write(json.loads(json.dumps(record)), folder)
    return "there"


def _result(algorithm, problem):
    kernel = algorithm if algorithm == TILED else None
    return {
        "case": algorithm,
        "labels": {"algorithm": algorithm, "layer": "enc0a", "n": 1},
        "problem": problem,
        "kernel": kernel,
        "source_sha256": 64 * "0" if kernel else None,
        "launch": None,
        "resources": None,
        "clock": "event",
        "cache": "warm",
        "transfers": "excluded",
        "warmup": 1,
        "samples_s": [3e-6, 1e-6, 2e-6],
        "values": {},
        "check": None,
        "gpu_state": None,
        "status": "ok",
        "reason": None,
    }


def test_a_record_gives_flops_peak_and_staleness(recorded):
    plotted = figure.rungs(figure.read([recorded])).set_index(["algorithm", "layer"])
    row = plotted.loc[TILED, "enc0a"]
    assert row["flops"] == 2 * 25 * 3 * 2 * 9
    assert row["median_s"] == 2e-6
    # 64 units on compute capability 8.0, two operations each, 10 multiprocessors at 1 GHz.
    assert row["peak_share"] == pytest.approx(2700 / 2e-6 / (64 * 2 * 10 * 1e9))
    assert row["stale"]
    assert plotted.loc[("cudnn", "enc0a"), "peak_share"] == row["peak_share"]
    assert math.isnan(plotted.loc[("cpu-blas", "enc0a"), "peak_share"])
