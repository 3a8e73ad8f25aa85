# SPDX-License-Identifier: MIT
"""The suite of scaling on cores: every case is a whole result, and a rank's failure its reason."""

import dataclasses

import numpy as np
import pytest

from convstudy.device import EMULATOR, devices
from convstudy.measure import ranked
from convstudy.measure.suites import scaling
from convstudy.measure.suites.scaling import SUITE
from convstudy.records import validate_result

JOB = ranked.Job("training", "cpu", "fp32", [2], 2, [16, 24], 2)


@pytest.fixture(scope="module")
def session():
    found = ranked.Session()
    yield found
    found.end()


on_cores = pytest.mark.skipif(bool(devices()), reason="with a GPU the suite runs on GPUs")


@on_cores
def test_cases_are_whole_results():
    given = {"n_cpu": "1,2", "width_cpu": 2, "repeats": 2}
    cases = {case.name: case for case in SUITE.cases(SUITE.options | given)}
    assert len(cases) == 13
    for name in ("training/fp32/2 ranks/model 2 from 4", "timeline/fp32/2 ranks"):
        found = cases[name].run()
        for row in found:
            validate_result(row, row["case"])
            assert row["case"].startswith(f"{name}/")
            assert row["labels"]["gpus"] == 2
            assert min(row["samples_s"]) > 0
    assert {event["gpu"] for event in found[0]["values"]["events"]} == {0, 1}


def test_gpus_share_layers_too_where_there_are_enough(monkeypatch):
    monkeypatch.setattr(scaling, "devices", lambda: (EMULATOR,) * 4)
    found = [case for case in SUITE.cases(SUITE.options) if case.labels["model"] == 2]
    names = [f"training/{p}/{n} ranks/model 2 from" for p in ("tf32", "bf16") for n in (2, 4)]
    assert [case.name for case in found] == [f"{name} {cut}" for cut in (4, 3) for name in names]
    assert {case.labels["processor"] for case in found} == {"gpu"}


def test_as_many_images_as_were_asked_for_are_shared(session):
    with pytest.raises(RuntimeError, match="a batch of 1 images is too small for 2 ranks"):
        session.run(2, dataclasses.replace(JOB, images=[1]))


def test_links_are_timed_by_us_and_by_who_carries_them(session):
    """By others than those that have failed."""
    found = session.run(2, dataclasses.replace(JOB, what="links", images=[4096]))
    sides = [(row["labels"]["what"], row["labels"]["side"]) for row in found]
    assert sides == [("all-reduce", "ours"), ("all-reduce", "library"), ("link", "ours")]


@on_cores
def test_what_a_gpu_is_to_do_runs_on_the_emulator(monkeypatch):
    """All but its clock, which is a GPU's."""
    monkeypatch.setattr(ranked, "devices", lambda: (EMULATOR,))
    monkeypatch.setattr(ranked, "_wait_for", lambda device: None)
    monkeypatch.setattr(ranked, "_LONG_ENOUGH_S", 0)
    monkeypatch.setattr(ranked, "_CHUNKS", 2)
    check_a_gpus_jobs(ranked.Job("", "gpu", "tf32", [1], 4, [32, 32], 1))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_what_a_gpu_is_to_do_runs_on_one(precision):
    check_a_gpus_jobs(ranked.Job("", "gpu", precision, [1, 3], 16, [32, 48], 2))


def check_a_gpus_jobs(job):
    found = {
        what: ranked.Session().run(1, dataclasses.replace(job, what=what))
        for what in ("training", "timeline", "inference", "inference from the host")
    }
    assert all(row["samples"][0] > 0 for rows in found.values() for row in rows)
    assert np.isfinite(found["training"][0]["values"]["loss"])
    for what, rows in found.items():
        named = rows[0]["values"]["kernels"].split()
        assert ("adamw_step_1_flat" in named) == (what in ("training", "timeline"))
    for what in ("inference", "inference from the host"):
        assert found[what][0]["values"]["error"] < 0.1
    whats = [event["what"] for event in found["timeline"][0]["values"]["events"]]
    assert whats == ["forward", "backward", "wait", "update"]


@pytest.mark.parametrize("what", ["training", "inference"])
def test_pytorch_is_timed_on_the_same_ranks(what, session):
    pytest.importorskip("torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"')
    job = dataclasses.replace(JOB, what=what, is_pytorch=True, size=[32, 32])
    (row,) = session.run(2, job)
    assert row["labels"]["side"] == {"training": "ddp-eager", "inference": "pytorch-eager"}[what]
    assert min(row["samples"]) > 0


def test_one_rank_needs_no_launcher(monkeypatch):
    monkeypatch.setattr(ranked.launch, "mpiexec", lambda: None)
    alone = ranked.Session()
    (inference,) = alone.run(1, dataclasses.replace(JOB, what="inference"))
    assert inference["values"]["error"] < 1e-4
    with pytest.raises(RuntimeError, match="ranks need mpiexec"):
        alone.run(2, JOB)
    alone.end()
