# SPDX-License-Identifier: MIT
"""U-Net, as milesial/Pytorch-UNet has it: its layers, its parameters, its forward pass."""

import math
import weakref
from dataclasses import dataclass

import numpy as np

from convstudy.problem import ConvProblem

# Channels at the first level. A level has twice as many as the one above, and images of half the
# height and half the width.
WIDTH = 64
LEVELS = 5

# Four poolings must leave a pixel.
LEAST_SIZE = 2 ** (LEVELS - 1)


@dataclass(frozen=True)
class DoubleConv:
    """A block: (3x3 convolution without bias, batch norm, ReLU), twice.

    Attributes
    ----------
    layer : str
        The block's name in records; its convolutions are ``<layer>a`` and ``<layer>b``.
    prefix : str
        What its parameters' names begin with.
    level : int
        The level whose height and width it works at.
    c, mid, k : int
        Channels of its input, between its convolutions, and of its output.
    """

    layer: str
    prefix: str
    level: int
    c: int
    mid: int
    k: int

    @property
    def convolutions(self):
        """(letter, prefix of the convolution, prefix of the norm, C, K) of each convolution."""
        return (
            ("a", f"{self.prefix}.0", f"{self.prefix}.1", self.c, self.mid),
            ("b", f"{self.prefix}.3", f"{self.prefix}.4", self.mid, self.k),
        )


@dataclass(frozen=True)
class Up:
    """A step of the decoder: enlarge, join with the encoder's output of that level, convolve.

    Attributes
    ----------
    prefix : str
        What the names of the transposed convolution's parameters begin with.
    c, k : int
        Channels before and after enlarging.
    block : DoubleConv
    """

    prefix: str
    c: int
    k: int
    block: DoubleConv


