# SPDX-License-Identifier: MIT
"""ResNet-18 and ResNet-50, as torchvision has them: layers, parameters, forward pass."""

import math
from dataclasses import dataclass

from convstudy.models.network import (
    Convolution,
    Network,
    check_sizes,
    is_integer,
    named,
    normal,
    uniform,
)

# Channels of the stem and of the first stage.
WIDTH = 64
# Blocks of each stage, and whether a block is a bottleneck.
_STAGES = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}
# A bottleneck has so many times the channels outside as inside.
_EXPANSION = 4


@dataclass(frozen=True)
class Block:
    """A residual block: convolutions, and their input added to what they make of it.

    Attributes
    ----------
    convolutions : tuple of Convolution
        A ReLU stands between any two, and one behind the sum.
    downsample : Convolution or None
        What makes the input of the result's size, where that is another.
    """

    convolutions: tuple[Convolution, ...]
    downsample: Convolution | None = None

    def apply(self, x, parameters, ops):
        """Return what the block makes of `x`."""
        *inner, last = self.convolutions
        y = x
        for convolution in inner:
            y = ops.relu(convolution.apply(y, parameters, ops))
        y = last.apply(y, parameters, ops)
        if self.downsample:
            x = self.downsample.apply(x, parameters, ops)
        return ops.relu(ops.add(y, x))

    def layers(self, n, h, w):
        """Return [(layer, ConvProblem), ...] for images of `h` x `w`, in the order of running."""
        found, size = [], (h, w)
        for convolution in self.convolutions:
            problem = convolution.problem(n, *size)
            found.append((convolution.layer, problem))
            size = problem.p, problem.q
        if self.downsample:
            found.append((self.downsample.layer, self.downsample.problem(n, h, w)))
        return found


class ResNet(Network):
    """A residual network; it has no parameters until it is given some.

    Parameters
    ----------
    depth : {18, 50}
    num_classes : int
    width : int
        Channels of the stem; the original has 64.

    Attributes
    ----------
    stem : Convolution
        3 x 3 pooling at stride 2 stands behind it.
    blocks : tuple of Block

    Notes
    -----
    As in torchvision, a bottleneck has its stride at the 3 x 3 convolution (often called v1.5),
    where the paper has it at the first.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016, table 1.

    Examples
    --------
    >>> import numpy as np
    >>> from convstudy.nn.blas import BlasOps
    >>> network = ResNet.initialised(seed=0, depth=18, num_classes=10, width=8)
    >>> network.forward(np.zeros((2, 3, 224, 224), np.float32), BlasOps()).shape
    (2, 10)
    """

    def __init__(self, depth=50, num_classes=1000, width=WIDTH):
        if not is_integer(depth) or depth not in _STAGES:
            known = " or ".join(map(str, _STAGES))
            raise ValueError(f"ResNet: depth is {depth!r}; choose {known}")
        check_sizes("ResNet", num_classes=num_classes, width=width)
        self.depth, self.num_classes, self.width = depth, num_classes, width
        self.stem = Convolution("conv1", "conv1", 3, width, 7, 2, 3, norm="bn1")
        self.blocks = _blocks(depth, width)
        super().__init__(3, self._shapes())

    def __repr__(self):
        """Return how it is made again, its parameters apart."""
        width = "" if self.width == WIDTH else f", width={self.width}"
        return f"ResNet({self.depth}, {self.num_classes}{width})"

    def apply(self, x, ops):
        parameters = self.place(ops)
        x = ops.relu(self.stem.apply(x, parameters, ops))
        x = ops.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block.apply(x, parameters, ops)
        return ops.linear(ops.average_pool2d(x), *named(parameters, "fc", "weight", "bias"))

    def layers(self, h, w, n=1):
        """Return [(layer, ConvProblem), ...]: the convolutions of `n` images of `h` x `w`.

        In the order in which they run; a layer is called what its parameters' names begin with.
        """
        self.check_size("ResNet.layers", h, w)
        first = self.stem.problem(n, h, w)
        # What 3 x 3 pooling at stride 2 leaves, with a pixel of padding.
        h, w = (-(-size // 2) for size in (first.p, first.q))
        found = [(self.stem.layer, first)]
        for block in self.blocks:
            found += block.layers(n, h, w)
            *_, last = (problem for _, problem in found)
            h, w = last.p, last.q
        return found

    def terms(self):
        every = [self.stem, *(each for block in self.blocks for each in block.convolutions)]
        convolutions = [each.c * each.size**2 for each in every]
        skips = [block.downsample.c for block in self.blocks if block.downsample]
        # An image of 224 x 224 is 7 x 7 pixels by then.
        return [*convolutions, *skips, 7 * 7, self.shapes["fc.weight"][1]]

    def result_shape(self, n, h, w):
        return n, self.num_classes

    def initial_variance(self, name):
        k, c, *taps = self.shapes[name]
        # "Kaiming" for filters: a ReLU halves mean squares, and gradients keep theirs.
        return 2 / (k * math.prod(taps)) if taps else 1 / (3 * c)

    def initial_values(self, name, rng):
        variance = self.initial_variance(f"{name.rpartition('.')[0]}.weight")
        if name.startswith("fc"):
            return uniform(rng, self.shapes[name], math.sqrt(3 * variance))
        return normal(rng, self.shapes[name], math.sqrt(variance))

    def _shapes(self):
        """Return each parameter's and buffer's shape by name, as PyTorch's state_dict has them."""
        shapes = self.stem.shapes()
        for block in self.blocks:
            for convolution in (*block.convolutions, block.downsample):
                shapes |= convolution.shapes() if convolution else {}
        features = self.blocks[-1].convolutions[-1].k
        return shapes | {
            "fc.weight": (self.num_classes, features),
            "fc.bias": (self.num_classes,),
        }


def _blocks(depth, width):
    counts, bottleneck = _STAGES[depth]
    blocks, c = [], width
    for stage, count in enumerate(counts):
        inside = width << stage
        for place in range(count):
            stride = 2 if stage and not place else 1
            block = _block(f"layer{stage + 1}.{place}", c, inside, stride, bottleneck)
            blocks.append(block)
            c = block.convolutions[-1].k
    return tuple(blocks)


def _block(prefix, c, inside, stride, bottleneck):
    def convolution(place, c, k, size, stride=1):
        layer = f"{prefix}.conv{place}"
        return Convolution(
            *(layer, layer, c, k, size, stride, size // 2), norm=f"{prefix}.bn{place}"
        )

    if bottleneck:
        k = _EXPANSION * inside
        convolutions = (
            convolution(1, c, inside, 1),
            convolution(2, inside, inside, 3, stride),
            convolution(3, inside, k, 1),
        )
    else:
        k = inside
        convolutions = (convolution(1, c, k, 3, stride), convolution(2, k, k, 3))
    if stride == 1 and c == k:
        return Block(convolutions)
    skip = f"{prefix}.downsample"
    return Block(
        convolutions,
        Convolution(f"{skip}.0", f"{skip}.0", c, k, 1, stride, 0, norm=f"{skip}.1"),
    )
