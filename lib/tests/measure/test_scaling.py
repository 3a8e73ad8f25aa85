# SPDX-License-Identifier: MIT
"""The suite of scaling on cores: every case is a whole result, and a rank's failure its reason."""

import dataclasses

import pytest

from convstudy.device import devices
from convstudy.measure import ranked
from convstudy.measure.suites.scaling import SUITE
from convstudy.records import validate_result

JOB = ranked.Job("training", "cpu", "fp32", [2], 2, [16, 24], 2)
on_cores = pytest.mark.skipif(bool(devices()), reason="with a GPU the suite runs on GPUs")


@on_cores
def test_cases_are_whole_results():
    given = {"n_cpu": "1,2", "width_cpu": 2, "repeats": 2}
    cases = {case.name: case for case in SUITE.cases(SUITE.options | given)}
    assert len(cases) == 9
    for name in ("training/fp32/2 ranks/model 2 from 4", "timeline/fp32/2 ranks"):
        found = cases[name].run()
        for row in found:
            validate_result(row, row["case"])
            assert row["case"].startswith(f"{name}/")
            assert row["labels"]["gpus"] == 2
            assert min(row["samples_s"]) > 0
    assert {event["gpu"] for event in found[0]["values"]["events"]} == {0, 1}


def test_as_many_images_as_were_asked_for_are_shared():
    with pytest.raises(RuntimeError, match="a batch of 1 images is too small for 2 ranks"):
        ranked.run(2, dataclasses.replace(JOB, images=[1]))


def test_links_are_timed_by_us_and_by_who_carries_them():
    found = ranked.run(2, dataclasses.replace(JOB, what="links", images=[4096]))
    sides = [(row["labels"]["what"], row["labels"]["side"]) for row in found]
    assert sides == [("all-reduce", "ours"), ("all-reduce", "library"), ("link", "ours")]


def test_one_rank_needs_no_launcher(monkeypatch):
    monkeypatch.setattr(ranked.launch, "mpiexec", lambda: None)
    (inference,) = ranked.run(1, dataclasses.replace(JOB, what="inference"))
    assert inference["values"]["error"] < 1e-4
    with pytest.raises(RuntimeError, match="ranks need mpiexec"):
        ranked.run(2, JOB)
