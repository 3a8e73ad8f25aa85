# SPDX-License-Identifier: MIT
"""VGG-16, as torchvision has it: its layers, its parameters, its forward pass."""

import math

from convstudy.models.network import Convolution, Network, check_sizes, named, normal

# Channels of the first group's convolutions.
WIDTH = 64
# Of each group: how many convolutions of 3 x 3, and how many times the first group's channels.
_GROUPS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
# The classifier takes images of so many pixels a side, averaged if they come out larger or smaller.
_POOLED = 7
# The classifier's layers, and between the first two of them how many times the channels.
_CLASSIFIER = ("classifier.0", "classifier.3", "classifier.6")
_HIDDEN = 64


class VGG16(Network):
    """VGG-16; it has no parameters until it is given some.

    Parameters
    ----------
    num_classes : int
    batch_norm : bool
        Whether a batch norm follows each convolution: torchvision's ``vgg16_bn``.
    width : int
        Channels of the first group; the original has 64.

    Attributes
    ----------
    groups : tuple of tuple of Convolution
        2 x 2 pooling stands behind each.

    Notes
    -----
    In training the original drops half of the classifier's numbers out; here none are, as with
    torchvision's ``dropout=0``. At inference there is no difference.

    References
    ----------
    K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image
    recognition", ICLR 2015, configuration D.

    Examples
    --------
    >>> import numpy as np
    >>> from convstudy.nn.blas import BlasOps
    >>> network = VGG16.initialised(seed=0, num_classes=10, width=8)
    >>> network.forward(np.zeros((2, 3, 224, 224), np.float32), BlasOps()).shape
    (2, 10)
    """

    # Five poolings must leave a pixel.
    least_size = 2 ** len(_GROUPS)

    def __init__(self, num_classes=1000, batch_norm=False, width=WIDTH):
        check_sizes("VGG16", num_classes=num_classes, width=width)
        if not isinstance(batch_norm, bool):
            raise TypeError(f"VGG16: batch_norm must be True or False, got {batch_norm!r}")
        self.num_classes, self.batch_norm, self.width = num_classes, batch_norm, width
        self.groups = _groups(batch_norm, width)
        super().__init__(3, self._shapes())

    def __repr__(self):
        """Return how it is made again, its parameters apart."""
        width = "" if self.width == WIDTH else f", width={self.width}"
        return f"VGG16({self.num_classes}, batch_norm={self.batch_norm}{width})"

    def apply(self, x, ops):
        parameters = self.place(ops)
        for group in self.groups:
            for convolution in group:
                x = ops.relu(convolution.apply(x, parameters, ops))
            x = ops.max_pool2d(x)
        if x.shape[2:] != (_POOLED, _POOLED):
            x = ops.average_pool2d(x, _POOLED)
        *hidden, last = (named(parameters, layer, "weight", "bias") for layer in _CLASSIFIER)
        for layer in hidden:
            x = ops.relu(ops.linear(x, *layer))
        return ops.linear(x, *last)

    def layers(self, h, w, n=1):
        """Return [(layer, ConvProblem), ...]: the 13 convolutions of `n` images of `h` x `w`.

        In the order in which they run; a layer is called what its parameters' names begin with.
        """
        self.check_size("VGG16.layers", h, w)
        return [
            (convolution.layer, convolution.problem(n, h >> level, w >> level))
            for level, group in enumerate(self.groups)
            for convolution in group
        ]

    def terms(self):
        convolutions = [9 * each.c for group in self.groups for each in group]
        linear = [self.shapes[f"{layer}.weight"][1] for layer in _CLASSIFIER]
        # Of an image that is larger than usual, four pixels and more are averaged.
        return [*convolutions, 4, *linear]

    def result_shape(self, n, h, w):
        return n, self.num_classes

    def initial_variance(self, name):
        # "Kaiming" for filters: a ReLU halves mean squares, and gradients keep theirs.
        k, _, *taps = self.shapes[name]
        return 2 / (k * math.prod(taps)) if taps else 0.01**2

    def initial_values(self, name, rng):
        shape = self.shapes[name]
        deviation = math.sqrt(self.initial_variance(name)) if name.endswith("weight") else 0
        return normal(rng, shape, deviation)

    def _shapes(self):
        """Return each parameter's and buffer's shape by name, as PyTorch's state_dict has them."""
        shapes = {}
        for group in self.groups:
            for convolution in group:
                shapes |= convolution.shapes()
        features = self.groups[-1][-1].k * _POOLED**2
        hidden = _HIDDEN * self.width
        for layer, k in zip(_CLASSIFIER, (hidden, hidden, self.num_classes), strict=True):
            shapes |= {f"{layer}.weight": (k, features), f"{layer}.bias": (k,)}
            features = k
        return shapes


def _groups(batch_norm, width):
    groups, c, place = [], 3, 0
    for count, times in _GROUPS:
        group = []
        for _ in range(count):
            prefix = f"features.{place}"
            norm = f"features.{place + 1}" if batch_norm else None
            group.append(Convolution(prefix, prefix, c, times * width, bias=True, norm=norm))
            # PyTorch numbers norms and ReLUs, too, and the pooling behind the group.
            c, place = times * width, place + (3 if batch_norm else 2)
        groups.append(tuple(group))
        place += 1
    return tuple(groups)
