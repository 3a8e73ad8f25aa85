# SPDX-License-Identifier: MIT
"""Which arrays share memory: lifetimes in, offsets out, all before anything runs."""

from dataclasses import dataclass

# cuTensorMapEncode and vectors of 16 bytes want less; a line of the L2 cache is 128.
ALIGNMENT = 256


@dataclass(frozen=True)
class Lifetime:
    """How many bytes an array has, and the first and the last step that touch it."""

    size: int
    first: int
    last: int

    def meets(self, other):
        """Return whether both have to exist at some time."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes):
    """Return an offset for each array, and how many bytes all of them take together.

    The largest are placed first, each at the lowest offset where it meets nobody: at most some
    per cent above the bytes that live at one time, which nothing can be below.

    Parameters
    ----------
    lifetimes : sequence of Lifetime

    Returns
    -------
    (list of int, int)
    """
    offsets = [0] * len(lifetimes)
    placed = []
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first))
    for i in order:
        mine = lifetimes[i]
        taken = sorted(
            (offsets[j], offsets[j] + _rounded(lifetimes[j].size))
            for j in placed
            if mine.meets(lifetimes[j])
        )
        at = 0
        for start, stop in taken:
            if at + _rounded(mine.size) <= start:
                break
            at = max(at, stop)
        offsets[i] = at
        placed.append(i)
    total = max(
        (at + _rounded(each.size) for at, each in zip(offsets, lifetimes, strict=True)), default=0
    )
    return offsets, total


def most_alive(lifetimes):
    """Return the bytes of the arrays that live at the same time, at the worst step."""
    steps = {each.first for each in lifetimes}
    return max(
        (
            sum(_rounded(each.size) for each in lifetimes if each.first <= step <= each.last)
            for step in steps
        ),
        default=0,
    )


def _rounded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT
