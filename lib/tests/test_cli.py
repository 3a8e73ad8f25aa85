# SPDX-License-Identifier: MIT
"""The command line: one line for what went wrong, and no work before that is known."""

import pytest

from convstudy import cli, paths
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
    assert cli.main(["figures", "--machine", "a30"]) == 0
    assert notebooks == [({"machines": "a30"}, paths.LOCAL_FIGURES)]


def test_a_notebook_that_fails_is_told_from_a_mistake(monkeypatch, capsys):
    def fails(*_):
        raise execute.NotebookFailedError("04-chunks.ipynb failed")

    monkeypatch.setattr(execute, "run", fails)
    assert cli.main(["notebooks"]) == 1
    assert capsys.readouterr().err == "convstudy: 04-chunks.ipynb failed\n"
