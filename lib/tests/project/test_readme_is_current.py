# SPDX-License-Identifier: MIT
"""README.md's generated parts are what would be generated now."""

import re

import pytest

from convstudy import paths
from convstudy.study import readme

TEXT = readme.README.read_text()


def test_every_part_is_there_and_current():
    assert set(re.findall(r"<!-- begin: (\w+) -->", TEXT)) == set(readme.BLOCKS)
    assert readme.rewrite(TEXT) == TEXT, "run `make readme`"


def test_its_links_and_its_folders_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (paths.ROOT / target).exists(), target


def test_every_module_of_the_library_says_in_one_line_what_it_is():
    for line in readme.tree().splitlines()[1:-1]:
        name, _, says = line.strip().partition("  ")
        assert says.strip(), f"{name} has no docstring"


def test_every_command_that_it_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (paths.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets


def test_what_is_typed_between_markers_is_overwritten():
    typed = TEXT.replace("<!-- end: commands -->", "| typed |\n<!-- end: commands -->")
    assert typed != TEXT
    assert readme.rewrite(typed) == readme.rewrite(TEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin: nothing -->\n<!-- end: nothing -->", "nothing makes 'nothing'; there are"),
        ("<!-- begin: claims -->\n", "begin: claims --> has no partner"),
        ("<!-- begin: claims -->\n<!-- end: tree -->", "has no partner"),
    ],
)
def test_a_broken_marker_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        readme.rewrite(text)
