# SPDX-License-Identifier: MIT
"""How weights follow their gradients: PyTorch's formulas for SGD, RMSprop and AdamW."""

import math

import numpy as np


class Optimizer:
    """A rule that changes parameters in place, and what it remembers of each of them.

    Attributes
    ----------
    options : dict of str to float
        The rule's numbers, by PyTorch's names; the learning rate comes with each step.
    slots : tuple of str
        What is remembered of a parameter: arrays of its shape and type.
    state : dict of str to array
        ``<slot>.<parameter>`` of each, and ``steps``: how many were taken; what a checkpoint keeps.
    """

    def __init__(self, parameters, **options):
        for name, value in options.items():
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a number of at least 0, got {value!r}"
                )
        self.options = options
        self.state = {
            f"{slot}.{name}": np.zeros_like(array)
            for slot in self.slots
            for name, array in parameters.items()
        }
        self.state["steps"] = np.zeros((), np.int64)

    @property
    def slots(self):
        raise NotImplementedError

    def step(self, parameters, gradients, learning_rate):
        """Change every parameter that has a gradient; both are dicts of arrays by name."""
        self.state["steps"] += 1
        for name, gradient in gradients.items():
            slots = (self.state[f"{slot}.{name}"] for slot in self.slots)
            self._change(parameters[name], gradient, learning_rate, *slots)

    def _change(self, parameter, gradient, learning_rate, *slots):
        raise NotImplementedError


class SGD(Optimizer):
    """Downhill, with momentum: ``v = momentum v + g``, ``p -= lr v``, where g has the decay."""

    def __init__(self, parameters, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, momentum=momentum, weight_decay=weight_decay)

    @property
    def slots(self):
        return ("momentum",) if self.options["momentum"] else ()

    def _change(self, parameter, gradient, learning_rate, momentum=None):
        step = gradient + self.options["weight_decay"] * parameter
        if momentum is not None:
            momentum *= self.options["momentum"]
            momentum += step
            step = momentum
        parameter -= learning_rate * step


class RMSprop(Optimizer):
    """Each gradient over the root of its running mean square, with momentum.

    ``s = alpha s + (1 - alpha) g^2``, ``v = momentum v + g / (sqrt(s) + eps)``, ``p -= lr v``.
    """

    def __init__(self, parameters, alpha=0.99, eps=1e-8, momentum=0.0, weight_decay=0.0):
        super().__init__(
            parameters, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay
        )

    @property
    def slots(self):
        return ("square", "momentum") if self.options["momentum"] else ("square",)

    def _change(self, parameter, gradient, learning_rate, square, momentum=None):
        alpha = self.options["alpha"]
        gradient = gradient + self.options["weight_decay"] * parameter
        square *= alpha
        square += (1 - alpha) * gradient * gradient
        step = gradient / (np.sqrt(square) + self.options["eps"])
        if momentum is not None:
            momentum *= self.options["momentum"]
            momentum += step
            step = momentum
        parameter -= learning_rate * step


class AdamW(Optimizer):
    """Adam with the decay taken off the weights themselves (Loshchilov and Hutter, 2019)."""

    def __init__(self, parameters, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
        super().__init__(parameters, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    slots = ("mean", "square")

    def _change(self, parameter, gradient, learning_rate, mean, square):
        beta1, beta2 = self.options["beta1"], self.options["beta2"]
        steps = int(self.state["steps"])
        parameter *= 1 - learning_rate * self.options["weight_decay"]
        mean += (1 - beta1) * (gradient - mean)
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        # Both began at 0 and are that much too small.
        root = np.sqrt(square) / math.sqrt(1 - beta2**steps) + self.options["eps"]
        parameter -= (learning_rate / (1 - beta1**steps)) * (mean / root)


# As the original trains: learning rate 1e-5 with `ReduceOnPlateau`, gradients clipped at 1.
ORIGINAL = {"momentum": 0.999, "weight_decay": 1e-8}
ORIGINAL_LEARNING_RATE = 1e-5
ORIGINAL_CLIP = 1.0

OPTIMIZERS = {"sgd": SGD, "rmsprop": RMSprop, "adamw": AdamW}


def clip_gradients(gradients, most):
    """Scale all gradients in place so that their norm, all as one vector, is at most `most`.

    Parameters
    ----------
    gradients : dict of str to array
    most : float

    Returns
    -------
    float
        The norm before.
    """
    norm = math.sqrt(
        sum(float(np.vdot(array, array).astype(np.float64)) for array in gradients.values())
    )
    share = most / (norm + 1e-6)
    if share < 1:
        for array in gradients.values():
            array *= share
    return norm
