# SPDX-License-Identifier: MIT
"""A whole training from a few options: ``make train name=value ...``, and the notebook's."""

import csv
import dataclasses
import io
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from convstudy import paths
from convstudy.device import devices, free_bytes, why_no_gpu
from convstudy.images import CarvanaSet, CompositeSet, FolderSet
from convstudy.models.unet import UNet
from convstudy.program.backend import GpuBackend
from convstudy.program.lowering import PRECISIONS
from convstudy.train import memory, optimizers, schedules, tensors
from convstudy.train.backend import CpuBackend
from convstudy.train.checkpoints import Checkpoints
from convstudy.train.data import Batches, Kept, split
from convstudy.train.trainer import Trainer
from convstudy.train.weights import load_weights, save_weights

FOLDER = paths.BUILD / "train"
WEIGHTS, HISTORY = "weights.safetensors", "history.csv"

# What `optimizer=original` stands for: how milesial/Pytorch-UNet trains.
ORIGINAL = {
    "optimizer": "rmsprop",
    "rate": optimizers.ORIGINAL_RATE,
    "schedule": "plateau",
    "clip": optimizers.ORIGINAL_CLIP,
    "rule": tuple(optimizers.ORIGINAL.items()),
}
# Options that do not change what is computed.
_ASIDE = ("evaluate_every", "save_every")


