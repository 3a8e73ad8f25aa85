# SPDX-License-Identifier: MIT
"""One look for every figure, and no state left behind."""

import contextlib

import matplotlib.style
from matplotlib.figure import Figure

from convstudy import paths

# Inches: one column of a page, and both.
SINGLE, DOUBLE = 3.4, 7.0

_STYLE = paths.PACKAGE / "plots" / "convstudy.mplstyle"


@contextlib.contextmanager
def style():
    """Draw in the study's style; as a context manager, or as a decorator: ``@style()``.

    Whatever a user's own matplotlibrc says does not count, so a figure is the same everywhere.
    """
    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure(rows=1, columns=1, width=DOUBLE, height=2.8, **subplots):
    """Return ``(figure, axes)`` of a new figure that belongs to no backend and no notebook.

    Parameters
    ----------
    rows, columns : int
        How many axes; one of each gives a single `Axes`, not an array.
    width, height : float
        Inches.
    **subplots
        Passed on to `matplotlib.figure.Figure.subplots`.
    """
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, **subplots)


def named(axes):
    """Return {label: handle} of what all panels show, each once: for one legend of a figure."""
    found = {}
    for panel in axes.flat:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    return found
