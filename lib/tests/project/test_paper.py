# SPDX-License-Identifier: MIT
"""The numbers of data/paper/ agree with what they are said to follow from."""

import re

import pandas as pd
import pytest

from convstudy import paths

# Multiprocessors, multiply-adds of fp32 and of TF32 in a cycle of one, the clocks of either in
# GHz, pins of the memory, Gbit/s of a pin.
PARTS = {
    "NVIDIA A30": (56, 64, 512, 1.44, 1.44, 3072, 2.43),
    "NVIDIA H200": (132, 128, 1024, 1.98, 1.83, 6144, 6.25),
}


def test_a_data_sheets_peaks_follow_from_the_processors_parts():
    sheet = pd.read_csv(paths.PAPER / "hardware.csv").set_index("name")
    assert set(sheet.index) == set(PARTS)
    for name, (count, fp32, tf32, clock, tensor_clock, pins, rate) in PARTS.items():
        row = sheet.loc[name]
        assert row["fp32_tflops"] == pytest.approx(2 * count * fp32 * clock / 1e3, rel=5e-3)
        # Data sheets cut the decimals off.
        assert row["tf32_tflops"] == int(2 * count * tf32 * tensor_clock / 1e3)
        assert row["memory_gb_per_s"] == int(pins * rate / 8)


def test_what_the_paper_does_not_print_is_computed_from_what_it_does():
    table = pd.read_csv(paths.PAPER / "execution_time.csv")
    for row in table[table["note"] != "printed"].to_dict("records"):
        parts = [float(number) for number in re.findall(r"[\d.]+(?= s)", row["note"])]
        assert row["seconds"] == pytest.approx(sum(parts))


def test_the_confirmed_speed_up_is_that_of_the_days():
    days = pd.read_csv(paths.PAPER / "yadan.csv").set_index("confirmed")["days"]
    assert round(days["yes"] / days["2.2 times is confirmed"], 1) == 2.2
