# SPDX-License-Identifier: MIT
"""Learning curves and masks are what the record holds, and pictures are those it was taken of."""

import numpy as np
import pytest
from rows import nothing, table

from convstudy.images import CompositeSet
from convstudy.plots import figS2_curves as curves
from convstudy.plots import figS2_learning as curve
from convstudy.plots import figS2_masks as masks
from convstudy.plots import tabS2_functions as functions


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
    assert drawn.figure.get_supxlabel().endswith("\nsolid, dashed: a seed each")


def test_precisions_are_compared_over_their_seeds():
    runs = [
        training(
            seed=seed, precision=precision, value_scores=[0.1, score], case=f"{precision}{seed}"
        )
        for precision, scores in (("fp32", (0.8, 0.84, 0.82)), ("bf16", (0.83, 0.81, 0.79)))
        for seed, score in enumerate(scores)
    ]
    found = curve.by_precision(curve.curves(table(runs)))
    assert list(found["precision"]) == ["fp32", "bf16"]
    assert list(found["seeds"]) == [3, 3]
    assert found["mean"].tolist() == pytest.approx([0.82, 0.81])
    assert found["least"].tolist() == pytest.approx([0.8, 0.79])
    # One seed tells nothing of what others would come to.
    assert curve.by_precision(curve.curves(table(runs[:1]))).empty


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


def sides(**more):
    each = {"ours": 1.001, "pytorch NCHW": 1.0, "pytorch NHWC": 0.999}
    return [
        {"side": side, "value_loss": [2.0 * factor, 1.0 * factor, 0.5], **more}
        for side, factor in each.items()
    ]


def test_two_trainings_are_as_far_apart_as_they_are():
    plotted = curves.losses(table(sides()))
    assert list(plotted.columns) == list(curves.COLUMNS)
    assert list(plotted["pytorch_nchw_loss"]) == [2.0, 1.0, 0.5]
    (row,) = curves.distances(plotted).to_dict("records")
    assert row["ours to PyTorch, largest"] == pytest.approx(1e-3)
    assert row["PyTorch to itself, mean"] == pytest.approx(2e-3 / 3)
    assert row["follows"]
    far = sides()
    far[0]["value_loss"] = [2.1, 1.1, 0.6]
    assert not curves.distances(curves.losses(table(far)))["follows"].item()
    drawn = curves.draw(table(sides()))
    assert [len(axes.lines) for axes in drawn.figure.axes] == [2, 2]
    assert curves.draw(nothing()).figure is None


def test_functions_before_and_after_stand_side_by_side():
    common = {"what": "inference", "precision": "fp32", "n": 1}
    rows = [
        {"execution": "resident", "function": name, "median_s": seconds}
        for name, seconds in (("convolution", 6e-3), ("ReLU", 1e-3), ("network", 8e-3))
    ] + [
        {"execution": "program", "function": name, "median_s": seconds, "value_launches": 2}
        for name, seconds in (("convolution", 3e-3), ("images", 1e-3), ("network", 5e-3))
    ]
    plotted = functions.draw(table([common | row for row in rows])).table
    assert list(plotted["function"]) == ["convolution", "ReLU", "images", "network"]
    assert list(plotted["before_ms"].fillna(0)) == [6, 1, 0, 8]
    assert list(plotted["after_share"].fillna(0)) == [0.75, 0, 0.25, 0]
    shown = functions.display(plotted)
    assert list(shown["fused"]) == ["3 ms", "in others", "1 ms", "5 ms"]
    assert functions.draw(nothing()).table.empty
    assert functions.display(functions.draw(nothing()).table).empty


def test_one_batch_is_shown_and_the_others_named():
    program = {"execution": "program", "what": "training", "precision": "fp32"}
    plotted = functions.functions(
        table(
            program | {"n": n, "function": name, "median_s": 1e-3, "value_launches": 1}
            for n in (1, 16, 64)
            for name in ("convolution", "network")
        )
    )
    shown = functions.display(plotted)
    assert list(shown["images"]) == [16, 16]
    assert shown.columns.name == "left out: batches of 1, 64"
    assert list(functions.display(plotted, 1)["images"]) == [1, 1]
    alone = functions.display(plotted[plotted["n"] == 1])
    assert list(alone["images"]) == [1, 1]
    assert alone.columns.name is None