@dataclass(frozen=True)
class Recipe:
    """The options of a training; the defaults train on two cores in two minutes.

    Attributes
    ----------
    execution : str
        "cpu", or "gpu".
    precision : str
        Of products on a GPU: "fp32", "tf32" or "bf16". On the CPU it is fp32.
    data : str
        "composites", "carvana", or a folder that holds ``images/`` and ``masks/``.
    size : (int, int)
        Height and width of the composites; to which a folder's pictures are resized.
    composites : int
        How many different ones are trained on.
    held_out : int
        Images that the Dice is taken of. Composites of it show neither an object nor a background
        that is trained on.
    flip : bool
        Mirror every other image.
    width : int
        Channels of the network's first level.
    bilinear : bool
        Enlarge by interpolation.
    start : str
        A file of weights to begin with, which say the width; else they are random.
    steps, batch, seed : int
    optimizer : str
        "adamw", "sgd", "rmsprop", or "original": milesial's RMSprop, with its rate, schedule and
        clip.
    rate : float
        The highest learning rate.
    schedule : str
        "cosine" (after a warm-up), "constant", or "plateau".
    clip : float
        The most that the norm of all gradients may be; 0 does not clip.
    rule : tuple of (str, float)
        Options of the optimiser's own, such as momentum.
    evaluate_every, save_every : int
        Steps between two looks at the Dice, and between two checkpoints.
    """

    execution: str = "cpu"
    precision: str = "fp32"
    data: str = "composites"
    size: tuple = (48, 72)
    composites: int = 4096
    held_out: int = 64
    flip: bool = True
    width: int = 12
    bilinear: bool = False
    start: str = ""
    steps: int = 1000
    batch: int = 8
    seed: int = 0
    optimizer: str = "adamw"
    rate: float = 3e-3
    schedule: str = "cosine"
    clip: float = 1.0
    rule: tuple = ()
    evaluate_every: int = 100
    save_every: int = 100

    @classmethod
    def of(cls, given):
        """Return the recipe of options given as words, such as ``{"steps": "200"}``.

        Raises
        ------
        ValueError
            If there is no such option, or a word is no value of it.
        RuntimeError
            If it is to run on a GPU, and none is here.
        """
        given = dict(given)
        execution = _execution(given.pop("execution", "auto"))
        recipe = cls(execution=execution, **EXECUTIONS[execution])
        if given.get("optimizer") == "original":
            recipe = dataclasses.replace(recipe, **ORIGINAL)
            del given["optimizer"]
        elif "optimizer" in given:
            recipe = dataclasses.replace(recipe, optimizer=given.pop("optimizer"))
        rule, own = dict(recipe.rule), optimizers.OPTIMIZERS[recipe.optimizer].defaults
        kinds = {f.name: f.type for f in fields(cls) if f.name not in ("rule", "execution")}
        values = {}
        for name, word in given.items():
            if name in own:
                rule[name] = value(name, word, float)
            elif name in kinds:
                values[name] = value(name, word, kinds[name])
            else:
                raise ValueError(
                    f"training has no option {name!r}; there are execution, {', '.join(kinds)}, "
                    f"and the optimiser's: {', '.join(own)}"
                )
        return dataclasses.replace(recipe, rule=tuple(sorted(rule.items())), **values)

    def __post_init__(self):
        for name, least in (
            *((name, 1) for name in ("steps", "batch", "width", "held_out", "composites")),
            *((name, 1) for name in _ASIDE),
            *(("seed", 0), ("clip", 0)),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.precision not in PRECISIONS or (self.execution, self.precision) in _NEVER:
            known = "fp32" if self.execution == "cpu" else " or ".join(PRECISIONS)
            raise ValueError(
                f"precision={self.precision}: execution={self.execution} takes {known}"
            )
        UNet(width=1).check_size("size", *self.size)
        schedules.make(self.schedule, self.rate, self.steps)
        if self.optimizer not in optimizers.OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer}: take {', '.join(optimizers.OPTIMIZERS)} or original"
            )
        optimizers.OPTIMIZERS[self.optimizer]({}, **dict(self.rule))

    def pairs(self):
        """Return the pairs to train on, those held out, and the number of classes."""
        if self.data == "composites":
            train = CompositeSet("train", self.composites, *self.size, seed=self.seed)
            # The same for every seed, so that one training's Dice can stand beside another's.
            held_out = CompositeSet("held-out", self.held_out, *self.size)
            return Kept(train), Kept(held_out), 2
        if self.data == "carvana":
            pairs, classes = CarvanaSet(scale=0.1), 2
        else:
            pairs = FolderSet(self.data, self.size)
            classes = len(pairs.values)
        train, held_out = split(pairs, self.held_out, self.seed)
        return Kept(train), Kept(held_out), classes

    def network(self, classes):
        """Return the network that it starts with; where that is none, one without parameters."""
        if not self.start:
            return UNet(3, classes, self.bilinear, self.width)
        network, _ = load_weights(self.start)
        if (network.n_channels, max(2, network.n_classes)) != (3, classes):
            raise ValueError(
                f"{self.start} is a {network}, and the images have 3 colours and the masks "
                f"{classes} classes; begin with weights for these, or with none"
            )
        return network

    def trainer(
        self, folder=None, progress=None, pairs=None, backend=None, share=None, options=None
    ):
        """Return what trains by this recipe, as far as the folder's checkpoints have come.

        Parameters
        ----------
        folder : path-like, optional
            Where checkpoints are kept; without it there are none.
        progress : bool, optional
            As in `Trainer`.
        pairs : optional
            What `pairs` gives, if that was asked before.
        backend : callable, optional
            From the network, and the size of its images, to what trains it, in place of the
            recipe's own.
        share : slice, optional
            Which images of each batch it trains on; all, if not given.
        options : dict, optional
            Beside the recipe, what the training is of.
        """
        train, held_out, classes = pairs or self.pairs()
        options = dataclasses.asdict(self) | (options or {})
        for name in _ASIDE:
            del options[name]
        batches = Batches(train, self.batch, self.seed, self.flip)
        batches.share = share or batches.share
        network, (own, _, *size) = self.network(classes), batches.shape
        # The backend will say what it needs, but is not there before the parameters are.
        memory.check(
            lambda n: self._needs_bytes(network, n, *size), own, free_bytes(), "this machine"
        )
        if not self.start:
            network.initialise(self.seed)
        return Trainer(
            (backend or self._backend)(network, size),
            batches,
            schedules.make(self.schedule, self.rate, self.steps),
            held_out,
            folder,
            options,
            self.evaluate_every,
            self.save_every,
            progress,
        )

    def _needs_bytes(self, network, n, h, w):
        """Return the memory of this machine that steps on `n` images of `h` x `w` take at least."""
        if self.execution == "cpu":
            slots = optimizers.OPTIMIZERS[self.optimizer]({}, **dict(self.rule)).slots
            return memory.tape_bytes(network, n, h, w, len(slots))
        return memory.host_bytes(network, n, h, w, 1 + GpuBackend.ahead)

    def _backend(self, network, size):
        rule = self.optimizer, dict(self.rule), self.clip or None
        if self.execution == "cpu":
            return CpuBackend(network, *rule)
        shape = self.batch, network.n_channels, *size
        return GpuBackend(network, shape, self.precision, *rule)


