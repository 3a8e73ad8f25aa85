# SPDX-License-Identifier: MIT
"""What may be committed as a notebook, and what may not."""

import json

import pytest
import tiny

from convstudy.study import execute
from convstudy.study.normalise import normalise, problems


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def notebook(*cells):
    """Return a notebook in normal form, as if its cells had been executed in order."""
    cells = [tiny.code(tiny.PARAMETERS, "parameters"), *cells]
    executed = [cell | {"execution_count": i} for i, cell in enumerate(cells, start=1)]
    return normalise(tiny.text(*executed))


GOOD = notebook(tiny.code("print(2)", outputs=[stream("2\n")]))


def test_a_good_notebook_has_no_problem_and_is_left_as_it_is():
    assert problems(GOOD) == []
    assert normalise(GOOD) == GOOD


def test_what_differs_from_run_to_run_goes():
    noisy = json.loads(GOOD)
    noisy["metadata"] |= {"papermill": {"duration": 3.0}, "widgets": {}, "language_info": {}}
    noisy["metadata"]["kernelspec"] = {"name": "mine", "display_name": "Mine"}
    noisy["nbformat_minor"] = 4
    for cell in noisy["cells"]:
        cell["metadata"] |= {"papermill": {"start_time": "now"}, "execution": {}, "collapsed": True}
    noisy["cells"][1]["outputs"] = [stream(""), stream("2"), stream("\n")]
    assert problems(json.dumps(noisy)) == ["it is not in normal form; run `make notebooks`"]
    assert normalise(json.dumps(noisy)) == GOOD


def test_ids_stay_and_missing_or_double_ones_are_the_same_every_time():
    changed = json.loads(GOOD)
    del changed["cells"][1]["id"]
    once = normalise(json.dumps(changed))
    assert once == normalise(json.dumps(changed))
    changed["cells"][1]["id"] = changed["cells"][0]["id"]
    assert once == normalise(json.dumps(changed))
    assert json.loads(once)["cells"][0] == json.loads(GOOD)["cells"][0]


LONG = "def f():\n" + "    x = 1\n" * 9
FAULTS = {
    "too long": (tiny.code(LONG + "    x = 1\n"), "f() has 11 lines"),
    "an error": (
        tiny.code("x", outputs=[{"output_type": "error", "ename": "NameError", "traceback": []}]),
        "it ended in NameError",
    ),
    "stderr": (tiny.code("f()", outputs=[stream("a warning", "stderr")]), "wrote to stderr"),
    "a path": (tiny.code("f()", outputs=[stream("in '/usr/lib/x'")]), "/usr/lib/x"),
    "a magic": (tiny.code("%matplotlib inline"), "not plain Python"),
    "injected": (tiny.code("chunks = 3", "injected-parameters"), "that papermill put in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    cell, message = FAULTS[fault]
    (problem,) = problems(notebook(cell))
    assert message in problem


def test_ten_lines_and_a_relative_path_are_no_fault():
    cell = tiny.code(LONG, outputs=[stream("figures/fig1.png 1/2 https://example.org/usr/x")])
    assert problems(notebook(cell)) == []


@pytest.mark.parametrize("count", [None, 5])
def test_a_cell_that_was_not_executed_in_order_is_named(count):
    changed = json.loads(GOOD)
    changed["cells"][1]["execution_count"] = count
    (problem,) = problems(normalise(json.dumps(changed)))
    assert "not executed once each, in order" in problem


def test_too_many_cells_and_no_parameters_are_named():
    cells = [tiny.code("1")] * 13
    assert problems(notebook(*cells)) == []
    (problem,) = problems(notebook(*cells, tiny.code("1")))
    assert "15 code cells, at most 14" in problem
    executed = tiny.code("print(2)", execution_count=1)
    assert problems(normalise(tiny.text(executed))) == ["no cell is tagged `parameters`"]


def test_two_runs_of_papermill_come_to_the_same_text(tmp_path):
    tiny.write(tmp_path, "01-run", "print(1)\nprint(2)", "machines")
    texts = []
    for name in ("one", "other"):
        execute.run(execute.choose("", {}, tmp_path), tmp_path / name)
        texts.append(normalise((tmp_path / name / "01-run.ipynb").read_text()))
    assert texts[0] == texts[1]
    assert problems(texts[0]) == []