class UNet:
    """A U-Net; it has no parameters until it is given some.

    Parameters
    ----------
    n_channels, n_classes : int
        Channels of the image, and of the result.
    bilinear : bool
        Enlarge by bilinear interpolation, not by transposed convolutions.
    width : int
        Channels of the first level; the original has 64, and half as many are a quarter of the
        work.

    Attributes
    ----------
    encoder : tuple of DoubleConv
        From the full size down; 2 x 2 pooling stands before each but the first.
    decoder : tuple of Up
        From the smallest size up.

    Examples
    --------
    >>> from convstudy.nn.blas import BlasOps
    >>> network = UNet.initialised(seed=0)
    >>> network.forward(np.zeros((1, 3, 128, 191), np.float32), BlasOps()).shape
    (1, 2, 128, 191)
    """

    def __init__(self, n_channels=3, n_classes=2, bilinear=False, width=WIDTH):
        sizes = {"n_channels": n_channels, "n_classes": n_classes, "width": width}
        for name, value in sizes.items():
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"UNet: {name} must be an integer of at least 1, got {value!r}")
        if not isinstance(bilinear, bool):
            raise TypeError(f"UNet: bilinear must be True or False, got {bilinear!r}")
        self.n_channels, self.n_classes, self.bilinear = n_channels, n_classes, bilinear
        self.width = width
        self.encoder, self.decoder = _structure(n_channels, bilinear, width)
        self.shapes = _shapes(self.encoder, self.decoder, n_classes, bilinear)
        self._state = None
        self._placed = weakref.WeakKeyDictionary()

    @classmethod
    def initialised(cls, seed, n_channels=3, n_classes=2, bilinear=False, width=WIDTH):
        """Return a network with random parameters, distributed as PyTorch's defaults are.

        Weights and biases are uniform in +-1/sqrt(fan-in); the norms change nothing.
        """
        network = cls(n_channels, n_classes, bilinear, width)
        rng = np.random.default_rng(seed)
        state = {}
        for name, shape in network.shapes.items():
            layer, kind = name.rsplit(".", 1)
            if f"{layer}.running_mean" in network.shapes:
                fill = 1 if kind in ("weight", "running_var") else 0
                state[name] = np.full(shape, fill, _dtype(name))
            else:
                # PyTorch takes the second axis for the inputs, of a transposed convolution too.
                bound = 1 / math.sqrt(math.prod(network.shapes[f"{layer}.weight"][1:]))
                state[name] = rng.random(shape, np.float32)
                state[name] *= 2 * bound
                state[name] -= bound
        network._replace(state)
        return network

    @classmethod
    def from_state_dict(cls, state):
        """Return the network that a mapping of names to arrays is the state of.

        Raises
        ------
        TypeError, ValueError
            Where it is not the state of any: as `load_state_dict`.
        """
        first, last = (
            np.shape(state.get(name, ()))
            for name in ("inc.double_conv.0.weight", "outc.conv.weight")
        )
        if len(first) != 4 or len(last) != 4 or min(*first, *last) < 1:
            raise ValueError(
                "UNet.from_state_dict: it is not the state of a U-Net: it has no weights of the "
                "names inc.double_conv.0.weight and outc.conv.weight and of rank 4"
            )
        network = cls(first[1], last[0], "up1.up.weight" not in state, first[0])
        network.load_state_dict(state)
        return network

    def randomise_statistics(self, seed):
        """Give every norm the weights, biases and statistics that training might leave.

        As initialised, the norms do nothing and the signal dies away from layer to layer; with
        these the values stay near 1 all through, so that an error anywhere reaches the result.
        """
        rng = np.random.default_rng(seed)
        state = dict(self._parameters())
        for layer in (name.rsplit(".", 1)[0] for name in self.shapes if "running_var" in name):
            shape = self.shapes[f"{layer}.weight"]
            # A convolution of PyTorch's initial weights makes mean squares of about 1/2, as a
            # ReLU leaves them, into a variance of about 1/6.
            for kind, low, high in (
                ("weight", 0.7, 1.3),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.3, 0.3),
                ("running_var", 0.1, 0.25),
            ):
                state[f"{layer}.{kind}"] = rng.uniform(low, high, shape).astype(np.float32)
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
        if not hasattr(state, "items"):
            raise TypeError(
                f"UNet.load_state_dict: state must map names to arrays, got {type(state).__name__}"
            )
        arrays = {name: np.asarray(value).copy() for name, value in state.items()}
        faults = [f"{name} is missing" for name in self.shapes if name not in arrays]
        for name, array in arrays.items():
            if name not in self.shapes:
                faults.append(f"{name} is unknown")
            else:
                faults += [f"{name} {fault}" for fault in _faults(name, array, self.shapes[name])]
        if faults:
            raise ValueError(
                f"UNet.load_state_dict: {len(faults)} faults: {'; '.join(faults)}. Pass what "
                f"state_dict() of a {self!r} gives"
            )
        self._replace({name: arrays[name] for name in self.shapes})

    def __repr__(self):
        """Return how it is made again, its parameters apart."""
        width = "" if self.width == WIDTH else f", width={self.width}"
        return f"UNet({self.n_channels}, {self.n_classes}, bilinear={self.bilinear}{width})"

    @property
    def trained(self):
        """The names of all that training changes by gradients: all but the norms' statistics."""
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        return tuple(name for name in self.shapes if not name.endswith(statistics))

    @property
    def parameter_count(self):
        """Trained numbers: all but the norms' statistics."""
        return sum(math.prod(self.shapes[name]) for name in self.trained)

    def layers(self, h, w, n=1):
        """Return [(layer, ConvProblem), ...]: the 18 3x3 convolutions of `n` images of `h` x `w`.

        In the order in which they run: enc0a, enc0b, enc1a, ... enc4b, dec3a, ... dec0b.
        """
        _check_size("UNet.layers", h, w)
        return [
            (
                block.layer + letter,
                ConvProblem(n, c, h >> block.level, w >> block.level, k, 3, 3, padding=(1, 1)),
            )
            for block in self._blocks()
            for letter, _, _, c, k in block.convolutions
        ]

    def terms(self):
        """Return the products that each layer sums for one output, for `tolerance`."""
        convolutions = [9 * c for block in self._blocks() for *_, c, _ in block.convolutions]
        # Interpolation sums four.
        enlarging = [4 if self.bilinear else up.c for up in self.decoder]
        return [*convolutions, *enlarging, self.width]

    def forward(self, x, ops):
        """Return the network's result for a batch of images.

        Parameters
        ----------
        x : (N, n_channels, H, W) float32 NumPy array
            C-contiguous and finite; H and W are at least 16.
        ops : Ops
            What executes it.

        Returns
        -------
        (N, n_classes, H, W) float32 NumPy array
            Scores, not probabilities.

        Raises
        ------
        TypeError, ValueError
            Where `x` is anything else.
        """
        self.check(x)
        if not hasattr(ops, "to_device"):
            raise TypeError(
                f"UNet: ops must say what executes it, such as BlasOps() or ResidentOps(), "
                f"got {ops!r}"
            )
        return ops.to_host(self.apply(ops.to_device(x), ops))

    def check(self, x):
        """Raise TypeError or ValueError unless `forward` takes `x`; return the result's shape."""
        if not isinstance(x, np.ndarray):
            raise TypeError(
                f"UNet: x must be a NumPy array, got {type(x).__name__}; use np.asarray"
            )
        if x.dtype != np.float32:
            raise TypeError(f"UNet: x must be float32, got {x.dtype}; use .astype(np.float32)")
        if x.ndim != 4:
            raise ValueError(
                f"UNet: x must be of rank 4 (N, C, H, W), got shape {x.shape}; reshape it"
            )
        n, c, h, w = x.shape
        if c != self.n_channels:
            raise ValueError(
                f"UNet: x has {c} channels and the network takes {self.n_channels}; "
                f"pass x of shape (N, {self.n_channels}, H, W)"
            )
        if n < 1:
            raise ValueError(f"UNet: x holds no image, its shape is {x.shape}; pass at least one")
        _check_size("UNet", h, w)
        if not x.flags.c_contiguous:
            raise ValueError(
                f"UNet: x must be C-contiguous, its strides are {x.strides}; "
                f"use np.ascontiguousarray"
            )
        if not np.isfinite(x).all():
            raise ValueError("UNet: x holds NaN or infinity; the result would be meaningless")
        return n, self.n_classes, h, w

    def apply(self, x, ops):
        """Do what `forward` does with an `x` that is trusted and lies where `ops` computes.

        The result lies there too; `x` is not changed.
        """
        parameters = self.place(ops)
        skips = []
        for block in self.encoder:
            if skips:
                x = ops.max_pool2d(skips[-1])
            skips.append(_double_conv(x, block, parameters, ops))
        x = skips.pop()
        for up in self.decoder:
            if self.bilinear:
                x = ops.upsample_bilinear(x)
            else:
                x = ops.conv_transpose2d(x, *_parameters(parameters, up.prefix, "weight", "bias"))
            x = ops.pad_concat(skips.pop(), x)
            x = _double_conv(x, up.block, parameters, ops)
        return ops.head(x, *_parameters(parameters, "outc.conv", "weight", "bias"))

    def place(self, ops):
        """Return the parameters where `ops` computes: brought there once, kept while it lives."""
        if ops not in self._placed:
            self._placed[ops] = {
                name: ops.parameter(name, array)
                for name, array in self._parameters().items()
                if array.dtype == np.float32
            }
        return self._placed[ops]

    def _blocks(self):
        return (*self.encoder, *(up.block for up in self.decoder))

    def _parameters(self):
        if self._state is None:
            raise RuntimeError(
                "UNet: it has no parameters; call load_state_dict(), or make it by "
                "UNet.initialised(seed)"
            )
        return self._state

    def _replace(self, state):
        self._state = state
        self._placed.clear()


