# SPDX-License-Identifier: MIT
"""The learning rate of each step: constant, warmed up and let down, or lowered on a plateau."""

import math

import numpy as np


class Schedule:
    """The learning rate of every step.

    Parameters
    ----------
    rate : float
        The highest learning rate.

    Attributes
    ----------
    state : dict of str to array
        What was learnt on the way, for checkpoints; empty where the step says it all.
    """

    def __init__(self, rate):
        if not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise ValueError(f"{type(self).__name__}: rate must be a number above 0, got {rate!r}")
        self.peak = rate
        self.state = {}

    def rate(self, step):
        """Return the learning rate of a step; the first is step 0."""
        return self.peak

    def observe(self, score):
        """Take note of the held-out Dice, from 0 to 1."""


class Constant(Schedule):
    """One learning rate for all steps."""


class WarmupCosine(Schedule):
    """Up to `rate` in a straight line, then down to 0 along half a cosine.

    Parameters
    ----------
    rate : float
    steps : int
        Of the whole training; the last step's rate is just above 0.
    warmup : float
        The share of the steps that lead up.
    """

    def __init__(self, rate, steps, warmup=0.1):
        super().__init__(rate)
        if steps < 1 or not 0 <= warmup < 1:
            raise ValueError(
                "WarmupCosine: steps must be at least 1 and warmup in [0, 1), "
                f"got steps={steps}, warmup={warmup}"
            )
        self.steps, self.rising = steps, int(warmup * steps)

    def rate(self, step):
        if step < self.rising:
            return self.peak * (step + 1) / (self.rising + 1)
        passed = min(1.0, (step - self.rising) / (self.steps - self.rising))
        return self.peak * (1 + math.cos(math.pi * passed)) / 2


class Plateau(Schedule):
    """A tenth of the rate when the score has not risen for a while, as the original trains.

    Parameters
    ----------
    rate : float
    patience : int
        Scores in a row that may fail to rise by `threshold` of the best.
    factor, threshold : float

    Notes
    -----
    What PyTorch's ``ReduceLROnPlateau(mode="max")`` does.
    """

    def __init__(self, rate, patience=5, factor=0.1, threshold=1e-4):
        super().__init__(rate)
        self.patience, self.factor, self.threshold = patience, factor, threshold
        self.state = {
            "best": np.full((), -np.inf),
            "waited": np.zeros((), np.int64),
            "lowered": np.zeros((), np.int64),
        }

    def rate(self, step):
        return self.peak * self.factor ** int(self.state["lowered"])

    def observe(self, score):
        best = self.state["best"]
        if score > best * (1 + self.threshold):
            best[...] = score
            self.state["waited"][...] = 0
            return
        self.state["waited"] += 1
        if self.state["waited"] > self.patience:
            self.state["lowered"] += 1
            self.state["waited"][...] = 0


SCHEDULES = ("constant", "cosine", "plateau")


def make(name, rate, steps):
    """Return the schedule of that name; `steps` is how long the training will be.

    Raises
    ------
    ValueError
        If there is no such schedule, or a number is out of range.
    """
    if name == "constant":
        return Constant(rate)
    if name == "cosine":
        return WarmupCosine(rate, steps)
    if name == "plateau":
        return Plateau(rate)
    raise ValueError(f"there is no schedule {name!r}; take {' or '.join(SCHEDULES)}")
