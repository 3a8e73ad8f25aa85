# SPDX-License-Identifier: MIT
"""The command line: one line for what went wrong, and no work before that is known."""

import sys

import pytest

from convstudy import cli, doctor, paths, recipe
from convstudy.measure import runner
from convstudy.measure.suite import Suite
from convstudy.measure.suites import SUITES
from convstudy.study import execute


@pytest.fixture
def idle(monkeypatch):
    """Fail where anything is measured or executed."""

    def working(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(cli, "_measure_missing", working)
    monkeypatch.setattr(execute, "run", working)


@pytest.fixture
def notebooks(monkeypatch, tmp_path):
    """Give the study one notebook, no records, and see what would be executed."""
    cell = '{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "%s"}'
    source = cell % r"machines = 'h200'\nchunks = 2"
    (tmp_path / "04-chunks.ipynb").write_text(f'{{"cells": [{source}]}}')
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(paths, "LOCAL_MEASUREMENTS", tmp_path / "local")
    runs = []
    monkeypatch.setattr(
        execute, "run", lambda chosen, _, figures: runs.append((*chosen.values(), figures))
    )
    monkeypatch.setattr(cli, "_measure_missing", lambda: runs.append("measured"))
    return runs


def record_something():
    paths.LOCAL_MEASUREMENTS.mkdir()
    (paths.LOCAL_MEASUREMENTS / "a.json").write_text("{}")


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--notebook", "99"], "there is no notebook '99'"),
        (["chunks"], "'chunks' is not of the form name=value"),
        (["=8"], "'=8' is not of the form name=value"),
        (["--machine", "nope"], "there is no record of machine 'nope'; there are records of"),
        (["machines=nope"], "there is no record of machine 'nope'; there are records of"),
        (["--notebook", "04", "chunks=[1"], "parameter chunks=[1 cannot be read as YAML"),
        (["chunks=8", "chunks=4"], "chunks= is given twice, as 8 and 4; leave one out"),
        (["cunks=8"], "no selected notebook has a parameter 'cunks'"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(words, message, capsys):
    assert cli.main(["figures", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"convstudy: {message}")
    assert said.err.count("\n") == 1


def test_the_traceback_is_there_for_those_who_ask():
    with pytest.raises(ValueError, match="no notebook '99'"):
        cli.main(["--traceback", "figures", "--notebook", "99"])


def test_a_plain_run_measures_then_draws_the_committed_and_the_local_figures(notebooks):
    record_something()
    assert cli.main(["figures"]) == 0
    local = {"machines": "h200,local"}
    assert notebooks == ["measured", ({}, paths.FIGURES), (local, paths.LOCAL_FIGURES)]


def test_without_a_record_of_this_machine_only_the_committed_figures_are_drawn(notebooks):
    assert cli.main(["figures", "--records-only"]) == 0
    assert notebooks == [({}, paths.FIGURES)]


def test_other_parameters_never_draw_into_the_committed_figures(notebooks):
    assert cli.main(["figures", "--records-only", "chunks=8"]) == 0
    assert notebooks == [({"chunks": 8}, paths.LOCAL_FIGURES)]
    record_something()
    assert cli.main(["figures", "--records-only", "chunks=8"]) == 0
    assert notebooks[1:] == [({"machines": "h200,local", "chunks": 8}, paths.LOCAL_FIGURES)]


def test_another_machines_figures_need_no_measurement_here(notebooks):
    assert cli.main(["figures", "--machine", "amd-epyc-2c"]) == 0
    assert notebooks == [({"machines": "amd-epyc-2c"}, paths.LOCAL_FIGURES)]


def test_this_machines_figures_need_a_record_of_it(notebooks, monkeypatch, capsys):
    monkeypatch.setattr(paths, "MEASUREMENTS", paths.LOCAL_MEASUREMENTS.parent)
    assert cli.main(["figures", "--machine", "local", "--records-only"]) == 2
    assert "there is no record of machine 'local'" in capsys.readouterr().err
    assert notebooks == []
    record_something()
    assert cli.main(["figures", "--machine", "local", "--records-only"]) == 0
    assert notebooks == [({"machines": "local"}, paths.LOCAL_FIGURES)]


def test_a_notebook_that_fails_is_told_from_a_mistake(monkeypatch, capsys):
    def fails(*_):
        raise execute.NotebookFailedError("04-chunks.ipynb failed")

    monkeypatch.setattr(execute, "run", fails)
    assert cli.main(["notebooks"]) == 1
    assert capsys.readouterr().err == "convstudy: 04-chunks.ipynb failed\n"


@pytest.fixture
def suites(monkeypatch):
    """Give the study three suites, one of which no machine can run; see what would be run."""

    def none(options):
        return []

    three = (
        Suite("ladder", "the kernels", none, options={"repeats": 20}, quick={"repeats": 3}),
        Suite("memory", "the hierarchy", none, options={"rounds": 9}),
        Suite("huge", "many GPUs", none, gpus=1000),
    )
    monkeypatch.setattr("convstudy.measure.suites.SUITES", {each.name: each for each in three})
    runs = []

    def run(suite, machine, options, stop_after_s):
        if options.get("repeats") == "666":
            raise RuntimeError("nothing was measured")
        runs.append((suite.name, machine, options, *([stop_after_s] if stop_after_s else [])))

    monkeypatch.setattr(runner, "run", run)
    return runs


def test_all_suites_that_can_run_here_are_run_and_the_others_named(suites, capsys):
    assert cli.main(["measure"]) == 0
    assert suites == [("ladder", "local", {}), ("memory", "local", {})]
    assert "huge: left out: it needs 1000 GPU(s)" in capsys.readouterr().out


def test_each_suite_gets_the_options_it_has(suites):
    assert cli.main(["measure", "ladder,memory", "rounds=2", "--quick", "--machine", "h200"]) == 0
    assert suites == [("ladder", "h200", {"repeats": 3}), ("memory", "h200", {"rounds": "2"})]


def test_each_suite_is_told_when_its_time_is_up(suites):
    assert cli.main(["measure", "ladder,memory", "--stop-after", "60"]) == 0
    assert suites == [("ladder", "local", {}, 60.0), ("memory", "local", {}, 60.0)]


def test_a_suite_that_fails_does_not_keep_the_others_from_running(suites, capsys):
    assert cli.main(["measure", "ladder,memory", "repeats=666"]) == 1
    assert suites == [("memory", "local", {})]
    assert capsys.readouterr().err == "convstudy: nothing was measured\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lader"], "there is no suite 'lader'; there are ladder, memory, huge"),
        (["memory", "repeats=3"], "no selected suite has an option 'repeats'; there are rounds"),
        (["ladder,memory", "rounds=0"], "suite memory: rounds=0 must be at least 1"),
        (["huge", "rounds=3"], "no selected suite has an option 'rounds'; there are none"),
    ],
)
def test_an_unknown_suite_or_option_is_an_error(words, message, suites, capsys):
    assert cli.main(["measure", *words]) == 2
    assert message in capsys.readouterr().err
    assert suites == []


