# SPDX-License-Identifier: MIT
"""U-Net, as milesial/Pytorch-UNet has it: its layers, its parameters, its forward pass."""

import math
from dataclasses import dataclass

import numpy as np

from convstudy.models.network import (
    Convolution,
    Network,
    check_sizes,
    check_state,
    named,
    uniform,
)
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
        """Its two `Convolution`."""
        return tuple(
            Convolution(
                *(self.layer + letter, f"{self.prefix}.{place}", c, k),
                norm=f"{self.prefix}.{place + 1}",
            )
            for letter, place, c, k in (("a", 0, self.c, self.mid), ("b", 3, self.mid, self.k))
        )

    def apply(self, x, parameters, ops):
        """Return what the block makes of `x`."""
        for convolution in self.convolutions:
            x = ops.relu(convolution.apply(x, parameters, ops))
        return x


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


class UNet(Network):
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

    least_size = LEAST_SIZE

    def __init__(self, n_channels=3, n_classes=2, bilinear=False, width=WIDTH):
        check_sizes("UNet", n_channels=n_channels, n_classes=n_classes, width=width)
        if not isinstance(bilinear, bool):
            raise TypeError(f"UNet: bilinear must be True or False, got {bilinear!r}")
        self.n_classes, self.bilinear, self.width = n_classes, bilinear, width
        self.encoder, self.decoder = _structure(n_channels, bilinear, width)
        super().__init__(n_channels, self._shapes())

    @classmethod
    def from_state_dict(cls, state):
        """Return the network that a mapping of names to arrays is the state of.

        Raises
        ------
        TypeError, ValueError
            Where it is not the state of any: as `load_state_dict`.
        """
        check_state("UNet.from_state_dict", state)
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

    def __repr__(self):
        """Return how it is made again, its parameters apart."""
        width = "" if self.width == WIDTH else f", width={self.width}"
        return f"UNet({self.n_channels}, {self.n_classes}, bilinear={self.bilinear}{width})"

    def apply(self, x, ops):
        parameters = self.place(ops)
        skips = []
        for block in self.encoder:
            if skips:
                x = ops.max_pool2d(skips[-1])
            skips.append(block.apply(x, parameters, ops))
        x = skips.pop()
        for up in self.decoder:
            if self.bilinear:
                x = ops.upsample_bilinear(x)
            else:
                x = ops.conv_transpose2d(x, *named(parameters, up.prefix, "weight", "bias"))
            x = ops.pad_concat(skips.pop(), x)
            x = up.block.apply(x, parameters, ops)
        return ops.head(x, *named(parameters, "outc.conv", "weight", "bias"))

    def layers(self, h, w, n=1):
        """Return [(layer, ConvProblem), ...]: the 18 3x3 convolutions of `n` images of `h` x `w`.

        In the order in which they run: enc0a, enc0b, enc1a, ... enc4b, dec3a, ... dec0b.
        """
        self.check_size("UNet.layers", h, w)
        return [
            (convolution.layer, convolution.problem(n, h >> block.level, w >> block.level))
            for block in self._blocks()
            for convolution in block.convolutions
        ]

    def enlargements(self, h, w, n=1):
        """Return [(name, forward, backward), ...]: the transposed convolutions, as `ConvProblem`.

        Forward each is a product of 1 x 1 whose results are scattered; what it made, convolved with
        its filters at stride 2, gives its input's gradient, and so its filters' (wgrad). There are
        none where images are interpolated.
        """
        self.check_size("UNet.enlargements", h, w)
        found = []
        for up in () if self.bilinear else self.decoder:
            below = up.block.level + 1
            height, width = h >> below, w >> below
            forward = ConvProblem(n, up.c, height, width, 4 * up.k, 1, 1)
            backward = ConvProblem(n, up.k, 2 * height, 2 * width, up.c, 2, 2, stride=(2, 2))
            found.append((up.prefix.removesuffix(".up"), forward, backward))
        return found

    def terms(self):
        convolutions = [9 * each.c for block in self._blocks() for each in block.convolutions]
        # Interpolation sums four.
        enlarging = [4 if self.bilinear else up.c for up in self.decoder]
        return [*convolutions, *enlarging, self.width]

    def result_shape(self, n, h, w):
        return n, self.n_classes, h, w

    def initial_variance(self, name):
        return self._bound(name) ** 2 / 3

    def initial_values(self, name, rng):
        return uniform(rng, self.shapes[name], self._bound(name))

    def _bound(self, name):
        """Return the bound of a uniform distribution: 1 / sqrt(fan-in), as PyTorch's defaults."""
        # PyTorch takes the second axis for the inputs, of a transposed convolution too.
        weight = f"{name.rpartition('.')[0]}.weight"
        return 1 / math.sqrt(math.prod(self.shapes[weight][1:]))

    def _blocks(self):
        return (*self.encoder, *(up.block for up in self.decoder))

    def _shapes(self):
        """Return each parameter's and buffer's shape by name, as PyTorch's state_dict has them."""
        shapes = {}
        enlarging = {} if self.bilinear else {up.block: up for up in self.decoder}
        for block in self._blocks():
            if up := enlarging.get(block):
                shapes[f"{up.prefix}.weight"] = (up.c, up.k, 2, 2)
                shapes[f"{up.prefix}.bias"] = (up.k,)
            for convolution in block.convolutions:
                shapes |= convolution.shapes()
        shapes["outc.conv.weight"] = (self.n_classes, self.encoder[0].k, 1, 1)
        shapes["outc.conv.bias"] = (self.n_classes,)
        return shapes


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
