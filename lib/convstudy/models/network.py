# SPDX-License-Identifier: MIT
"""What every network has: parameters by name, where they lie, and the images that it takes."""

import copy
import math
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from convstudy.problem import ConvProblem

_NORM = ("weight", "bias", "running_mean", "running_var")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Convolution:
    """A convolution of square filters, and the batch norm behind it, where there is one.

    Attributes
    ----------
    layer : str
        Its name in records.
    prefix : str
        What the names of its parameters begin with.
    c, k : int
        Channels before and after.
    size, stride, padding : int
        Along H and W alike.
    bias : bool
        Whether it has one.
    norm : str or None
        What the names of the norm's parameters begin with.
    """

    layer: str
    prefix: str
    c: int
    k: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = False
    norm: str | None = None

    def shapes(self):
        """Return the shape of each parameter and buffer, by name, in PyTorch's order."""
        found = {f"{self.prefix}.weight": (self.k, self.c, self.size, self.size)}
        if self.bias:
            found[f"{self.prefix}.bias"] = (self.k,)
        if self.norm:
            found |= {f"{self.norm}.{kind}": (self.k,) for kind in _NORM}
            found[f"{self.norm}.num_batches_tracked"] = ()
        return found

    def problem(self, n, h, w):
        """Return the `ConvProblem` for `n` images of `h` x `w` pixels."""
        pairs = (self.stride, self.stride), (self.padding, self.padding)
        return ConvProblem(n, self.c, h, w, self.k, self.size, self.size, *pairs)

    def apply(self, x, parameters, ops):
        """Return what it and its norm make of `x`."""
        x = ops.conv2d(
            x,
            parameters[f"{self.prefix}.weight"],
            padding=(self.padding, self.padding),
            stride=(self.stride, self.stride),
            bias=parameters[f"{self.prefix}.bias"] if self.bias else None,
        )
        return ops.batch_norm(x, *named(parameters, self.norm, *_NORM)) if self.norm else x


