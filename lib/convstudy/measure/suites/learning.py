# SPDX-License-Identifier: MIT
"""Whole trainings: how the loss falls, what Dice is reached, and what is found in the end."""

import dataclasses
import functools

import numpy as np

from convstudy.measure.suite import Case, Suite, result
from convstudy.recipe import Recipe
from convstudy.train.dice import decide, dice

# Held-out images of which the masks are kept.
PICTURES = 6


def cases(options):
    """Yield a training for each seed and precision, by one recipe; and one that goes further."""
    given = _words(options, "recipe")
    precisions = [{"precision": each} for each in options["precisions"].split(",") if each] or [{}]
    seeds = [{"seed": each} for each in options["seeds"].split(",")]
    ways = [seed | precision for seed in seeds for precision in precisions]
    if options["longer"]:
        ways.append(ways[0] | _words(options, "longer"))
    for way in ways:
        recipe = Recipe.of(given | way)
        labels = {
            "execution": recipe.execution,
            "precision": recipe.precision,
            "width": recipe.width,
            "size": "x".join(map(str, recipe.size)),
            "data": recipe.data,
            "batch": recipe.batch,
            "steps": recipe.steps,
            "seed": recipe.seed,
        }
        name = f"{recipe.execution}/{recipe.precision}/steps{recipe.steps}/seed{recipe.seed}"
        yield Case(name, _Training(name, recipe, labels), labels)


def _words(options, name):
    words = options[name].split()
    for word in words:
        if "=" not in word:
            raise ValueError(
                f"suite learning: {name}={options[name]!r}: {word!r} is not of the form name=value"
            )
    return dict(word.split("=", 1) for word in words)


@functools.lru_cache(maxsize=1)
def _pairs(recipe):
    """Return the pairs of a recipe: made once for all precisions, where these follow each other."""
    return recipe.pairs()


class _Training:
    """Trains by a recipe, and returns how that went as the one result of a case."""

    def __init__(self, name, recipe, labels):
        self._name, self._recipe, self._labels = name, recipe, labels

    def __call__(self):
        any_precision = dataclasses.replace(self._recipe, precision="fp32")
        trainer = self._recipe.trainer(pairs=_pairs(any_precision))
        history = trainer.run(self._recipe.steps)
        count = min(PICTURES, len(trainer.held_out))
        images, masks = trainer.held_out.batch(range(count))
        found = decide(trainer.backend.predict(images))
        values = {
            "steps": trainer.step,
            "parameters": trainer.backend.network.parameter_count,
            "loss": [float(f"{loss:.6g}") for loss in history.loss],
            "score_steps": [step for step, _ in history.scores],
            "scores": [score for _, score in history.scores],
            "held_out": len(trainer.held_out),
            "found": [np.packbits(mask > 0).tobytes().hex() for mask in found],
            "found_dice": dice(found, masks, trainer.backend.network.n_classes).tolist(),
        }
        return [
            result(self._name, self._labels, [history.seconds], clock="synchronised", values=values)
        ]


SUITE = Suite(
    "learning",
    "Trainings from the first step to the last: loss, held-out Dice, masks",
    cases,
    # The longer one is the first again, but for the options named: "steps=4000".
    options={"recipe": "", "precisions": "", "seeds": "0", "longer": ""},
    least={"seeds": 0},
    quick={"recipe": "steps=100 width=8", "seeds": "0"},
)
