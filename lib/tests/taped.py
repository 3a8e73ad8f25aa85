# SPDX-License-Identifier: MIT
"""A U-Net's gradients by the tape, in float64: what programs that train are held to."""

import numpy as np

from convstudy import tolerance
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.train.losses import cross_entropy_dice


def network_of(width=8, **options):
    network = UNet.initialised(0, width=width, **options)
    network.randomise_statistics(1)
    return network


def truth(network, images, masks):
    """Return loss and gradients in float64, by the tape."""
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    logits = network.apply(images.astype(np.float64), tape)
    loss, dlogits, _ = cross_entropy_dice(logits, masks)
    return loss, tape.backward(dlogits)


def terms_of(network):
    """A gradient has gone through every layer, there and back, and through a sum over pixels."""
    return [count for count in network.terms() for _ in range(3)]


def check_gradients(network, actual, expected, precision):
    if precision == "fp32":
        # Of so few values none is so near zero that a ReLU takes it for another.
        limit = tolerance.tolerance(np.float32, *terms_of(network))
    else:
        limit = tolerance.gradient_tolerance(np.float32, *network.terms(), precision=precision)
    sizes = {name: np.linalg.norm(each) for name, each in expected.items()}
    errors = {name: np.linalg.norm(actual[name] - each) for name, each in expected.items()}
    whole = np.linalg.norm(list(sizes.values()))
    assert np.linalg.norm(list(errors.values())) <= limit * whole
    # In bf16 a ReLU here and there is on where it should be off, and one layer's gradient, of so
    # few pixels, suffers: all together have to agree. In fp32 each has to.
    least = 1e-2 if precision == "fp32" else 1.0
    for name, error in errors.items():
        assert error <= limit * max(sizes[name], least * whole), name
