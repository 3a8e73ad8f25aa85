# SPDX-License-Identifier: MIT
"""Calls that follow each other and touch each number once, made one: from a trace, the fused one.

What joins two images writes nothing: both are written where it would have put them. Each operation
has a `function`, which is a row of Table 1.
"""

from dataclasses import dataclass

from convstudy.program.trace import Parameter, Value


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution, and what is behind it: batch norm, a residual sum, ReLU and pooling.

    Attributes
    ----------
    x, y : Value
        `y` is what the last but the pooling leaves.
    w : Parameter
    padding, stride : (int, int)
    bias : Parameter or None
    norm : tuple of Parameter or None
        Weight, bias, running mean and running variance.
    eps : float
        The norm's.
    relu : bool
    pooled : Value or None
        What 2 x 2 pooling leaves of `y`, which others read too.
    residual : Value or None
        What is added before the ReLU.
    """

    function = "convolution"

    x: Value
    y: Value
    w: Parameter
    padding: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    bias: Parameter | None = None
    norm: tuple[Parameter, ...] | None = None
    eps: float = 0.0
    relu: bool = False
    pooled: Value | None = None
    residual: Value | None = None


@dataclass(frozen=True, eq=False)
class Enlargement:
    """A transposed convolution of 2 x 2 at stride 2, or bilinear interpolation without `w`."""

    function = "up-convolution"

    x: Value
    y: Value
    w: Parameter | None = None
    bias: Parameter | None = None


@dataclass(frozen=True, eq=False)
class Pooling:
    """Pooling of what no convolution left, or in other windows than of 2 x 2."""

    function = "pooling"

    x: Value
    y: Value
    window: int = 2
    stride: int = 2
    padding: int = 0


@dataclass(frozen=True, eq=False)
class Averaging:
    """Windows that share out the image, averaged: `size` x `size` of them."""

    function = "pooling"

    x: Value
    y: Value
    size: int = 1


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix product of each image's numbers, and the ReLU behind it, where there is one.

    It is the convolution of one pixel whose channels are all numbers of an image.
    """

    function = "linear"

    x: Value
    y: Value
    w: Parameter
    bias: Parameter
    relu: bool = False

    @property
    def shape(self):
        """The shape of `w` as filters of the size of an image: (K, C, H, W)."""
        return self.w.shape[0], *(*self.x.shape[1:], 1, 1)[:3]


@dataclass(frozen=True, eq=False)
class Concatenation:
    """Channels of `skip`, and behind them those of `x`, which is smaller and lies in the middle."""

    function = "padding and concatenation"

    skip: Value
    x: Value
    y: Value

    @property
    def corner(self):
        """Rows above and columns left of `x`."""
        (_, _, h, w), (_, _, small_h, small_w) = self.skip.shape, self.x.shape
        return (h - small_h) // 2, (w - small_w) // 2


@dataclass(frozen=True, eq=False)
class Head:
    """The 1 x 1 convolution to classes."""

    function = "head"

    x: Value
    y: Value
    w: Parameter
    bias: Parameter


@dataclass(frozen=True, eq=False)
class Exchange:
    """What the ranks of a row have of a value, made what each of them needs of it.

    Attributes
    ----------
    x, y : Value
    kind : str
        `IMAGES`: each had images of its own, and gets those of all. The others had some channels
        of all images: each gets all channels, of all images (`CHANNELS`) or of its own (`OWN`), or
        of all for what every rank then does alike, gradients too (`REPLICATED`).
    sides : tuple of int
        The channels of x, those of each array that it was joined of.
    """

    function = "exchange"
    IMAGES, CHANNELS, OWN, REPLICATED = "images", "channels", "own images", "replicated"

    x: Value
    y: Value
    kind: str
    sides: tuple[int, ...] = ()


# The pooling that is made with a norm and ReLU.
_HALVING = {"window": 2, "stride": 2, "padding": 0}