@pytest.mark.parametrize("seconds", ["nan", "-1", "soon"])
def test_a_time_to_stop_after_that_is_none_is_refused(seconds, suites, capsys):
    with pytest.raises(SystemExit):
        cli.main(["measure", "--stop-after", seconds])
    assert f"{seconds!r} must be a number of seconds, 0 or more" in capsys.readouterr().err
    assert suites == []


def test_a_training_and_its_weights_in_another_format(tmp_path, capsys):
    options = ["execution=cpu", "size=16x16", "width=2", "composites=8", "held_out=2", "steps=4"]
    assert cli.main(["train", *options, f"folder={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert "UNet(3, 2, bilinear=False, width=2) after 4 steps" in said.out
    assert said.err == ""
    weights = tmp_path / "weights.safetensors"
    assert cli.main(["convert", str(weights), str(tmp_path / "w.npz")]) == 0
    assert (tmp_path / "w.npz").is_file()
    assert cli.main(["train", *options, "seed=1", f"folder={tmp_path}"]) == 2
    assert "holds a training of other options: seed=0 (now 1)" in capsys.readouterr().err
    assert cli.main(["train", *options, "seed=1", f"folder={tmp_path}", "anew=yes"]) == 0


def test_a_training_needs_no_standard_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    options = ["execution=cpu", "size=16x16", "width=2", "composites=8", "held_out=2", "steps=2"]
    assert cli.main(["train", *options, f"folder={tmp_path}"]) == 0
    sys.stderr.close()
    assert "after 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize("said", ["", "x", "-2", "0"])
def test_a_launcher_that_gives_no_number_is_none(said, monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", said)
    assert cli.main(["train", "--list"]) == 0
    assert "steps=" in capsys.readouterr().out


def test_no_suites_name_runs_into_what_follows():
    for suite in SUITES.values():
        assert cli._described(suite).startswith(f"{suite.name} ")
    assert all(line[7:].split(" ")[0] in SUITES for line in doctor.live())


@pytest.mark.parametrize(
    "given", [["data=/typo"], ["start=/typo.npz"], ["size=8x8"], ["width=1000000"]]
)
def test_a_training_that_is_refused_leaves_the_checkpoints_of_the_one_before(given, tmp_path):
    kept = tmp_path / "step-00000004.safetensors"
    kept.write_bytes(b"all that was learnt")
    words = ["execution=cpu", "anew=yes", f"folder={tmp_path}", *given]
    assert cli.main(["train", *words]) == 2
    assert kept.read_bytes() == b"all that was learnt"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["folder="], "folder= names no folder; leave it out for "),
        (["steps=2", "steps=3"], "steps= is given twice, as 2 and 3; leave one out"),
    ],
)
def test_what_a_training_does_not_take_is_said_before_it_writes_anything(
    given, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "execution=cpu", *given]) == 2
    assert capsys.readouterr().err.startswith(f"convstudy: {message}")
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_words_is_named(monkeypatch, capsys):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(recipe, "train", fails)
    assert cli.main(["train", "execution=cpu"]) == 2
    assert capsys.readouterr().err == "convstudy: MemoryError\n"


def test_the_options_of_a_training_are_listed(capsys):
    assert cli.main(["train", "--list", "execution=cpu", "steps=7"]) == 0
    said = capsys.readouterr().out
    assert "steps=7\n" in said
    assert "schedule=cosine\n" in said


def test_only_what_is_missing_is_measured(suites, monkeypatch):
    monkeypatch.setattr(runner, "missing", lambda those, machine="local": those[1:2])
    assert cli.main(["measure", "--missing"]) == 0
    assert suites == [("memory", "local", {})]
    cli._measure_missing()
    assert suites[1:] == [("memory", "local", {})]


def test_the_suites_are_listed_with_their_options(suites, capsys):
    assert cli.main(["measure", "--list"]) == 0
    said = capsys.readouterr().out
    assert "ladder                 the kernels (repeats=20)" in said
    assert "huge                   many GPUs\n" in said
    assert suites == []
