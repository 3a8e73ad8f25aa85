# SPDX-License-Identifier: MIT
"""What trained networks find in held-out pictures, drawn over them."""

import numpy as np
import pandas as pd

from convstudy.images import CompositeSet, overlay
from convstudy.plots import labels
from convstudy.plots.palette import VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "figS2_masks"
COLUMNS = ("machine", "case", "execution", "width", "picture", "dice", "found_share", "true_share")


def pictures(table):
    """Yield each training with the pictures of which its record holds masks.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "learning", from `records.table`. Those on composites are drawn: other pictures are
        not in the project.

    Yields
    ------
    run : dict
        Its row of the table.
    shown : list of (image, true mask, found mask, Dice)
    """
    done = labels.finished(table)
    for run in done[done["data"] == "composites"].to_dict("records") if len(done) else ():
        height, width = map(int, run["size"].split("x"))
        held_out = CompositeSet("held-out", len(run["value_found"]), height, width)
        masks = (unpacked(text, height, width) for text in run["value_found"])
        yield (
            run,
            [
                (image, true, found, score)
                for (image, true), found, score in zip(
                    held_out, masks, run["value_found_dice"], strict=True
                )
            ],
        )


def unpacked(text, height, width):
    """Return a mask, (H, W) of 0 and 1, from the hexadecimal digits of its bits."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return bits[: height * width].reshape(height, width)


def shares(table):
    """Return one row a picture: its Dice, and how much of it is found and is an object."""
    rows = [
        [
            *(run[name] for name in COLUMNS[:4]),
            *(number, score, float(found.mean()), float(true.mean())),
        ]
        for run, shown in pictures(table)
        for number, (_, true, found, score) in enumerate(shown)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@style()
def draw(table):
    """Draw a row of held-out pictures for each machine's longest training.

    What is found is tinted; a line goes round what is there.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "learning", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = shares(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    done = labels.finished(table)
    longest = done.loc[done.groupby("machine", sort=False)["value_steps"].idxmax()]
    rows = list(pictures(longest))
    columns = max(len(shown) for _, shown in rows)
    drawing, axes = figure(
        *(len(rows), columns), height=0.45 + 0.95 * len(rows), squeeze=False, sharex="row"
    )
    for panels, (run, shown) in zip(axes, rows, strict=True):
        for panel, picture in zip(panels, shown, strict=False):
            show(panel, *picture)
        panels[0].set_title(f"{run['machine']}\nDice {shown[0][3]:.2f}", loc="left")
    footer(drawing, labels.sources(longest))
    return Drawn(NAME, plotted, drawing, labels.record_ids(longest))


def show(axes, image, true, found, score):
    """Draw one picture, with what is found tinted and a line round what is there."""
    axes.imshow(overlay(image, found), interpolation="nearest")
    if true.any() and not true.all():
        axes.contour(true, levels=[0.5], colors=[VERMILLION], linewidths=0.8)
    axes.set_title(f"Dice {score:.2f}", loc="left")
    axes.set(xticks=[], yticks=[])