def fuse(trace):
    """Return the fused operations of a `Trace`, in order."""
    done, found, ready = set(), [], {trace.input}
    for call in trace.calls:
        if call in done:
            continue
        operation, calls = _START[call.method](call, trace, ready)
        done.update(calls)
        ready.update(each.output for each in calls)
        found.append(operation)
    return found


def _only_user(trace, value, method):
    users = trace.users(value)
    alone = len(users) == 1 and value is not trace.output
    return users[0] if alone and users[0].method == method else None


def _convolution(call, trace, ready):
    calls, last, norm, relu, pooled, residual = [call], call, None, False, None, None
    if found := _only_user(trace, last.output, "batch_norm"):
        calls.append(norm := found)
        last = found
    if found := _only_user(trace, last.output, "add"):
        # Of two convolutions that are added, the later one does it.
        others = [value for value in found.inputs if value is not last.output]
        if ready.issuperset(others):
            calls.append(found)
            last, residual = found, others[0]
    if found := _only_user(trace, last.output, "relu"):
        calls.append(found)
        last, relu = found, True
    for user in trace.users(last.output):
        if user.method == "max_pool2d" and user.options == _HALVING and norm and relu:
            calls.append(user)
            pooled = user.output
    options = {"norm": norm.parameters, "eps": norm.options["eps"]} if norm else {}
    return (
        Convolution(
            *(call.inputs[0], last.output, call.parameters[0], call.options["padding"]),
            stride=call.options["stride"],
            bias=call.parameters[1] if len(call.parameters) > 1 else None,
            relu=relu,
            pooled=pooled,
            residual=residual,
            **options,
        ),
        calls,
    )


def _linear(call, trace, ready):
    relu = _only_user(trace, call.output, "relu")
    calls = [call, relu] if relu else [call]
    made = Linear(*call.inputs, calls[-1].output, *call.parameters, relu=relu is not None)
    return made, calls


def _alone(kind):
    def start(call, trace, ready):
        return kind(*call.inputs, call.output, *call.parameters, **call.options), [call]

    return start


def _never_alone(call, trace, ready):
    raise NotImplementedError(
        f"program: {call.method}, as this network calls it, is not made a launch yet; "
        f"run it by ResidentOps"
    )


_START = {
    "conv2d": _convolution,
    "batch_norm": _never_alone,
    "relu": _never_alone,
    "add": _never_alone,
    "linear": _linear,
    "average_pool2d": _alone(Averaging),
    "max_pool2d": _alone(Pooling),
    "conv_transpose2d": _alone(Enlargement),
    "upsample_bilinear": _alone(Enlargement),
    "pad_concat": _alone(Concatenation),
    "head": _alone(Head),
    "exchange": _alone(Exchange),
}


def homes(operations, trace, builder, dtype):
    """Return the `Tensor` in which each value of the fused operations lies.

    The parts of a concatenation lie inside it; its frame of zeros, where there is one, stays.
    """
    found = {}

    def own(value, kept=False):
        n, c, h, w = *value.shape, *(1, 1)[: 4 - len(value.shape)]
        return builder.tensor((n, h, w, c), dtype, kept)

    for operation in reversed(operations):
        for value in (operation.y, getattr(operation, "pooled", None)):
            # A head writes NCHW's scores apart; what a linear layer leaves is a tensor like others.
            if value is not None and value not in found and not isinstance(operation, Head):
                kept = _has_frame(operation) or value is trace.output
                found[value] = own(value, kept)
        if isinstance(operation, Concatenation):
            whole, below = found[operation.y], operation.skip.shape[1]
            found[operation.skip] = whole.part((0, below))
            found[operation.x] = whole.part(
                (below, operation.x.shape[1]), *operation.corner, operation.x.shape[2:]
            )
    found[trace.input] = own(trace.input)
    return found


def _has_frame(operation):
    return isinstance(operation, Concatenation) and (
        operation.x.shape[2:] != operation.skip.shape[2:]
    )
