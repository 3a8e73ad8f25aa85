# SPDX-License-Identifier: MIT
"""What "auto" takes where there is a record of tuning, where there is none, and where it is old."""

import dataclasses
import re

import pytest
from chips import H200
from recorded import make, signed
from test_gemm import of

from convstudy import paths, records
from convstudy.conv import algorithm, tuned
from convstudy.conv.algorithm import Candidate, choose, explain, plan
from convstudy.device import CPU, EMULATOR
from convstudy.measure.suite import result
from convstudy.problem import ConvProblem

PROBLEM = of(ConvProblem(1, 64, 40, 40, 64, 3, 3, padding=(1, 1)), "tf32")
OTHER = dataclasses.replace(PROBLEM, h=41)


@pytest.fixture(autouse=True)
def measurements(tmp_path, monkeypatch):
    """A folder of records that holds none, and no memory of others."""
    monkeypatch.setattr(paths, "MEASUREMENTS", tmp_path)
    algorithm.read_again()
    yield tmp_path
    algorithm.read_again()


def keep(
    folder,
    candidate,
    time="20240102T030405Z",
    name=H200.name,
    machine="box",
    suite="tuning",
    **changes,
):
    """Write a record in which `candidate` was found fastest for `PROBLEM`."""
    labels = {"pass": "fprop", "precision": "tf32"}
    labels |= {"algorithm": candidate.id, "choice": tuned.text(candidate.choice)}
    row = result(
        "only",
        labels,
        [3e-5, 1e-5, 2e-5],
        clock="event",
        problem=PROBLEM,
        launch=plan(candidate.id, PROBLEM, H200, choice=candidate.choice),
        values={"candidates": ["a", "b"]},
    )
    row |= changes
    record = make(time, suite=suite, machine=machine, results=[row])
    record["machine"]["gpus"][0]["name"] = name
    records.write(signed(record), folder / machine)
    algorithm.read_again()


def slowest():
    """Return the candidate that the estimates like least."""
    return algorithm.candidates(PROBLEM, H200)[-1]


def line(problem=PROBLEM, where=H200):
    (found,) = (each for each in explain(problem, where).splitlines() if "; chosen" in each)
    return found


def test_without_a_record_the_estimates_choose():
    first, *_ = algorithm.candidates(PROBLEM, H200)
    assert choose(PROBLEM, H200) == first.id != slowest().id
    assert line().endswith("; chosen (estimated)")
    assert line(PROBLEM, EMULATOR).endswith("; chosen (estimated)")
    first = dataclasses.replace(PROBLEM, precision="fp32", layout="NCHW")
    assert line(first, EMULATOR).endswith("; chosen (the last rung that takes it)")


def test_what_was_found_fastest_is_taken_with_its_choice(measurements):
    best = slowest()
    expected = plan(best.id, PROBLEM, H200, choice=best.choice)
    assert plan(best.id, PROBLEM, H200) == expected  # a kernel's default is its only choice here
    row = algorithm.get_algorithm("conv2d_fprop_10_wgmma")
    unlikely = max(
        row.choices(PROBLEM, H200), key=lambda choice: row.estimate(PROBLEM, H200, choice)
    )
    unliked = plan(row.id, PROBLEM, H200)
    keep(measurements, Candidate(row.id, unlikely))
    assert choose(PROBLEM, H200) == row.id
    assert plan(row.id, PROBLEM, H200) == plan(row.id, PROBLEM, H200, choice=unlikely) != unliked
    assert f"chosen (tuned: 20.0 µs, 2 tried, {tuned.text(unlikely)})" in line()
    # A kernel that is asked for by name, and was not found fastest, goes by its estimates.
    assert plan(best.id, PROBLEM, H200) == expected


def test_what_was_not_tuned_goes_by_the_estimates_and_says_so(measurements):
    keep(measurements, slowest())
    assert choose(OTHER, H200) == algorithm.candidates(OTHER, H200)[0].id
    assert line(OTHER).endswith("chosen (estimated; this GPU's tuned table does not have it)")
    for which in ("dgrad", "wgrad"):
        assert choose(PROBLEM, H200, which) != slowest().id
    # Other chips, other precisions and batches are other problems.
    another = dataclasses.replace(H200, name="another GPU")
    assert line(where=another).endswith("; chosen (estimated)")
    assert "tuned:" not in line(of(PROBLEM, "bf16"))
    assert "tuned:" not in line(PROBLEM.with_batch(2))


