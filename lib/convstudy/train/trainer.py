# SPDX-License-Identifier: MIT
"""The loop of a training, the same on every device: steps, Dice, checkpoints, and when to stop."""

import itertools
import json
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from convstudy.train import memory
from convstudy.train.checkpoints import Checkpoints
from convstudy.train.dice import evaluate


class DivergedError(RuntimeError):
    """Training has come to numbers that are none."""

    exit_status = 1


@dataclass
class History:
    """How a training went.

    Attributes
    ----------
    loss : list of float
        Of each step, before its weights changed.
    scores : list of (int, float)
        The held-out Dice after so many steps.
    seconds : float
        Spent on it so far, pauses between runs apart.
    """

    loss: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self):
        """The highest held-out Dice; NaN before the first."""
        return max((score for _, score in self.scores), default=math.nan)


class Trainer:
    """Trains by a backend, on batches, under a schedule.

    Parameters
    ----------
    backend : Backend
    batches : Batches
    schedule : Schedule
    held_out : Pairs, optional
        What the Dice is taken of, and the schedule is told; never trained on.
    folder : path-like, optional
        Where checkpoints are kept; without it there are none.
    options : dict, optional
        What the training is of, of what JSON knows; a checkpoint of other options is refused.
    evaluate_every, save_every : int
        Steps between; both are done after the last step, too.
    progress : bool, optional
        Show a bar on standard error; where that is a terminal, if not given.

    Attributes
    ----------
    step : int
        Steps done.
    history : History

    Raises
    ------
    ValueError
        If the first images cannot be trained on, or the checkpoints are of another training.
    MemoryError
        If a batch needs more memory than there is.
    """

    def __init__(
        self,
        backend,
        batches,
        schedule,
        held_out=None,
        folder=None,
        options=None,
        evaluate_every=100,
        save_every=100,
        progress=None,
    ):
        self.backend, self.batches, self.schedule = backend, batches, schedule
        self.held_out, self.options = held_out, options or {}
        self.evaluate_every, self.save_every = evaluate_every, save_every
        self.progress = progress
        self.step, self.history, self._seen = 0, History(), ""
        own, _, *size = batches.shape
        memory.check(
            lambda n: backend.needs_bytes(n, *size), own, backend.free_bytes(), backend.name
        )
        self._batch(0)
        self.checkpoints = None
        if folder:
            self.keep(Checkpoints(folder))

    def keep(self, checkpoints, anew=False):
        """Keep checkpoints there, and go on from the newest, if there is one.

        Parameters
        ----------
        checkpoints : Checkpoints
        anew : bool
            Remove those that there are, and begin anew.
        """
        self.checkpoints = checkpoints
        if anew:
            checkpoints.clear()
        else:
            self._resume()

    def run(self, steps):
        """Train until `steps` steps are done in all, and return the history.

        Raises
        ------
        DivergedError
            If the loss or the gradients are no longer finite; the checkpoints before that stay.
        """
        from tqdm import tqdm

        bar = tqdm(
            total=steps,
            initial=self.step,
            unit=" images",
            unit_scale=self.batches.batch,
            desc="training",
            disable=None if self.progress is None else not self.progress,
        )
        started = time.perf_counter() - self.history.seconds
        under_way = deque()
        # The next batches are made while this one is trained on.
        coming = iter(range(self.step, steps))
        with bar, ThreadPoolExecutor(self.backend.ahead) as makers:
            made = deque()
            while self.step < steps:
                for step in itertools.islice(coming, 1 + self.backend.ahead - len(made)):
                    made.append(makers.submit(self._batch, step))
                images, masks = made.popleft().result()
                rate = self.schedule.rate(self.step)
                under_way.append((self.step, rate, self.backend.step(images, masks, rate)))
                self.step += 1
                is_last = self.step == steps
                evaluates = is_last or self.step % self.evaluate_every == 0
                saves = is_last or self.step % self.save_every == 0
                self._look(under_way, 0 if evaluates or saves else self.backend.lag)
                if evaluates:
                    self._evaluate()
                if saves:
                    self.history.seconds = time.perf_counter() - started
                    self._save()
                bar.set_postfix_str(self._seen, refresh=False)
                bar.update()
        self.history.seconds = time.perf_counter() - started
        return self.history

    def _batch(self, step):
        """Return the batch of a step, known to be fit to be trained on."""
        images, masks = self.batches.at(step)
        network = self.backend.network
        network.check(images)
        n, _, h, w = images.shape
        if masks.shape != (n, h, w) or masks.dtype.kind not in "ui":
            raise ValueError(
                f"step {step}: masks must be integers of shape {(n, h, w)}, as the images are, "
                f"got {masks.dtype} of shape {masks.shape}"
            )
        if not 0 <= masks.min() <= masks.max() < max(2, network.n_classes):
            raise ValueError(
                f"step {step}: masks hold classes from {masks.min()} to {masks.max()}, and the "
                f"network knows 0 to {max(2, network.n_classes) - 1}; make n_classes fit"
            )
        return images, masks

    def _look(self, under_way, lag):
        """Read what came of the steps under way, but for the last `lag`."""
        while len(under_way) > lag:
            step, rate, outcome = under_way.popleft()
            loss, dice, norm = (float(each) for each in outcome)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(self._diverged(step, rate, loss, norm))
            self.history.loss.append(loss)
            held_out = f"{self.history.scores[-1][1]:.3f}" if self.history.scores else "-"
            self._seen = f"loss {loss:.3f}, Dice {dice:.3f}, held-out {held_out}"

    def _diverged(self, step, rate, loss, norm):
        before = self.history.loss[-1] if self.history.loss else math.nan
        kept = self.checkpoints.steps() if self.checkpoints else []
        return (
            f"training stopped at step {step}: the loss is {loss:.4g} (it was {before:.4g}) and "
            f"the gradients' norm {norm:.4g}, at the learning rate {rate:.3g}; try a lower rate, "
            f"or a clip of 1 or less"
            + (f"; the checkpoint of step {kept[-1]} is whole" if kept else "")
        )

    def _evaluate(self):
        if self.held_out is None:
            return
        classes = self.backend.network.n_classes
        score = evaluate(self.backend.predict, self.held_out, classes, self.batches.batch)
        self.history.scores.append((self.step, score))
        self.schedule.observe(score)

    def _save(self):
        if not self.checkpoints:
            return
        arrays = dict(self.backend.state())
        arrays |= {f"schedule.{name}": array for name, array in self.schedule.state.items()}
        arrays["history.loss"] = np.array(self.history.loss)
        arrays["history.scores"] = np.array(self.history.scores).reshape(-1, 2)
        metadata = {"options": json.dumps(self.options), "seconds": repr(self.history.seconds)}
        self.checkpoints.save(self.step, arrays, metadata)

    def _resume(self):
        found = self.checkpoints.load()
        if found is None:
            return
        step, arrays, metadata = found
        before, now = json.loads(metadata["options"]), json.loads(json.dumps(self.options))
        others = sorted(k for k in before | now if before.get(k) != now.get(k))
        if others:
            changed = ", ".join(f"{k}={before.get(k)} (now {now.get(k)})" for k in others)
            raise ValueError(
                f"{self.checkpoints.folder} holds a training of other options: {changed}; give "
                "these again, take another folder, or begin anew (anew=yes)"
            )
        self.backend.load_state(arrays)
        for name, array in self.schedule.state.items():
            array[...] = arrays[f"schedule.{name}"]
        scores = [(int(at), float(score)) for at, score in arrays["history.scores"]]
        seconds = float(metadata["seconds"])
        self.history = History(arrays["history.loss"].tolist(), scores, seconds)
        self.step = step
