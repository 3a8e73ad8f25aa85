# SPDX-License-Identifier: MIT
"""What every tracked file keeps to."""

import re
import subprocess

import pytest

from convstudy import paths, records

THIS = "lib/tests/project/test_tree.py"
LICENCE = {
    ".py": "# SPDX-License-Identifier: MIT",
    ".cu": "// SPDX-License-Identifier: MIT",
    ".cuh": "// SPDX-License-Identifier: MIT",
    ".h": "// SPDX-License-Identifier: MIT",
    ".cpp": "// SPDX-License-Identifier: MIT",
}
TOP_LEVEL = {
    *("README.md", "Makefile", "environment.yml", "pyproject.toml", "requirements.lock"),
    *("LICENSE", "CITATION.cff", ".ci", ".gitignore", "notebooks", "lib", "data", "figures"),
}
# Addresses that packages come from are a user's own setting; paths are one machine's.
ADDRESSES = re.compile(
    r"https?://\S*(pypi|pythonhosted|anaconda|conda\.|files\.|mirror|index|simple|localhost)"
    r"|--(extra-)?index-url\b(?! )|find-links"
)
MACHINE_PATHS = re.compile(r"(?<![\w.:/-])/(root|work|home|Users|tmp|opt)/\w")


def git(*arguments):
    found = subprocess.run(
        ["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode > 1:
        pytest.skip("this copy is not a git repository: clone it to run this test")
    return found.stdout.splitlines()


@pytest.fixture(scope="module")
def tracked():
    return [name for name in git("ls-files") if (paths.ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts(tracked):
    contents = {name: (paths.ROOT / name).read_bytes() for name in tracked}
    return {name: text.decode() for name, text in contents.items() if b"\0" not in text}


def test_nothing_of_the_library_is_ignored():
    files = [str(p) for p in (paths.ROOT / "lib").rglob("*") if p.is_file()]
    sources = [name for name in files if not re.search(r"__pycache__|\.egg-info|\.\w+_cache", name)]
    assert len(sources) > 10
    assert git("check-ignore", *sources) == []


def test_there_is_no_other_top_level_name(tracked):
    assert {name.split("/")[0] for name in tracked} <= TOP_LEVEL


def test_sources_begin_with_their_licence(texts):
    for name, text in texts.items():
        line = LICENCE.get("." + name.rpartition(".")[2])
        assert line is None or text.startswith(line), name


def test_python_modules_begin_with_a_docstring_of_one_line(texts):
    for name, text in texts.items():
        if name.endswith(".py"):
            summary = text.splitlines()[1]
            assert summary.startswith('"""'), name
            assert re.search(r'[.!?]("""|\)?)$', summary), f"{name}: {summary}"


def test_no_file_names_a_package_index_or_a_path_of_one_machine(texts):
    for name, text in texts.items():
        if name == THIS or name.endswith(".svg"):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            assert not ADDRESSES.search(line), f"{name}:{number}: {line[:200]}"
            assert not MACHINE_PATHS.search(line), f"{name}:{number}: {line[:200]}"


def test_lines_of_device_code_are_about_100_characters_at_most(texts):
    """To break a line makes records of the kernel stale: so one may be longer by one character.

    Comments may be by four.
    """
    for name, text in texts.items():
        if name.endswith((".cu", ".cuh", ".h", ".cpp")):
            for line in text.splitlines():
                assert len(line) <= (104 if line.lstrip().startswith("//") else 101), (
                    f"{name}: {line}"
                )


def test_files_stay_small(tracked):
    for name in tracked:
        # A record of a whole contest holds some 1,600 rows of a kilobyte.
        most = 2_500_000 if name.startswith("data/measurements/") else 1_500_000
        assert (paths.ROOT / name).stat().st_size < most, name


def test_every_machine_whose_records_are_committed_is_drawn(tracked):
    folders = {name.split("/")[2] for name in tracked if name.startswith("data/measurements/")}
    assert set(records.COMMITTED) == folders
