# SPDX-License-Identifier: MIT
"""Cuts cover everything once, and rows come with the neighbours they need."""

import numpy as np
import pytest

from convstudy.conv import reference
from convstudy.parallel.cuts import height_with_halo, rows_with_halo, split


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 16, 40])
def test_a_split_covers_all_once_and_evenly(n, chunks):
    parts = split(n, chunks)
    assert np.concatenate([np.arange(n)[part] for part in parts]).tolist() == list(range(n))
    lengths = [part.stop - part.start for part in parts]
    assert len(parts) == min(n, chunks)
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((5, 0), ValueError, "chunks must be at least 1, got 0"),
        ((5, -2), ValueError, "chunks must be at least 1, got -2"),
        ((0, 2), ValueError, "n must be at least 1, got 0"),
        ((5, 1.5), TypeError, "chunks must be an integer, got 1.5"),
        ((5, "2"), TypeError, "chunks must be an integer, got '2'"),
    ],
)
def test_bad_splits_are_refused_in_words(values, error, message):
    with pytest.raises(error, match=message):
        split(*values)


@pytest.mark.parametrize(("taps", "padding"), [(3, 1), (1, 0), (3, 0), (5, 2), (2, 3), (3, 4)])
@pytest.mark.parametrize("chunks", [1, 2, 3, 11])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_with_their_halo_give_the_rows_of_the_whole(taps, padding, chunks, stride, rng):
    x, w = rng.standard_normal((2, 3, 7, 6)), rng.standard_normal((4, 3, taps, 3))
    whole = reference.conv2d(x, w, None, (stride, 1), (padding, 1))
    parts = []
    for rows in split(whole.shape[2], chunks):
        height = height_with_halo(rows.stop - rows.start, taps, stride)
        part = np.full((2, 3, height, 6), np.nan)
        rows_with_halo(x, rows, taps, padding, part, stride)
        parts.append(reference.conv2d(part, w, None, (stride, 1), (0, 1)))
    np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, rtol=1e-12)