def test_the_newest_record_of_a_chip_counts_whichever_machine_it_is_of(measurements):
    first, last = algorithm.candidates(PROBLEM, H200)[0], slowest()
    keep(measurements, first, "20240103T000000Z")
    keep(measurements, last, "20240102T000000Z", machine="attic")
    assert choose(PROBLEM, H200) == first.id
    keep(measurements, last, "20240104T000000Z", machine="attic")
    assert choose(PROBLEM, H200) == last.id
    # One of other problems adds to it.
    keep(measurements, first, "20240105T000000Z", problem={**_sizes(), "h": 41})
    assert choose(PROBLEM, H200) == last.id
    assert "tuned:" in line(OTHER)


def _sizes():
    names = ("n", "c", "h", "w", "k", "r", "s")
    return {name: getattr(PROBLEM, name) for name in names} | {
        "stride": [1, 1],
        "padding": [1, 1],
        "dtype": PROBLEM.dtype,
        "layout": PROBLEM.layout,
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": {"choice": "columns=7"}}, "columns=7 of .*, which it no longer offers"),
        ({"labels": {"algorithm": "conv2d_fprop_99_gone"}}, "99_gone, which does not take it now"),
    ],
)
def test_a_stale_record_is_ignored_and_the_reason_given(changes, why, measurements):
    row = algorithm.get_algorithm("conv2d_fprop_10_wgmma")
    candidate = Candidate(row.id, row.choices(PROBLEM, H200)[-1])
    if "labels" in changes:
        labels = {"pass": "fprop", "precision": "tf32", "algorithm": row.id}
        labels |= {"choice": tuned.text(candidate.choice)} | changes["labels"]
        changes = {"labels": labels}
    keep(measurements, candidate, **changes)
    assert choose(PROBLEM, H200) == algorithm.candidates(PROBLEM, H200)[0].id
    assert re.search(rf"chosen \(estimated; tuned for .*{why}", line())


def test_what_was_fastest_before_it_changed_is_taken_and_the_change_told(measurements):
    best = slowest()
    keep(measurements, best, source_sha256="0" * 64)
    assert choose(PROBLEM, H200) == best.id
    assert "2 tried, before it changed (record 20240102T030405Z-abababa-tuning)" in line()


def test_a_case_that_failed_tells_nothing(measurements):
    failed = {"status": "failed", "reason": "why", "samples_s": []}
    keep(measurements, slowest(), **failed)
    assert line().endswith("; chosen (estimated)")


def test_neither_the_cpu_nor_the_emulator_reads_a_record(monkeypatch):
    def every(suite):
        raise AssertionError("it was read")

    monkeypatch.setattr(records, "every", every)
    plain = dataclasses.replace(PROBLEM, precision="fp32")
    assert choose(PROBLEM, EMULATOR) == "conv2d_fprop_10_wgmma"
    assert choose(plain, CPU) == "cpu-blas"
    with pytest.raises(AssertionError, match="it was read"):
        choose(PROBLEM, H200)


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_choice_has_a_text_of_its_own_that_leads_back_to_it(which, precision):
    problem = of(PROBLEM, precision)
    for row in algorithm.ALGORITHMS.values():
        if row.which == which and row.choices and row.supports(problem, H200)[0]:
            offered = row.choices(problem, H200)
            assert [tuned.parse(tuned.text(choice), offered) for choice in offered] == offered
            assert all("=" in tuned.text(choice) for choice in offered)


def test_candidates_are_pruned_by_their_estimates():
    everyone = algorithm.candidates(PROBLEM, H200, within=1e9, most=1000)
    few = algorithm.candidates(PROBLEM, H200, within=1.0, most=1)
    near = algorithm.candidates(PROBLEM, H200, within=1.3)
    assert few[0] == near[0] == everyone[0]
    assert set(few) < set(near) < set(everyone)
    # Of each kernel that may be fast, its own best is among even the fewest.
    assert len({each.id for each in few}) == len(few)
    estimates = [
        algorithm.get_algorithm(each.id).estimate(PROBLEM, H200, each.choice) for each in near
    ]
    assert estimates[1:] == sorted(estimates[1:])
    direct = of(ConvProblem(1, 3, 40, 40, 64, 3, 3, padding=(1, 1)), "fp32")
    first, *others = algorithm.candidates(direct, H200)
    assert first == Candidate("conv2d_fprop_9_direct")
    assert {each.id for each in others} >= {"conv2d_fprop_8_mma"}


def test_tables_of_other_networks_count_by_their_age(measurements):
    first, *_, last = algorithm.candidates(PROBLEM, H200)
    keep(measurements, last, time="20240102T030405Z", suite="tuning-networks")
    assert choose(PROBLEM, H200) == last.id
    keep(measurements, first, time="20240102T030406Z")
    assert choose(PROBLEM, H200) == first.id
    keep(measurements, last, time="20240102T030407Z", suite="tuning-networks")
    assert choose(PROBLEM, H200) == last.id
