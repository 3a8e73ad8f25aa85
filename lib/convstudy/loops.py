# SPDX-License-Identifier: MIT
"""Loop nests written in Python and run as machine code: one thread, IEEE arithmetic."""

import functools

from convstudy import paths


def compiled(function):
    """Have Numba compile `function` when it is first called, and keep the result in ``build/``.

    Numba itself is imported then and not before: it takes longer than everything else. Each
    combination of argument types is compiled once, so callers keep to one.
    """

    @functools.cache
    def machine_code():
        import numba

        # Not beside the source: an installed package may lie where nothing can be written.
        numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(paths.BUILD / "numba")
        return numba.njit(function, cache=True)

    @functools.wraps(function)
    def call(*arguments):
        return machine_code()(*arguments)

    return call
