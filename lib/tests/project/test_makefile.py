# SPDX-License-Identifier: MIT
"""make passes on what it is told, and does nothing when it is asked what it would do."""

import os
import subprocess

import pytest

from convstudy import paths


def make(*arguments):
    # A make above this one would hand down its own flags and variables.
    inherited = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "CONDA_DEFAULT_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in inherited}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=paths.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def given(*arguments):
    """Return what the shell hands to the study, word by word."""
    return make("STUDY=printf '<%s>'", "READY=", *arguments)


def test_make_alone_is_help():
    assert make() == make("help")
    for name in (
        "setup",
        "figures",
        "test",
        "test-gpu",
        "sanitize",
        "lab",
        "train",
        "measure",
        "doctor",
        "clean",
    ):
        assert f"  {name} " in make()


def test_names_on_the_command_line_become_parameters():
    words = given("figures", "NOTEBOOK=04,05", "MACHINE=local", "chunks=8", "JOBS=3")
    assert words == "<figures><--notebook><04,05><--machine><local><chunks=8>"


@pytest.mark.parametrize("value", ["it's", "a b", "$HOME", "x;y", "*", '"q"', "a$(b)c", "é\\"])
def test_any_value_arrives_as_it_was_typed(value):
    assert given("figures", f"title={value}") == f"<figures><title={value}>"


@pytest.mark.parametrize("name", ["NOTEBOOK", "MACHINE"])
def test_names_arrive_as_they_were_typed(name):
    assert given("figures", f"{name}=$x $(y)").endswith("><$x $(y)>")


def test_only_what_was_drawn_for_the_tests_is_removed_wherever_the_study_lies():
    told = make("-n", "test", "READY=", "CURDIR=/a b's")
    assert r"rm -rf '/a b'\''s/build/drawn'" in told
    assert r"CONVSTUDY_FIGURES='/a b'\''s/build/drawn' " in told
    assert r"CONVSTUDY_DRAWN='/a b'\''s/build/drawn' " in told


def test_options_reach_train():
    assert given("train", "steps=9", "folder=a b") == "<train><folder=a b><steps=9>"


def test_suites_and_options_reach_measure():
    words = given("measure", "SUITE=functions,memory", "repeats=5")
    assert words == "<measure><functions,memory><repeats=5>"


def test_tools_reach_the_sanitizer():
    assert given("sanitize", "TOOL=memcheck,racecheck") == "<sanitize><memcheck,racecheck>"
    assert given("sanitize") == "<sanitize>"


def test_a_dry_run_writes_nothing():
    before = sorted(path.name for path in paths.ROOT.iterdir())
    for target in ("setup", "figures", "test", "train", "measure", "notebooks", "clean"):
        assert make("-n", target)
    assert sorted(path.name for path in paths.ROOT.iterdir()) == before
