# SPDX-License-Identifier: MIT
"""The committed notebooks are in normal form, and what they draw is what is in figures/.

Strict nbval re-executes them and compares their text, but never a picture; this does.
"""

import base64
import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from convstudy import doctor, paths
from convstudy.study import execute
from convstudy.study.normalise import problems

NOTEBOOKS = execute.find()
DRAWN = "CONVSTUDY_DRAWN"
# Drawn in another way by each version of Matplotlib and of its fonts; the tables are not.
SAME_PICTURES = version("matplotlib") == doctor.locked()["matplotlib"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_it_may_be_committed(notebook):
    assert problems(notebook.read_text()) == []


def test_its_name_says_its_place_and_what_it_is_about(notebook):
    assert re.fullmatch(r"\d\d(-[a-z0-9]+)+", notebook.stem)


def test_whose_records_it_draws_can_be_chosen(notebook):
    assert isinstance(execute.defaults(notebook)[execute.MACHINES], str)


def test_its_pictures_are_those_in_figures(notebook):
    files = {path.read_bytes(): path.name for path in paths.FIGURES.glob("*.png")}
    for number, picture in enumerate(pictures(notebook), start=1):
        assert picture in files, f"picture {number} is none of figures/: `make notebooks figures`"


def pictures(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode("".join(output["data"]["image/png"]))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a folder into which every notebook has drawn its figures, just now.

    `make test` has them drawn under nbval, and says where.
    """
    if DRAWN in os.environ:
        return Path(os.environ[DRAWN])
    folder = tmp_path_factory.mktemp("drawn")
    execute.run(execute.choose(), folder / "notebooks", folder / "figures")
    return folder / "figures"


def test_figures_are_what_the_notebooks_draw(drawn):
    committed = {path.name for path in paths.FIGURES.iterdir() if path.is_file()}
    assert {path.name for path in drawn.iterdir()} == committed
    for path in sorted(drawn.glob("*.csv")):
        assert_same_table(pd.read_csv(path), pd.read_csv(paths.FIGURES / path.name), path.name)


@pytest.mark.skipif(
    not SAME_PICTURES, reason="another Matplotlib than requirements.lock names: `make setup`"
)
def test_pictures_are_the_same_bytes(drawn):
    for path in sorted(drawn.glob("fig*.*")):
        same = path.read_bytes() == (paths.FIGURES / path.name).read_bytes()
        assert same, f"{path.name} is not what is drawn now: `make notebooks figures`"


def assert_same_table(actual, expected, name):
    assert list(actual.columns) == list(expected.columns), name
    assert len(actual) == len(expected), name
    for column in expected:
        if pd.api.types.is_numeric_dtype(expected[column]):
            # Six digits are written, the last of which is rounded.
            np.testing.assert_allclose(actual[column], expected[column], 2e-5, err_msg=name)
        else:
            assert list(actual[column].fillna("")) == list(expected[column].fillna("")), name
