# SPDX-License-Identifier: MIT
"""How weights follow their gradients: PyTorch's formulas for SGD, RMSprop and AdamW."""

import math
from abc import ABC, abstractmethod

import numpy as np

# These are shares of what was: with 1 or more, what was would never fade.
_SHARES = ("alpha", "beta1", "beta2")
# Where a gradient has always been 0 it is divided by `eps` alone, which float32 must know from 0.
_LEAST = {"eps": 1e-37}


class Optimizer(ABC):
    """A rule that changes parameters in place, and what it remembers of each of them.

    Parameters
    ----------
    parameters : dict of str to array
        What is to be trained, by name; only shapes and types are looked at.
    **options : float
        Those of `defaults` that are to be others.

    Attributes
    ----------
    defaults : dict of str to float
        The rule's numbers, named as PyTorch names them. The learning rate comes with each step.
    options : dict of str to float
    slots : tuple of str
        What is remembered of a parameter: arrays of its shape and type, 0 at first.
    state : dict of str to array
        ``<slot>.<parameter>`` of each, and ``steps``, how many were taken: for checkpoints.

    Raises
    ------
    ValueError
        If the rule has no such option, or it is out of range.
    """

    defaults: dict

    def __init__(self, parameters, **options):
        for name, value in options.items():
            if name not in self.defaults:
                raise ValueError(
                    f"{type(self).__name__}: no option {name!r}; there are "
                    f"{', '.join(self.defaults)}"
                )
            below = 1 if name in _SHARES else math.inf
            least = _LEAST.get(name, 0)
            if not (isinstance(value, int | float) and least <= value < below):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a number of at least {least} and below "
                    f"{below}, got {value!r}"
                )
        self.options = self.defaults | options
        self.state = {
            f"{slot}.{name}": np.zeros_like(array)
            for slot in self.slots
            for name, array in parameters.items()
        }
        self.state["steps"] = np.zeros((), np.int64)

    @property
    @abstractmethod
    def slots(self):
        """What is remembered of each parameter, under these options."""

    def step(self, parameters, gradients, rate):
        """Change each parameter that has a gradient, at this learning rate; both are by name."""
        self.state["steps"] += 1
        for name, gradient in gradients.items():
            remembered = [self.state[f"{slot}.{name}"] for slot in self.slots]
            self._change(parameters[name], gradient, rate, *remembered)

    @abstractmethod
    def _change(self, parameter, gradient, rate, *remembered):
        """Change one parameter, and what is remembered of it."""


class SGD(Optimizer):
    """Downhill: ``v = momentum v + g``, ``p -= rate v``, with the decay added to g."""

    defaults = {"momentum": 0.9, "weight_decay": 0.0}  # noqa: RUF012 - nothing changes it

    @property
    def slots(self):
        return ("momentum",) if self.options["momentum"] else ()

    def _change(self, parameter, gradient, rate, *remembered):
        step = gradient + self.options["weight_decay"] * parameter
        parameter -= rate * _with_momentum(step, self.options["momentum"], *remembered)


class RMSprop(Optimizer):
    """Each gradient over the root of its mean square, and momentum.

    ``s = alpha s + (1 - alpha) g^2``, ``v = momentum v + g / (sqrt(s) + eps)``, ``p -= rate v``,
    with the decay added to g.
    """

    defaults = {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0}  # noqa: RUF012

    @property
    def slots(self):
        return ("square", "momentum") if self.options["momentum"] else ("square",)

    def _change(self, parameter, gradient, rate, square, *remembered):
        alpha = self.options["alpha"]
        gradient = gradient + self.options["weight_decay"] * parameter
        square *= alpha
        square += (1 - alpha) * gradient * gradient
        step = gradient / (np.sqrt(square) + self.options["eps"])
        parameter -= rate * _with_momentum(step, self.options["momentum"], *remembered)


class AdamW(Optimizer):
    """Adam, with the decay taken off the weights themselves (Loshchilov and Hutter, 2019).

    ``p -= rate decay p``, ``m = beta1 m + (1 - beta1) g``, ``s = beta2 s + (1 - beta2) g^2``,
    ``p -= rate m' / (sqrt(s') + eps)``, where ``m' = m / (1 - beta1^t)`` and ``s'`` likewise.
    """

    defaults = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}  # noqa: RUF012
    slots = ("mean", "square")

    def _change(self, parameter, gradient, rate, mean, square):
        beta1, beta2 = self.options["beta1"], self.options["beta2"]
        steps = int(self.state["steps"])
        parameter *= 1 - rate * self.options["weight_decay"]
        mean += (1 - beta1) * (gradient - mean)
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        # Both began at 0, and are too small by what these make good.
        root = np.sqrt(square) / math.sqrt(1 - beta2**steps) + self.options["eps"]
        parameter -= rate / (1 - beta1**steps) * (mean / root)


# As milesial/Pytorch-UNet trains by RMSprop; its rate falls as `schedules.Plateau` has it.
ORIGINAL = {"momentum": 0.999, "weight_decay": 1e-8}
ORIGINAL_RATE = 1e-5
ORIGINAL_CLIP = 1.0

OPTIMIZERS = {"sgd": SGD, "rmsprop": RMSprop, "adamw": AdamW}


def clip_gradients(gradients, most, norm=None):
    """Scale all gradients in place so that their norm, all as one vector, is at most `most`.

    Parameters
    ----------
    gradients : dict of str to array
    most : float
    norm : float, optional
        The norm of them all, where these are only some of them.

    Returns
    -------
    float
        The norm before.
    """
    if norm is None:
        norm = math.sqrt(square(gradients))
    share = most / (norm + 1e-6)
    if share < 1:
        for gradient in gradients.values():
            gradient *= share
    return norm


def square(gradients):
    """Return the square of the norm of all gradients as one vector; they are by name."""
    return sum(_square(gradient) for gradient in gradients.values())


def _square(gradient):
    # By rows, so that float32 sums stay short.
    rows = gradient.reshape(len(gradient), -1)
    return float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))


def _with_momentum(step, momentum, remembered=None):
    if remembered is None:
        return step
    remembered *= momentum
    remembered += step
    return remembered
