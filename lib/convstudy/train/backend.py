# SPDX-License-Identifier: MIT
"""What executes a training step, and how the CPU does."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from convstudy.conv.cpu import limit_threads
from convstudy.device import free_bytes
from convstudy.nn.tape import TapeOps
from convstudy.train import memory
from convstudy.train.losses import cross_entropy_dice
from convstudy.train.optimizers import OPTIMIZERS, clip_gradients


class Outcome(NamedTuple):
    """What a step was like: before the weights changed.

    Each may be anything that `float` takes, so that a GPU need not be waited for at every step.
    """

    loss: float
    dice: float
    gradient_norm: float


class Backend(ABC):
    """Executes the steps of one network's training, and holds all that changes by them.

    Attributes
    ----------
    name : str
        The execution's label.
    network : UNet
        Its structure, and what it was initialised with; `state_dict` has what it has become.
    lag : int
        How many steps may be under way before the first of them must be looked at.
    ahead : int
        How many batches are made ahead, each on a thread of its own.
    """

    name: str
    network: object
    lag = 0
    ahead = 1

    @abstractmethod
    def step(self, images, masks, rate):
        """Train on a batch at this learning rate, and return its `Outcome`.

        Where loss or gradients are not finite, the weights need not be good for anything after.
        """

    @abstractmethod
    def predict(self, images):
        """Return the logits of images at inference, as NumPy arrays."""

    @abstractmethod
    def state(self):
        """Return all that changes: a dict of NumPy arrays, valid until the next step.

        The network's are named ``network.<name>``, the optimiser's ``optimizer.<name>``.
        """

    @abstractmethod
    def load_state(self, state):
        """Take what `state` returned, also of another backend of this network and optimiser."""

    def check_state(self, state):
        """Raise ValueError unless `state` is of this network and optimiser; it may hold more."""
        own = self.state()
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [
            f"{name} is {state[name].dtype} of shape {state[name].shape}"
            for name, array in own.items()
            if name in state
            and (state[name].shape, state[name].dtype) != (array.shape, array.dtype)
        ]
        if faults:
            raise ValueError(
                f"the state is not of this network and optimiser: {'; '.join(faults[:3])}"
                + (f" and {len(faults) - 3} faults more" if len(faults) > 3 else "")
            )

    @abstractmethod
    def needs_bytes(self, n, h, w):
        """Return the most memory that steps on `n` images of `h` x `w` take."""

    @abstractmethod
    def free_bytes(self):
        """Return the memory that there is for them."""

    def state_dict(self):
        """Return copies of the network's parameters and buffers as they are now."""
        ours = self.state()
        return {name: np.array(ours[f"network.{name}"]) for name in self.network.shapes}


class CpuBackend(Backend):
    """Trains on the CPU: the network on a tape, in float32.

    Parameters
    ----------
    network : UNet
        It keeps its own weights; `state_dict` returns the trained ones.
    optimizer : str
        One of `OPTIMIZERS`.
    options : dict of str to float, optional
        The optimiser's.
    clip : float, optional
        The most that the norm of all gradients may be.
    """

    name = "cpu"

    def __init__(self, network, optimizer="adamw", options=None, clip=None):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"no optimiser {optimizer!r}; take {' or '.join(OPTIMIZERS)}")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip must be a number above 0, or None, got {clip!r}")
        self.network, self.clip = network, clip
        self._tape = self._open()
        network.place(self._tape)
        self._trained = {name: self._tape.parameters[name] for name in network.trained}
        self._counts = {
            name: array
            for name, array in network.state_dict().items()
            if name.endswith("num_batches_tracked")
        }
        self.optimizer = OPTIMIZERS[optimizer](self._trained, **(options or {}))

    def step(self, images, masks, rate):
        # Who looks at the outcome says what is no number, and in words.
        with limit_threads(1), np.errstate(all="ignore"):
            return self._step(images, masks, rate)

    def _step(self, images, masks, rate):
        self._tape.training = self._tape.recording = True
        logits = self.network.apply(images, self._tape)
        loss, dlogits, parts = cross_entropy_dice(logits, masks, self._total)
        gradients, norm = self._gradients(dlogits)
        norm = clip_gradients(gradients, math.inf if self.clip is None else self.clip, norm)
        for count in self._counts.values():
            count += 1
        self.optimizer.step(self._trained, gradients, rate)
        return Outcome(loss, parts["dice"], norm)

    # What ranks do otherwise, who have only some of the images, or of the network.

    _total = None

    def _open(self):
        """Return the tape."""
        return TapeOps()

    def _gradients(self, dlogits):
        """Return the gradients by name, and their norm where that is not theirs alone."""
        return self._tape.backward(dlogits), None

    def _part(self, name, array):
        """Return what is held here of an array of `state`."""
        return array

    def predict(self, images):
        self._tape.training = self._tape.recording = False
        with limit_threads(1):
            return self.network.apply(np.array(images), self._tape)

    def state(self):
        return self._held()

    def _held(self):
        """Return the very arrays that change, by `state`'s names."""
        network = self._tape.parameters | self._counts
        return {f"network.{name}": network[name] for name in self.network.shapes} | {
            f"optimizer.{name}": array for name, array in self.optimizer.state.items()
        }

    def load_state(self, state):
        self.check_state(state)
        for name, array in self._held().items():
            array[...] = self._part(name, state[name])

    def needs_bytes(self, n, h, w):
        return memory.tape_bytes(self.network, n, h, w, len(self.optimizer.slots))

    def free_bytes(self):
        return free_bytes()
