# SPDX-License-Identifier: MIT
"""The training step as one program, against the tape in float64."""

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.device import EMULATOR, devices
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.program.backend import GpuBackend
from convstudy.train.backend import CpuBackend
from convstudy.train.losses import cross_entropy_dice

SHAPE = (2, 3, 17, 22)


def network_of(width=8, **options):
    network = UNet.initialised(0, width=width, **options)
    network.randomise_statistics(1)
    return network


def batch_of(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    n, _, h, w = shape
    return rng.random(shape, np.float32), rng.integers(0, 2, (n, h, w))


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
    limit = tolerance.tolerance(np.float32, *terms_of(network), precision=precision)
    size = np.sqrt(sum(np.square(each).sum() for each in expected.values()))
    for name, each in expected.items():
        error = np.linalg.norm(actual[name] - each)
        # Of its own size, or of a small share of all.
        assert error <= limit * max(np.linalg.norm(each), 1e-2 * size), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bilinear", [False, True])
def test_gradients_are_the_tapes(precision, bilinear):
    network, (images, masks) = network_of(bilinear=bilinear), batch_of()
    backend = GpuBackend(network, SHAPE, precision, device=EMULATOR)
    backend.program.allocate(apart=True)
    backend._put_network(network.state_dict())
    backend.load(images, masks, 0.0)
    backend.program.run()
    loss, expected = truth(network, images, masks)
    check_gradients(network, backend.gradients(), expected, precision)
    found = backend._get(backend._step.loss)[0]
    assert found == pytest.approx(loss, rel=1e-5 if precision == "fp32" else 0.02)
