# SPDX-License-Identifier: MIT
"""The suite of trainings: a case a seed, and all that the figures draw."""

import numpy as np
import pytest

from convstudy.measure.suites.learning import SUITE
from convstudy.plots.figS2_masks import unpacked
from convstudy.records import validate_result
from convstudy.train.dice import dice

RECIPE = "execution=cpu size=16x24 width=2 composites=16 held_out=7 batch=4 steps=6"


def test_a_training_gives_a_whole_result():
    one, other = SUITE.cases(SUITE.options | {"recipe": RECIPE, "seeds": "3,4"})
    assert (one.name, other.name) == ("cpu/fp32/steps6/seed3", "cpu/fp32/steps6/seed4")
    (row,) = one.run()
    validate_result(row, one.name)
    values = row["values"]
    assert row["labels"]["size"] == "16x24"
    assert len(values["loss"]) == values["steps"] == 6
    assert values["score_steps"] == [6]
    assert len(row["samples_s"]) == 1
    from convstudy.images import CompositeSet

    _, true = CompositeSet("held-out", 6, 16, 24).batch(range(6))
    found = np.stack([unpacked(text, 16, 24) for text in values["found"]])
    assert values["found_dice"] == pytest.approx(dice(found, true, 2).tolist())
    (again,) = one.run()
    assert again["values"] == values


def test_one_training_may_go_further():
    given = {"recipe": RECIPE, "seeds": "3,4", "longer": "steps=9 evaluate_every=3"}
    *short, longer = SUITE.cases(SUITE.options | given)
    assert [case.name for case in short] == ["cpu/fp32/steps6/seed3", "cpu/fp32/steps6/seed4"]
    assert longer.name == "cpu/fp32/steps9/seed3"
    (row,) = longer.run()
    assert row["values"]["score_steps"] == [3, 6, 9]


def test_a_recipe_that_is_none_is_refused_at_once():
    with pytest.raises(ValueError, match="no option 'stepps'"):
        list(SUITE.cases(SUITE.options | {"recipe": "stepps=3"}))
