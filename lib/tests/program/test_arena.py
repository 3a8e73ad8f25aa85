# SPDX-License-Identifier: MIT
"""Which arrays share memory."""

import itertools

import numpy as np
import pytest

from convstudy.program.arena import ALIGNMENT, Lifetime, most_alive, place


def overlap(a, at_a, b, at_b):
    return at_a < at_b + b.size and at_b < at_a + a.size


@pytest.mark.parametrize("seed", range(20))
def test_arrays_that_live_together_lie_apart(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 30, 40)
    lifetimes = [
        Lifetime(int(size), int(begin), int(begin + length))
        for size, begin, length in zip(
            rng.integers(1, 10_000, 40), first, rng.integers(0, 12, 40), strict=True
        )
    ]
    offsets, total = place(lifetimes)
    for (a, at_a), (b, at_b) in itertools.combinations(zip(lifetimes, offsets, strict=True), 2):
        assert not (a.meets(b) and overlap(a, at_a, b, at_b))
    assert all(at % ALIGNMENT == 0 for at in offsets)
    assert max(at + each.size for at, each in zip(offsets, lifetimes, strict=True)) <= total
    assert most_alive(lifetimes) <= total <= 1.3 * most_alive(lifetimes)


def test_arrays_one_after_the_other_share():
    offsets, total = place([Lifetime(1000, i, i) for i in range(5)])
    assert offsets == [0] * 5
    assert total == 1024


def test_nothing_takes_nothing():
    assert place([]) == ([], 0)
    assert most_alive([]) == 0
