# SPDX-License-Identifier: MIT
"""From a drawing to files that are the same bytes on every run, and to a notebook's output."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from convstudy import paths
from convstudy.plots.style import style

NOTHING = "No record of these machines has what would be drawn here."


@dataclass(frozen=True)
class Drawn:
    """A figure and the table it plots; a table alone where `figure` is None.

    Attributes
    ----------
    name : str
        The file's stem: ``figN_topic`` or ``tabN_topic``, N the paper's number; ``figSN_topic``
        for what lies beyond the paper.
    table : pandas.DataFrame
        Every number that the figure shows, one row a mark. Its index is not kept.
    figure : matplotlib.figure.Figure or None
    records : tuple of str
        Ids of the records it was drawn from.
    """

    name: str
    table: pd.DataFrame
    figure: Figure | None = None
    records: tuple[str, ...] = ()

    def csv(self):
        """Return the table as text: six digits, one form on every machine."""
        return self.table.to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def png(self):
        """Return the figure as the bytes of a PNG."""
        return self._render("png", {"Software": None})

    def svg(self):
        """Return the figure as the bytes of an SVG."""
        return self._render("svg", {"Date": None, "Creator": None})

    def _render(self, kind, metadata):
        # No date and no version, or the bytes would change without the figure changing.
        if self.records:
            metadata["Description"] = "Drawn from " + ", ".join(self.records)
        target = io.BytesIO()
        with style(), warnings.catch_warnings():
            # A character that the font lacks would be drawn as an empty box.
            warnings.filterwarnings("error", message="Glyph .* missing from")
            self._settle()
            self.figure.savefig(target, format=kind, metadata=metadata)
        return target.getvalue()

    def _settle(self):
        """Let the layout find its place once, or each rendering would move it a little further."""
        if self.figure.get_layout_engine() is not None:
            self.figure.draw_without_rendering()
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")


def save(drawn, folder):
    """Write ``<name>.csv`` and, where there is a figure, ``.svg`` and ``.png`` into `folder`.

    Returns
    -------
    dict of str to bytes
        What was written, by the file's ending.
    """
    contents = {"csv": drawn.csv().encode()}
    if drawn.figure is not None:
        contents |= {"svg": drawn.svg(), "png": drawn.png()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in contents.items():
        (folder / f"{drawn.name}.{suffix}").write_bytes(content)
    return contents


def show(drawn):
    """Return what a notebook's cell displays: the PNG that `save` writes, or the table alone.

    Where nothing was measured, a sentence says so.

    ``make figures`` names a folder in the environment variable `paths.FIGURES_VARIABLE`; the
    files are then written as well. Where it is not set, as in JupyterLab, nothing is.
    """
    folder = os.environ.get(paths.FIGURES_VARIABLE)
    written = save(drawn, folder) if folder else {}
    from IPython.display import Image, Markdown

    if drawn.figure is None:
        return Markdown(f"*{NOTHING}*") if drawn.table.empty else drawn.table
    return Image(data=written.get("png") or drawn.png())


def footer(figure, text):
    """Write `text` (machine, commit, record: where the numbers come from) small under `figure`."""
    # As the figure's own label, so that constrained layout makes room for it.
    figure.supxlabel(text, x=0.004, ha="left", fontsize=5.5, color="#666666")
