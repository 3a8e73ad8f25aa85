# SPDX-License-Identifier: MIT
"""The network as one program: right in every precision, on memory shared and apart."""

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.device import EMULATOR, devices
from convstudy.models.resnet import ResNet
from convstudy.models.unet import UNet
from convstudy.models.vgg import VGG16
from convstudy.nn.reference import ReferenceOps
from convstudy.program.inference import Inference


def network_of(width=8, **options):
    network = UNet.initialised(0, width=width, **options)
    network.randomise_statistics(1)
    return network


def images_of(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def check(network, scores, images, precision):
    expected = network.forward(images, ReferenceOps())
    tolerance.assert_close(scores, expected, *network.terms(), precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("bilinear", [False, True])
def test_scores_are_the_networks(precision, bilinear):
    network = network_of(bilinear=bilinear)
    images = images_of((2, 3, 17, 35))
    forward = Inference(network, images.shape, precision, EMULATOR)
    forward.program.allocate(apart=True)
    forward.reload()
    forward.load(images)
    forward.program.run()
    check(network, forward.scores(), images, precision)


CLASSIFIERS = {
    # Linear layers of a ragged image, and of classes that fill no vector.
    "vgg16": lambda width: VGG16.initialised(0, num_classes=10, width=width),
    "vgg16_bn": lambda width: VGG16.initialised(0, 7, batch_norm=True, width=width),
    "resnet18": lambda width: ResNet.initialised(0, 18, num_classes=10, width=width),
    "resnet50": lambda width: ResNet.initialised(0, 50, num_classes=16, width=width),
}


def classifier_of(name, width=8):
    network = CLASSIFIERS[name](width)
    network.randomise_statistics(1)
    return network


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
def test_classes_are_the_networks(name, precision):
    network = classifier_of(name)
    images = images_of((2, 3, 33, 40)) - 0.5
    forward = Inference(network, images.shape, precision, EMULATOR)
    forward.program.allocate(apart=True)
    forward.reload()
    forward.load(images)
    forward.program.run()
    assert forward.scores().shape == (2, network.num_classes)
    check(network, forward.scores(), images, precision)


def sums(width):
    """Return how many residuals have a launch of their own, and how many are part of another."""
    network = ResNet.initialised(0, 18, num_classes=8, width=width)
    steps = Inference(network, (1, 3, 64, 64), "bf16", EMULATOR, loaded=False).program.steps
    return (
        sum(launch.kernel.startswith("add_") for launch, _ in steps),
        sum(launch.defines.count(("SUMMAND", 1)) for launch, _ in steps),
    )


def test_residuals_are_added_where_a_convolution_writes():
    assert sums(64) == (0, 8)
    # Of so few channels, the first block is filtered by kernels that add nothing.
    own, fused = sums(12)
    assert own >= 2
    assert own + fused == 8


def test_classes_are_the_networks_with_residuals_added_so():
    network, images = classifier_of("resnet18", 32), images_of((1, 3, 33, 34)) - 0.5
    forward = Inference(network, images.shape, "tf32", EMULATOR)
    forward.program.allocate(apart=True)
    forward.reload()
    forward.load(images)
    forward.program.run()
    check(network, forward.scores(), images, "tf32")


def test_parameters_are_made_ready_again():
    """Rung 10 takes filters of fp32 in two parts, which are made when parameters are loaded."""
    network = classifier_of("resnet18", width=32)
    images = images_of((1, 3, 33, 33)) - 0.5
    forward = Inference(network, images.shape, "fp32", EMULATOR)
    made = [launch.kernel for launch, _ in forward.program.beforehand]
    assert "conv2d_operand_1_split" in made
    assert not {"conv2d_operand_1_split"} & {launch.kernel for launch, _ in forward.program.steps}
    network.randomise_statistics(5)
    forward.reload()
    check(network, forward(images), images, "fp32")


def test_shared_memory_gives_the_same_bits():
    network = network_of()
    images = images_of((1, 3, 16, 33))
    forward = Inference(network, images.shape, "fp32", EMULATOR)
    together = forward(images)
    # Again, over what the first run has left.
    np.testing.assert_array_equal(forward(images), together)
    forward.program.allocate(apart=True)
    forward.reload()
    np.testing.assert_array_equal(forward(images), together)
    assert forward.program.arena_bytes <= 1.3 * forward.program.least_bytes


def test_parameters_are_taken_again():
    network = network_of()
    images = images_of((1, 3, 16, 16))
    forward = Inference(network, images.shape, "fp32", EMULATOR)
    network.randomise_statistics(5)
    forward.reload()
    check(network, forward(images), images, "fp32")


def test_other_batches_and_precisions_are_refused():
    network = network_of()
    with pytest.raises(ValueError, match="no precision 'fp8'"):
        Inference(network, (1, 3, 16, 16), "fp8", EMULATOR)
    with pytest.raises(ValueError, match="at least 16"):
        Inference(network, (1, 3, 8, 16), "fp32", EMULATOR)
    forward = Inference(network, (1, 3, 16, 16), "fp32", EMULATOR)
    with pytest.raises(ValueError, match=r"batches of \(1, 3, 16, 16\).*make another"):
        forward(images_of((2, 3, 16, 16)))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("bilinear", [False, True])
def test_scores_are_the_networks_on_the_gpu(precision, bilinear):
    network = network_of(width=64, bilinear=bilinear)
    images = images_of((3, 3, 50, 71))
    forward = Inference(network, images.shape, precision, devices()[0])
    check(network, forward(images), images, precision)
    np.testing.assert_array_equal(forward(images), forward(images))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_are_the_networks_on_the_gpu(name, precision):
    network = classifier_of(name, width=64)
    images = images_of((3, 3, 97, 110)) - 0.5
    forward = Inference(network, images.shape, precision, devices()[0])
    check(network, forward(images), images, precision)
    np.testing.assert_array_equal(forward(images), forward(images))
