# SPDX-License-Identifier: MIT
"""The examples in the library's docstrings give what they say."""

import doctest
import importlib

import pytest

from convstudy import paths

MODULES = sorted(
    ".".join(path.relative_to(paths.PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in paths.PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
