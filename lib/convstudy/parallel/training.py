# SPDX-License-Identifier: MIT
"""A training on several ranks: the recipe of one, and how ranks share the work.

Every rank does the same, but for these: rank 0 alone shows progress, reads and writes checkpoints,
and leaves the weights. So a checkpoint does not depend on how many ranks there were, and a
training goes on with more of them, or fewer, or one.
"""

import hashlib
import importlib.metadata
from dataclasses import asdict, dataclass, fields

import numpy as np

from convstudy import recipe as recipes
from convstudy.device import devices
from convstudy.models.unet import UNet
from convstudy.parallel.backend import RankedBackend, check_batch_norm
from convstudy.parallel.communicator import RanksError
from convstudy.parallel.gpu import RankedGpuBackend
from convstudy.parallel.grid import CUT_FROM, Grid, check_grid
from convstudy.parallel.nccl import Nccl, own_gpu
from convstudy.source import tree_sha256
from convstudy.train.checkpoints import Checkpoints
from convstudy.train.trainer import DivergedError


@dataclass(frozen=True)
class Sharing:
    """How ranks share a training.

    Attributes
    ----------
    batch_norm : str
        "synchronised": over the images of all ranks; "local": of each rank's own.
    model : int
        Ranks that share each of the deep layers; the others share the images alone.
    cut_from : int
        The level from which on layers are deep, from 0 to 4.
    """

    batch_norm: str = "synchronised"
    model: int = 1
    cut_from: int = CUT_FROM

    def __post_init__(self):
        check_batch_norm(self.batch_norm)

    @classmethod
    def taken(cls, given):
        """Take the options of ranks out of a dict of words, and return the sharing they mean."""
        words = {field: given.pop(field.name) for field in fields(cls) if field.name in given}
        return cls(**{f.name: recipes.value(f.name, word, f.type) for f, word in words.items()})

    def options(self, ranks):
        """Return those that change what is computed, and not only who computes it."""
        return {"local_batch_norm": ranks} if ranks > 1 and self.batch_norm == "local" else {}

    def __str__(self):
        return "\n".join(f"{name}={value}" for name, value in asdict(self).items())


class RankedCheckpoints(Checkpoints):
    """Checkpoints that rank 0 keeps for all.

    Parameters
    ----------
    folder : path-like
        On rank 0's machine.
    communicator : Communicator
    """

    def __init__(self, folder, communicator):
        super().__init__(folder)
        self._ranks = communicator

    def prepare(self):
        self._by_first(super().prepare)

    def save(self, step, arrays, metadata):
        """Write a checkpoint; return on all ranks when it is on the disk.

        Raises
        ------
        RanksError
            If it cannot be written, or what ranks hold is not the same.
        """
        self._ranks.agree({f"the state after step {step}": _digest(arrays)})
        self._by_first(super().save, step, arrays, metadata)

    def load(self):
        return self._ranks.tell(self._by_first(super().load))

    def clear(self):
        self._by_first(super().clear)

    def _by_first(self, work, *arguments):
        return self._ranks.together(lambda: None if self._ranks.rank else work(*arguments))


def train(recipe, sharing, communicator, folder=recipes.FOLDER, progress=None, anew=False):
    """Train by a recipe on all ranks to its end; rank 0 leaves weights and history in the folder.

    Parameters
    ----------
    recipe : Recipe
    sharing : Sharing
    communicator : Communicator
    folder : path-like
        A training that was stopped there goes on; rank 0's counts.
    progress : bool, optional
        As in `Trainer`, on rank 0.
    anew : bool
        Begin anew instead.

    Returns
    -------
    network : UNet
        The trained one, on every rank.
    history : History

    Raises
    ------
    RanksError
        On all ranks alike: where they are not of one mind, one of them lacks what it needs, or
        the training diverges.
    """
    ranks, checkpoints = communicator, RankedCheckpoints(folder, communicator)
    checkpoints.prepare()
    trainer = open_trainer(recipe, sharing, ranks, progress)
    try:
        trainer.keep(checkpoints, anew)
    except ValueError as error:  # of a checkpoint that all were told of
        raise _everywhere(error) from error
    try:
        history = trainer.run(recipe.steps)
    except DivergedError as error:  # all have the same loss
        raise _everywhere(error) from error
    network = UNet.from_state_dict(trainer.backend.state_dict())
    ranks.together(lambda: ranks.rank or recipes.leave(recipe, trainer, network, folder))
    return network, history


def open_trainer(recipe, sharing, communicator, progress=None):
    """Return this rank's trainer of a recipe, without checkpoints; as of `train`."""
    ranks = communicator
    ranks.agree(facts(recipe, sharing))
    ranks.together(lambda: _check(recipe, sharing, ranks.size))
    grid = Grid(ranks, sharing.model, sharing.cut_from)

    rule = recipe.optimizer, dict(recipe.rule), recipe.clip or None
    gpus = None
    if recipe.execution == "gpu":
        gpus = Grid(_gpus(ranks), sharing.model, sharing.cut_from)

    def backend(network, size):
        if gpus is None:
            return RankedBackend(network, grid, recipe.batch, *rule, sharing.batch_norm)
        shape = recipe.batch, network.n_channels, *size
        return RankedGpuBackend(
            *(network, grid, gpus, shape, recipe.precision, *rule, sharing.batch_norm)
        )

    def open_own():
        return recipe.trainer(
            progress=False if ranks.rank else progress,
            backend=backend,
            share=grid.share(recipe.batch),
            options=sharing.options(ranks.size),
        )

    return ranks.together(open_own)


def facts(recipe, sharing):
    """Return what has to be the same on all ranks, by name."""
    return {
        "code": tree_sha256()[:12],
        "NumPy": importlib.metadata.version("numpy"),
        **asdict(recipe),
        **asdict(sharing),
    }


def _gpus(ranks):
    """Return what the ranks' GPUs talk by."""
    return Nccl(ranks, own_gpu(ranks, devices()))


def _check(recipe, sharing, ranks):
    check_grid(ranks, sharing.model, sharing.cut_from)


def _everywhere(error):
    """Return an error that is the same on all ranks as one that says so."""
    told = RanksError(str(error))
    told.exit_status = getattr(error, "exit_status", told.exit_status)
    return told


def _digest(arrays):
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name}\n".encode())
        found.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))
    return found.hexdigest()[:12]
