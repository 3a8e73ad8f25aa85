# SPDX-License-Identifier: MIT
"""The suites, by name, in the order in which they are run."""

from convstudy.measure.suites import (
    against_pytorch,
    batch,
    chunks,
    convolutions,
    curves,
    emulated,
    environments,
    functions,
    fusion,
    hierarchy,
    ladder,
    launching,
    learning,
    networks,
    scaling,
    startup,
    tuning,
)

SUITES = {
    suite.name: suite
    for suite in (
        functions.SUITE,
        hierarchy.SUITE,
        ladder.SUITE,
        tuning.SUITE,
        tuning.NETWORKS,
        convolutions.SUITE,
        convolutions.NETWORKS,
        against_pytorch.SUITE,
        fusion.SUITE,
        launching.SUITE,
        startup.SUITE,
        environments.SUITE,
        networks.SUITE,
        networks.CONTESTS,
        chunks.SUITE,
        batch.SUITE,
        scaling.SUITE,
        emulated.SUITE,
        learning.SUITE,
        curves.SUITE,
    )
}


def get_suites(names=""):
    """Return the suites of `names` (between commas), or all of them.

    Raises
    ------
    ValueError
        Where there is no such suite; the message lists those there are.
    """
    wanted = [name.strip() for name in names.split(",")] if names else list(SUITES)
    for name in wanted:
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    return [SUITES[name] for name in wanted]
