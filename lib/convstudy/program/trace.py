# SPDX-License-Identifier: MIT
"""What a network does, read off one run of it without any arrays."""

from dataclasses import dataclass, field

from convstudy.nn.ops import Ops, pooled_shape
from convstudy.problem import ConvProblem


@dataclass(frozen=True, eq=False)
class Value:
    """What a call leaves: an array that nobody has computed yet, of (N, C, H, W) as a rule."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter or buffer of the network, by its name in the state_dict."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a method of `Ops`.

    Attributes
    ----------
    method : str
        Its name.
    inputs : tuple of Value
    parameters : tuple of Parameter
        In the order in which the method takes them.
    options : dict
        What else it was given.
    output : Value
    """

    method: str
    inputs: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    options: dict
    output: Value


@dataclass(frozen=True)
class Trace:
    """All calls of a network, in order, and where its images come in and its result goes out."""

    calls: tuple[Call, ...]
    input: Value
    output: Value
    uses: dict = field(init=False)

    def __post_init__(self):
        uses = {}
        for call in self.calls:
            for value in call.inputs:
                uses.setdefault(value, []).append(call)
        object.__setattr__(self, "uses", uses)

    def users(self, value):
        """Return the calls that read `value`, in order."""
        return self.uses.get(value, [])


def trace(network, shape, recorder=None):
    """Return the `Trace` of `network` for images of `shape` (N, C, H, W).

    Parameters
    ----------
    network : Network
    shape : tuple of int
    recorder : Recorder, optional
        A new one, which writes down what it is asked for.
    """
    ops = recorder or Recorder()
    given = Value(tuple(shape))
    output = network.apply(given, ops)
    return Trace(tuple(ops.calls), given, output)


class Recorder(Ops):
    """An `Ops` that computes shapes, and remembers who asked for what."""

    name = "trace"

    def __init__(self):
        self.calls = []

    def parameter(self, name, array):
        return Parameter(name, array.shape)

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        problem = ConvProblem(*x.shape, w.shape[0], *w.shape[2:], stride, padding)
        parameters = (w,) if bias is None else (w, bias)
        return self._record(
            "conv2d", problem.y_shape, (x,), parameters, padding=padding, stride=stride
        )

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        return self._record("batch_norm", x.shape, (x,), (weight, bias, mean, var), eps=eps)

    def relu(self, x):
        return self._record("relu", x.shape, (x,))

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        options = {"window": window, "stride": stride, "padding": padding}
        return self._record("max_pool2d", pooled_shape(x.shape, **options), (x,), **options)

    def average_pool2d(self, x, size=1):
        return self._record("average_pool2d", (*x.shape[:2], size, size), (x,), size=size)

    def add(self, x, y):
        return self._record("add", x.shape, (x, y))

    def linear(self, x, w, bias):
        return self._record("linear", (x.shape[0], w.shape[0]), (x,), (w, bias))

    def conv_transpose2d(self, x, w, bias):
        n, _, h, width = x.shape
        shape = (n, w.shape[1], 2 * h, 2 * width)
        return self._record("conv_transpose2d", shape, (x,), (w, bias))

    def upsample_bilinear(self, x):
        n, c, h, w = x.shape
        return self._record("upsample_bilinear", (n, c, 2 * h, 2 * w), (x,))

    def pad_concat(self, skip, x):
        n, c, h, w = skip.shape
        return self._record("pad_concat", (n, c + x.shape[1], h, w), (skip, x))

    def head(self, x, w, bias):
        n, _, h, width = x.shape
        return self._record("head", (n, w.shape[0], h, width), (x,), (w, bias))

    def _record(self, method, shape, inputs, parameters=(), **options):
        output = Value(shape)
        self.calls.append(Call(method, inputs, parameters, options, output))
        return output