class Network(ABC):
    """A network; it has no parameters until it is given some.

    Parameters
    ----------
    n_channels : int
        Channels of the images.
    shapes : dict of str to tuple
        Of each parameter and buffer, by name, in the order of PyTorch's state_dict. A norm follows
        the convolution whose results it takes.

    Attributes
    ----------
    least_size : int
        The least height and width of an image.
    """

    least_size = 1

    def __init__(self, n_channels, shapes):
        self.n_channels = n_channels
        self.shapes = shapes
        self._state = None
        self._placed = weakref.WeakKeyDictionary()

    # ---- what a network says of itself -----------------------------------------------------------
    @abstractmethod
    def apply(self, x, ops):
        """Do what `forward` does with an `x` that is trusted and lies where `ops` computes.

        The result lies there too; `x` is not changed.
        """

    @abstractmethod
    def layers(self, h, w, n=1):
        """Return [(layer, ConvProblem), ...]: the convolutions of `n` images of `h` x `w`.

        In the order in which they run.
        """

    @abstractmethod
    def terms(self):
        """Return the products that each layer sums for one output, for `tolerance`."""

    @abstractmethod
    def result_shape(self, n, h, w):
        """Return the shape of the result for `n` images of `h` x `w` pixels."""

    @abstractmethod
    def initial_variance(self, name):
        """Return the variance that a weight, of two axes or more, has before any training."""

    @abstractmethod
    def initial_values(self, name, rng):
        """Return what a parameter of no norm is before any training."""

    # ---- parameters ------------------------------------------------------------------------------
    @classmethod
    def initialised(cls, seed, *arguments, **options):
        """Return a network with random parameters, distributed as the original's are at first.

        Parameters
        ----------
        seed : int
        *arguments, **options
            What the network is made with.
        """
        network = cls(*arguments, **options)
        network.initialise(seed)
        return network

    def initialise(self, seed):
        """Take random parameters, distributed as the original's are at first."""
        rng = np.random.default_rng(seed)
        state = {}
        for name, shape in self.shapes.items():
            layer, kind = name.rsplit(".", 1)
            if f"{layer}.running_mean" in self.shapes:
                fill = 1 if kind in ("weight", "running_var") else 0
                state[name] = np.full(shape, fill, _dtype(name))
            else:
                state[name] = self.initial_values(name, rng)
        self._replace(state)

    def without_parameters(self):
        """Return a network such as this one, with none."""
        other = copy.copy(self)
        other._state, other._placed = None, weakref.WeakKeyDictionary()
        return other

    def randomise_statistics(self, seed):
        """Give every norm the weights, biases and statistics that training might leave.

        As initialised, the norms do nothing and the signal dies away from layer to layer; with
        these the values stay near 1 all through (and grow where residual sums add them up), so
        that an error anywhere reaches the result.
        """
        rng = np.random.default_rng(seed)
        state = dict(self._parameters())
        for name, shape in self.shapes.items():
            layer, kind = name.rsplit(".", 1)
            if len(shape) == 4:
                # What a convolution of the initial weights makes of mean squares of about 1/2, as
                # a ReLU leaves them.
                expected = self.initial_variance(name) * math.prod(shape[1:]) / 2
            if kind == "running_mean":
                for drawn, low, high in (
                    ("weight", 0.7, 1.3),
                    ("bias", -0.5, 0.5),
                    ("running_mean", -0.3, 0.3),
                    ("running_var", 0.6 * expected, 1.5 * expected),
                ):
                    values = rng.uniform(low, high, shape).astype(np.float32)
                    state[f"{layer}.{drawn}"] = values
        self._replace(state)

    def state_dict(self):
        """Return a copy of every parameter and buffer: name to NumPy array, in PyTorch's order."""
        return {name: array.copy() for name, array in self._parameters().items()}

    def load_state_dict(self, state):
        """Take copies of a mapping of names to arrays, as `state_dict` or PyTorch gives it.

        Raises
        ------
        TypeError, ValueError
            Where it is no mapping, names are missing or unknown, or arrays are of another shape or
            type, hold NaN or infinity, or a variance is negative. All faults are named; nothing is
            taken.
        """
        who = f"{type(self).__name__}.load_state_dict"
        check_state(who, state)
        arrays = {name: np.asarray(value).copy() for name, value in state.items()}
        faults = [f"{name} is missing" for name in self.shapes if name not in arrays]
        for name, array in arrays.items():
            if name not in self.shapes:
                faults.append(f"{name} is unknown")
            else:
                faults += [f"{name} {fault}" for fault in _faults(name, array, self.shapes[name])]
        if faults:
            raise ValueError(
                f"{who}: {len(faults)} faults: {'; '.join(faults)}. Pass what state_dict() of a "
                f"{self!r} gives"
            )
        self._replace({name: arrays[name] for name in self.shapes})

    @property
    def trained(self):
        """The names of all that training changes by gradients: all but the norms' statistics."""
        return tuple(name for name in self.shapes if not name.endswith(_STATISTICS))

    @property
    def parameter_count(self):
        """Trained numbers: all but the norms' statistics."""
        return sum(math.prod(self.shapes[name]) for name in self.trained)

    def place(self, ops):
        """Return the parameters where `ops` computes: brought there once, kept while it lives."""
        if ops not in self._placed:
            self._placed[ops] = {
                name: ops.parameter(name, array)
                for name, array in self._parameters().items()
                if array.dtype == np.float32
            }
        return self._placed[ops]

    def _parameters(self):
        if self._state is None:
            who = type(self).__name__
            raise RuntimeError(
                f"{who}: it has no parameters; call load_state_dict(), or make it by "
                f"{who}.initialised(seed)"
            )
        return self._state

    def _replace(self, state):
        self._state = state
        self._placed.clear()

    # ---- images ----------------------------------------------------------------------------------
    def forward(self, x, ops):
        """Return the network's result for a batch of images.

        Parameters
        ----------
        x : (N, n_channels, H, W) float32 NumPy array
            C-contiguous and finite; H and W are at least `least_size`.
        ops : Ops
            What executes it.

        Returns
        -------
        float32 NumPy array
            Scores, not probabilities; its shape is as `result_shape` says.

        Raises
        ------
        TypeError, ValueError
            Where `x` is anything else.
        """
        self.check(x)
        if not hasattr(ops, "to_device"):
            raise TypeError(
                f"{type(self).__name__}: ops must say what executes it, such as BlasOps() or "
                f"ResidentOps(), got {ops!r}"
            )
        return ops.to_host(self.apply(ops.to_device(x), ops))

    def check(self, x):
        """Raise TypeError or ValueError unless `forward` takes `x`; return the result's shape."""
        who = type(self).__name__
        if not isinstance(x, np.ndarray):
            raise TypeError(
                f"{who}: x must be a NumPy array, got {type(x).__name__}; use np.asarray"
            )
        if x.dtype != np.float32:
            raise TypeError(f"{who}: x must be float32, got {x.dtype}; use .astype(np.float32)")
        if x.ndim != 4:
            raise ValueError(
                f"{who}: x must be of rank 4 (N, C, H, W), got shape {x.shape}; reshape it"
            )
        n, c, h, w = x.shape
        if c != self.n_channels:
            raise ValueError(
                f"{who}: x has {c} channels and the network takes {self.n_channels}; "
                f"pass x of shape (N, {self.n_channels}, H, W)"
            )
        if n < 1:
            raise ValueError(f"{who}: x holds no image, its shape is {x.shape}; pass at least one")
        self.check_size(who, h, w)
        if not x.flags.c_contiguous:
            raise ValueError(
                f"{who}: x must be C-contiguous, its strides are {x.strides}; "
                f"use np.ascontiguousarray"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{who}: x holds NaN or infinity; the result would be meaningless")
        return self.result_shape(n, h, w)

    def check_size(self, who, h, w):
        """Raise TypeError or ValueError unless images of `h` x `w` pixels are large enough."""
        if not all(isinstance(size, int | np.integer) for size in (h, w)):
            raise TypeError(f"{who}: H and W must be integers, got {h!r} and {w!r}")
        if min(h, w) < self.least_size:
            raise ValueError(
                f"{who}: an image of {h} x {w} is too small for the network; "
                f"H and W must be at least {self.least_size}"
            )


def named(parameters, prefix, *kinds):
    """Return the parameters of one layer, in the order of `kinds`."""
    return [parameters[f"{prefix}.{kind}"] for kind in kinds]


def check_sizes(who, **sizes):
    """Raise ValueError unless each of `sizes` is an integer of at least 1."""
    for name, value in sizes.items():
        if not is_integer(value) or value < 1:
            raise ValueError(f"{who}: {name} must be an integer of at least 1, got {value!r}")


def is_integer(value):
    """Return whether a value is a whole number, which Python holds True and False for, too."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_state(who, state):
    """Raise TypeError unless `state` maps names to arrays."""
    if not hasattr(state, "items"):
        raise TypeError(f"{who}: state must map names to arrays, got {type(state).__name__}")


def uniform(rng, shape, bound):
    """Return float32 numbers that are uniform between ``-bound`` and ``bound``."""
    values = rng.random(shape, np.float32)
    values *= 2 * bound
    values -= bound
    return values


def normal(rng, shape, deviation):
    """Return float32 numbers that are normal about 0."""
    values = rng.standard_normal(shape, np.float32)
    values *= deviation
    return values


def _dtype(name):
    return np.int64 if name.endswith("num_batches_tracked") else np.float32


def _faults(name, array, shape):
    if array.shape != shape:
        yield f"has shape {array.shape}, expected {shape}"
    if array.dtype != _dtype(name):
        yield f"is {array.dtype}, expected {np.dtype(_dtype(name))}"
    elif not np.isfinite(array).all():
        yield "holds NaN or infinity"
    elif name.endswith("running_var") and (array < 0).any():
        yield "is negative"