def _structure(n_channels, bilinear, width):
    widths = tuple(width << level for level in range(LEVELS))
    # Interpolation keeps the number of channels, so the level below hands up half as many.
    half = 2 if bilinear else 1
    channels = (*widths[:-1], widths[-1] // half)
    encoder = tuple(
        DoubleConv(
            f"enc{level}",
            f"down{level}.maxpool_conv.1.double_conv" if level else "inc.double_conv",
            level,
            channels[level - 1] if level else n_channels,
            channels[level],
            channels[level],
        )
        for level in range(LEVELS)
    )
    decoder = []
    for step, level in enumerate(reversed(range(LEVELS - 1)), start=1):
        below, here = widths[level + 1], widths[level]
        block = DoubleConv(
            f"dec{level}",
            f"up{step}.conv.double_conv",
            level,
            2 * here,
            here,
            here // half if level else here,
        )
        decoder.append(Up(f"up{step}.up", below // half, here, block))
    return encoder, tuple(decoder)


def _shapes(encoder, decoder, n_classes, bilinear):
    """Return each parameter's and buffer's shape by name, in the order of PyTorch's state_dict."""
    shapes = {}

    def add_block(block):
        for _, convolution, norm, c, k in block.convolutions:
            shapes[f"{convolution}.weight"] = (k, c, 3, 3)
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{norm}.{kind}"] = (k,)
            shapes[f"{norm}.num_batches_tracked"] = ()

    for block in encoder:
        add_block(block)
    for up in decoder:
        if not bilinear:
            shapes[f"{up.prefix}.weight"] = (up.c, up.k, 2, 2)
            shapes[f"{up.prefix}.bias"] = (up.k,)
        add_block(up.block)
    shapes["outc.conv.weight"] = (n_classes, encoder[0].k, 1, 1)
    shapes["outc.conv.bias"] = (n_classes,)
    return shapes


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


def _parameters(parameters, prefix, *kinds):
    return [parameters[f"{prefix}.{kind}"] for kind in kinds]


def _double_conv(x, block, parameters, ops):
    norms = ("weight", "bias", "running_mean", "running_var")
    for _, convolution, norm, _, _ in block.convolutions:
        x = ops.conv2d(x, parameters[f"{convolution}.weight"], padding=(1, 1))
        x = ops.relu(ops.batch_norm(x, *_parameters(parameters, norm, *norms)))
    return x


def _check_size(who, h, w):
    if not all(isinstance(size, int | np.integer) for size in (h, w)):
        raise TypeError(f"{who}: H and W must be integers, got {h!r} and {w!r}")
    if min(h, w) < LEAST_SIZE:
        raise ValueError(
            f"{who}: an image of {h} x {w} is too small for {LEVELS - 1} poolings; "
            f"H and W must be at least {LEAST_SIZE}"
        )
