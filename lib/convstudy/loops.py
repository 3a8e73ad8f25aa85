# SPDX-License-Identifier: MIT
"""Loop nests written in Python and run as machine code: one thread, IEEE arithmetic."""

import functools
import pickle

from convstudy import paths


def compiled(function):
    """Have Numba compile `function` when it is first called, and keep the result in ``build/``.

    Numba itself is imported then and not before: it takes longer than everything else. Each
    combination of argument types is compiled once, so callers keep to one. Where nothing can be
    written, nothing is kept; what was kept and is damaged is compiled again.
    """

    @functools.cache
    def machine_code():
        import numba

        # Not beside the source: an installed package may lie where nothing can be written.
        numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(paths.BUILD / "numba")
        try:
            return numba.njit(function, cache=True)
        except (OSError, RuntimeError):  # there is no folder to keep it in
            return numba.njit(function)

    @functools.wraps(function)
    def call(*arguments):
        try:
            return machine_code()(*arguments)
        except (pickle.UnpicklingError, EOFError):
            machine_code().recompile()  # which forgets what is kept
            return machine_code()(*arguments)

    return call
