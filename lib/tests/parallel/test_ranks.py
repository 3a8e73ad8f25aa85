# SPDX-License-Identifier: MIT
"""Ranks that are processes: what `rank_cases.py` tries on 2 and on 4 of them, by MPI."""

import json
from pathlib import Path

import pytest
from rank_cases import CASES

from convstudy.parallel import launch
from convstudy.parallel.mpi import PATIENCE_VARIABLE

PROGRAM = str(Path(__file__).with_name("rank_cases.py"))


@pytest.fixture(scope="module", params=[2, 4])
def outcome(request):
    done = launch.run_ranks(
        request.param, PROGRAM, timeout_s=120, environment={PATIENCE_VARIABLE: "30"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_on_every_rank(case, outcome):
    assert outcome[case] is None, outcome[case]