# What each execution has other defaults for: a GPU trains the whole network on whole images.
EXECUTIONS = {
    "cpu": {},
    "gpu": {
        "precision": "bf16",
        "size": (128, 191),
        "width": 64,
        "batch": 16,
        "steps": 4000,
        "rate": 1e-3,
        "evaluate_every": 500,
        "save_every": 500,
    },
}
_NEVER = tuple(("cpu", precision) for precision in PRECISIONS if precision != "fp32")


def described(recipe):
    """Return every option of a recipe, and of its optimiser, a line each."""
    values = dataclasses.asdict(recipe)
    rule = dict(values.pop("rule"))
    values |= optimizers.OPTIMIZERS[recipe.optimizer].defaults | rule
    values["size"] = "x".join(map(str, recipe.size))
    shown = {True: "yes", False: "no"}
    return "\n".join(
        f"{name}={shown[value] if isinstance(value, bool) else value}"
        for name, value in values.items()
    )


def train(recipe, folder=FOLDER, progress=None, anew=False):
    """Train by a recipe to its end, and leave weights and history in the folder.

    Parameters
    ----------
    recipe : Recipe
    folder : path-like
        A training that was stopped there goes on.
    progress : bool, optional
        As in `Trainer`.
    anew : bool
        Begin anew instead.

    Returns
    -------
    network : UNet
        The trained one.
    history : History
    """
    folder = Path(folder)
    checkpoints = Checkpoints(folder)
    checkpoints.prepare()
    trainer = recipe.trainer(progress=progress)
    trainer.keep(checkpoints, anew)
    try:
        history = trainer.run(recipe.steps)
    except KeyboardInterrupt:
        kept = checkpoints.steps() or [0]
        print(f"training: stopped; the same command goes on after step {kept[-1]}")
        raise
    network = trained(trainer)
    leave(recipe, trainer, network, folder)
    return network, history


def leave(recipe, trainer, network, folder):
    """Write the weights of the network that a trainer has come to, and its history.

    Parameters
    ----------
    recipe : Recipe
    trainer : Trainer
    network : UNet
    folder : path-like
    """
    folder, history = Path(folder), trainer.history
    save_weights(
        folder / WEIGHTS,
        network,
        {
            "recipe": json.dumps(dataclasses.asdict(recipe)),
            "size": "x".join(map(str, trainer.held_out[0][1].shape)),
            "steps": str(trainer.step),
            "held_out_dice": f"{history.scores[-1][1]:.4f}",
        },
    )
    tensors.replace(folder / HISTORY, _table(history).encode())


def trained(trainer):
    """Return a trainer's network with the weights that it has come to."""
    return UNet.from_state_dict(trainer.backend.state_dict())


def _table(history):
    """Return a history as CSV: a row a step, with the held-out Dice where it was taken."""
    scores = dict(history.scores)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "loss", "held_out_dice"])
    for step, loss in enumerate(history.loss, start=1):
        rows.writerow([step, repr(loss), repr(scores[step]) if step in scores else ""])
    return text.getvalue()


def _execution(word):
    """Return which execution a word means."""
    if word == "auto":
        return "gpu" if "gpu" in EXECUTIONS and devices() else "cpu"
    if word == "gpu" and not devices():
        raise RuntimeError(f"execution=gpu: {why_no_gpu()}")
    if word not in EXECUTIONS:
        raise ValueError(f"execution={word}: take auto, {' or '.join(EXECUTIONS)}")
    return word


def value(name, word, kind):
    """Return a word as the value of an option that is a bool, a number, or a size (tuple)."""
    try:
        if kind is tuple:
            height, width = re.fullmatch(r"(\d+)x(\d+)", word).groups()
            return int(height), int(width)
        if kind is bool:
            return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[
                word.lower()
            ]
        return kind(word)
    except (ValueError, KeyError, AttributeError):
        how = {
            tuple: "height x width, such as 128x191",
            bool: "yes or no",
            int: "a whole number",
            float: "a number",
        }[kind]
        raise ValueError(f"{name}={word}: it has to be {how}") from None
