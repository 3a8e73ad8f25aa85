# SPDX-License-Identifier: MIT
"""Every kernel's file says what it does, and is named as its entry point."""

import re

import pytest

from convstudy import paths

FILES = sorted(paths.KERNELS.glob("*.cu"))
SECTIONS = ("Idea", "Threads", "Shared", "Source")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def kernel(request):
    return request.param


def test_the_header_says_what_a_reader_needs(kernel):
    header = re.match(r"(//.*\n)+", kernel.read_text())[0]
    missing = [name for name in SECTIONS if not re.search(rf"^// {name}\s+\S", header, re.M)]
    assert missing == [], f"{kernel.name} lacks in its header: {', '.join(missing)}"


def test_the_one_entry_point_has_the_files_name(kernel):
    entries = re.findall(
        r'extern\s+"C"\s+__global__[^{;]*?\b(\w+)\s*\(\s*(?:const|float|int|unsign|Element)',
        kernel.read_text(),
    )
    assert entries == [kernel.stem]


def test_the_name_says_operation_pass_rung_and_idea(kernel):
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+_\d+(_[a-z0-9]+)+", kernel.stem)


def test_a_launch_bound_is_given_and_no_header_of_cuda_is_needed(kernel):
    text = kernel.read_text()
    assert "__launch_bounds__(" in text
    assert not re.search(r"#include\s*<", text)


def test_every_barrier_is_explained(kernel):
    lines = kernel.read_text().splitlines()
    for number, line in enumerate(lines):
        if "__syncthreads()" in line and not line.lstrip().startswith("//"):
            around = " ".join(lines[max(0, number - 3) : number + 1])
            assert "//" in around, f"{kernel.name}:{number + 1}: say why this barrier stands"


def test_numbers_of_a_ladder_are_used_once():
    numbers = [re.match(r".+?_\d+(?=_)", path.stem)[0] for path in FILES]
    assert len(numbers) == len(set(numbers))
