# SPDX-License-Identifier: MIT
"""Learning curves and masks are what the record holds, and pictures are those it was taken of."""

import numpy as np
import pytest
from rows import nothing, table

from convstudy.images import CompositeSet
from convstudy.plots import figS2_learning as curve
from convstudy.plots import figS2_masks as masks


def training(machine="here", seed=0, **more):
    found = np.zeros((2, 16, 24), np.uint8)
    found[0, 3:9, 2:20] = 1
    return {
        "machine": machine,
        "case": f"cpu/seed{seed}",
        "execution": "cpu",
        "width": 8,
        "size": "16x24",
        "data": "composites",
        "batch": 4,
        "seed": seed,
        "median_s": 20.0,
        "value_steps": 10,
        "value_loss": [2.0] * 4 + [1.0] * 6,
        "value_score_steps": [4, 10],
        "value_scores": [0.25, 0.5],
        "value_found": [np.packbits(each).tobytes().hex() for each in found],
        "value_found_dice": [0.75, 0.0],
        **more,
    }


def test_a_row_a_score_with_the_loss_since_the_last():
    plotted = curve.curves(table([training()]))
    assert list(plotted.columns) == list(curve.COLUMNS)
    assert list(plotted["step"]) == [4, 10]
    assert list(plotted["loss"]) == [2.0, 1.0]
    assert list(plotted["dice"]) == [0.25, 0.5]
    assert plotted["images_per_s"].iloc[0] == pytest.approx(2)


def test_a_line_a_training_over_the_images_seen():
    drawn = curve.draw(table([training(), training(seed=1), training("there")]))
    loss, dice = drawn.figure.axes
    assert [len(axes.lines) for axes in (loss, dice)] == [3, 3]
    assert list(loss.lines[0].get_xdata()) == [16, 40]
    assert list(dice.lines[0].get_ydata()) == [0.25, 0.5]
    first, second, other = loss.lines
    assert first.get_color() == second.get_color() != other.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_what_was_reached_is_read_in_words():
    shown = curve.display(curve.curves(table([training(), training("there", stale=True)])))
    assert list(shown["held-out Dice"]) == ["0.500", "0.500"]
    assert list(shown.index) == ["here", "there †"]


def test_masks_are_unpacked_as_they_were_found():
    (_, shown), *others = masks.pictures(table([training()]))
    assert not others
    (image, true, found, score), (_, _, empty, _) = shown
    expected = np.zeros((16, 24))
    expected[3:9, 2:20] = 1
    np.testing.assert_array_equal(found, expected)
    assert not empty.any()
    assert score == 0.75
    theirs = CompositeSet("held-out", 2, 16, 24)[0]
    np.testing.assert_array_equal(image, theirs[0])
    np.testing.assert_array_equal(true, theirs[1])


def test_a_row_of_pictures_for_each_machine():
    drawn = masks.draw(table([training(), training(seed=1), training("there")]))
    assert len(drawn.table) == 6
    assert len(drawn.figure.axes) == 4
    assert drawn.figure.axes[0].get_title("left") == "here\nDice 0.75"
    assert drawn.table["found_share"].iloc[0] == pytest.approx(6 * 18 / (16 * 24))


def test_what_has_no_pictures_here_is_left_out():
    drawn = masks.draw(table([training(data="mine")]))
    assert drawn.figure is None


def test_a_machine_without_the_suite_is_left_out():
    for empty in (nothing(), table([training(status="failed", reason="no")])):
        for module in (curve, masks):
            drawn = module.draw(empty)
            assert drawn.figure is None
            assert list(drawn.table.columns) == list(module.COLUMNS)
        assert curve.display(curve.curves(empty)).empty
