# SPDX-License-Identifier: MIT
"""Parameters are checked before anything runs; what runs is told where its figures go."""

import contextlib
import json
import subprocess

import pytest
import tiny

from convstudy import paths, records
from convstudy.study import execute

SHOW = f"import os\nprint(os.environ.get({paths.FIGURES_VARIABLE!r}), machines, chunks, scale)"


@pytest.fixture
def folder(tmp_path):
    tiny.write(tmp_path, "01-share", SHOW, parameters='machines = "cpu"\n')
    tiny.write(tmp_path, "04-chunks", SHOW)
    (tmp_path / "scratch.ipynb").write_text("not one of the study's")
    return tmp_path


@pytest.mark.parametrize("name", ["04", "4", "04-chunks", "04-chunks.ipynb", " 04"])
def test_a_notebook_goes_by_its_number_or_its_name(folder, name):
    assert [path.stem for path in execute.find(name, folder)] == ["04-chunks"]


def test_many_notebooks_come_in_reading_order(folder):
    stems = ["01-share", "04-chunks"]
    assert [path.stem for path in execute.find("04,01", folder)] == stems
    assert [path.stem for path in execute.find("", folder)] == stems


def test_a_notebook_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(ValueError, match="no notebook '07'; there are 01-share, 04-chunks"):
        execute.find("01,07", folder)
    # Filled with zeros, an empty name would be that of the first.
    tiny.write(folder, "00-claims", SHOW)
    for selection in (",", "04,"):
        with pytest.raises(ValueError, match="no notebook ''; there are 00-claims"):
            execute.find(selection, folder)


def test_each_notebook_gets_the_parameters_it_knows_in_their_types(folder):
    given = {"machines": "local", "chunks": "8", "scale": "2"}
    share, chunks = execute.choose("", given, folder).values()
    assert share == {"machines": "local"}
    assert chunks == {"machines": "local", "chunks": 8, "scale": 2.0}
    assert type(chunks["scale"]) is float


def test_a_misspelt_parameter_is_an_error_that_lists_the_right_ones(folder):
    with pytest.raises(ValueError, match=r"'chunk' \(did you mean chunks\?\); there are chunks,"):
        execute.choose("04", {"chunk": "8"}, folder)
    with pytest.raises(ValueError, match="there are machines"):
        execute.choose("01", {"chunks": "8"}, folder)


@pytest.mark.parametrize("value", ["many", "1.5", "true", "[8]", ""])
def test_a_value_of_another_type_is_an_error(folder, value):
    with pytest.raises(ValueError, match=r"chunks=.* is not of type int; its default is 2"):
        execute.choose("04", {"chunks": value}, folder)


@pytest.mark.parametrize("value", ["[1", "a: b: c", "2001-99-99"])
def test_a_value_that_is_no_yaml_is_an_error(folder, value):
    with pytest.raises(ValueError, match=r"chunks=.* cannot be read as YAML; its default is 2"):
        execute.choose("04", {"chunks": value}, folder)


@pytest.mark.parametrize("value", [".nan", ".inf", "-5", "0"])
def test_a_number_that_is_not_finite_or_positive_is_an_error(folder, value):
    with pytest.raises(ValueError, match=r"scale=.* is no finite number above 0; its default is 0"):
        execute.choose("04", {"scale": value}, folder)


@pytest.mark.parametrize("slugs", ["nope", "nvidia-h200,nope", "../../etc", ","])
def test_a_machine_without_records_is_an_error(folder, slugs):
    with pytest.raises(ValueError, match=r"no record of machine '.*'; there are records of amd"):
        execute.choose("", {"machines": slugs}, folder)


def test_this_machines_records_come_beside_the_committed_ones(folder):
    share, chunks = execute.with_local(execute.choose("", {"chunks": "8"}, folder)).values()
    assert share == {"machines": "cpu,local"}
    assert chunks == {"machines": "h200,local", "chunks": 8}
    chosen = execute.choose("04", {"machines": "amd-epyc-2c"}, folder)
    assert execute.with_local(chosen) == chosen


def test_a_notebook_that_names_no_machine_draws_the_committed_ones(folder):
    tiny.write(folder, "02-all", SHOW, parameters='machines = ""\n')
    (chosen,) = execute.with_local(execute.choose("02", {}, folder)).values()
    assert chosen == {"machines": ",".join((*records.COMMITTED, "local"))}


def stdout(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_values_and_the_folder_of_figures_reach_the_notebook(folder, monkeypatch):
    monkeypatch.setenv(paths.FIGURES_VARIABLE, "a folder that must not leak")
    outputs, figures = folder / "out", folder / "figures"
    execute.run(execute.choose("04", {"chunks": "8"}, folder), outputs, figures)
    assert stdout(outputs / "04-chunks.ipynb") == f"{figures} h200 8 0.5\n"
    execute.run(execute.choose("04", {}, folder), outputs)
    assert stdout(outputs / "04-chunks.ipynb") == "None h200 2 0.5\n"


def test_a_failure_names_the_notebook_the_cell_and_the_error_and_keeps_the_rest(tmp_path):
    tiny.write(tmp_path, "02-broken", "1 + 1", "nothing = {}\nnothing['key']")
    tiny.write(tmp_path, "03-whole", "print('done')")
    outputs = tmp_path / "out"
    with pytest.raises(execute.NotebookFailedError) as failure:
        execute.run(execute.choose("", {}, tmp_path), outputs)
    message = str(failure.value)
    assert "02-broken.ipynb failed in code cell 3 of 3" in message
    assert "nothing['key']" in message
    assert "KeyError: 'key'" in message
    assert str(outputs / "02-broken.ipynb") in message
    assert "03-whole" not in message
    assert stdout(outputs / "03-whole.ipynb") == "done\n"


@pytest.mark.parametrize(("failures", "runs"), [(1, 2), (9, 3)])
def test_a_kernel_that_does_not_start_is_tried_again(failures, runs, tmp_path, monkeypatch):
    notebook, calls = tiny.write(tmp_path, "01-share", SHOW), []

    def papermill(*_, **__):
        calls.append(None)
        died = len(calls) <= failures
        error = "RuntimeError: Kernel died before replying to kernel_info" if died else ""
        return subprocess.CompletedProcess((), int(died), "", error)

    monkeypatch.setattr(execute.subprocess, "run", papermill)
    fails = pytest.raises(execute.NotebookFailedError, match="Kernel died")
    with fails if failures >= runs else contextlib.nullcontext():
        execute.run({notebook: {}}, tmp_path / "out")
    assert len(calls) == runs
