# SPDX-License-Identifier: MIT
"""The tape: gradients of whole networks, and the statistics that training leaves."""

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.train.losses import cross_entropy_dice


def unet(bilinear=False, width=2, **sizes):
    network = UNet.initialised(seed=5, bilinear=bilinear, width=width, **sizes)
    network.randomise_statistics(seed=6)
    return network


def batch(rng, n=2, h=19, w=37, classes=2):
    x = rng.standard_normal((n, 3, h, w), dtype=np.float32)
    return x, rng.integers(0, classes, (n, h, w))


def run(network, tape, x, target):
    """Return the loss, and its gradients by name."""
    logits = network.apply(tape.to_device(x), tape)
    loss, dlogits, _ = cross_entropy_dice(logits, target)
    return loss, tape.backward(dlogits)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])
def test_every_parameter_of_a_unet_has_the_slope_as_its_gradient(bilinear, training, rng):
    network, (x, target) = unet(bilinear), batch(rng)
    # Running statistics that never move, so that the function stays the same.
    tape = TapeOps(ReferenceOps(), training, momentum=0.0)
    network.place(tape)
    _, found = run(network, tape, x, target)
    assert sorted(found) == sorted(network.trained)
    for name, gradient in found.items():
        # Along one random direction: every element takes part.
        direction = rng.standard_normal(gradient.shape)
        parameter = tape.parameters[name]
        kept, losses = parameter.copy(), []
        for step in (1e-8, -1e-8):
            parameter[...] = kept + step * direction
            losses.append(cross_entropy_dice(network.apply(x.astype(float), tape), target)[0])
            tape.forget()
        parameter[...] = kept
        slope = (losses[0] - losses[1]) / 2e-8
        # So small a step that hardly a ReLU or a maximum tips over between the two.
        size = np.linalg.norm(gradient) + 1e-4
        assert abs(np.vdot(gradient, direction) - slope) < 1e-3 * size, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])
def test_float32_agrees_with_float64(bilinear, training, rng):
    """Every gradient within a few times what rounding does to the whole network's result."""
    network, (x, target) = unet(bilinear, width=4), batch(rng, n=3, h=33, w=50)
    results = []
    for ops in (None, ReferenceOps()):
        tape = TapeOps(ops, training)
        network.place(tape)
        results.append(run(network, tape, x, target))
    (loss, mine), (truth, reference) = results
    assert loss == pytest.approx(truth, rel=1e-5)
    for name, gradient in mine.items():
        assert gradient.dtype == np.float32
        assert gradient.shape == network.shapes[name]
        error = np.linalg.norm(gradient - reference[name])
        assert error < 1e-3 * np.linalg.norm(reference[name]), name


def test_forward_is_the_network_s(rng):
    network, (x, _) = unet(), batch(rng)
    tape = TapeOps(ReferenceOps(), training=False)
    result = network.apply(x.astype(float), tape)
    np.testing.assert_array_equal(result, network.forward(x, ReferenceOps()))


def test_running_statistics_follow_the_batch(rng):
    tape = TapeOps(ReferenceOps(), momentum=0.1)
    mean = tape.parameter("running_mean", np.array([1.0, 2.0]))
    var = tape.parameter("running_var", np.array([3.0, 4.0]))
    x = rng.standard_normal((3, 2, 4, 5))
    one = np.ones(2)
    tape.batch_norm(x, one, one, mean, var)
    np.testing.assert_allclose(mean, [0.9, 1.8] + 0.1 * x.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(var, [2.7, 3.6] + 0.1 * x.var(axis=(0, 2, 3), ddof=1))
    assert tape.parameters["running_mean"] is mean


def test_inference_leaves_the_statistics_alone(rng):
    network, (x, target) = unet(), batch(rng)
    tape = TapeOps(training=False)
    network.place(tape)
    run(network, tape, x, target)
    state = network.state_dict()
    for name, array in tape.parameters.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_the_network_s_own_parameters_are_never_changed(rng):
    network, (x, target) = unet(), batch(rng)
    before = network.state_dict()
    tape = TapeOps()
    network.place(tape)
    run(network, tape, x, target)
    for array in tape.parameters.values():
        array += 1
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_what_is_used_twice_has_the_sum_of_both_gradients():
    tape = TapeOps(ReferenceOps())
    w = tape.parameter("w", np.full((1, 1, 1, 1), 3.0))
    x = np.full((1, 1, 1, 1), 2.0)
    # y = w (w x): dy/dw = 2 w x.
    tape.conv2d(tape.conv2d(x, w, (0, 0)), w, (0, 0))
    assert tape.backward(np.ones((1, 1, 1, 1)))["w"] == 12
    # y = z + relu(z) of z = w x, through two channels.
    tape.relu(z := tape.conv2d(x, w, (0, 0)))
    tape.pad_concat(z, tape.relu(z))
    assert tape.backward(np.ones((1, 2, 1, 1)))["w"] == 4


def test_a_bias_a_stride_and_overlapping_windows_have_their_gradients(rng):
    """A small network of every function that a U-Net has not, along random directions."""
    tape = TapeOps(ReferenceOps())
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "one": (4, 4, 1, 1), "m": (5, 16), "c": (5,)}
    given = {name: tape.parameter(name, rng.standard_normal(s)) for name, s in shapes.items()}
    x, dy = rng.standard_normal((2, 3, 11, 14)), rng.standard_normal((2, 5))

    def run():
        y = tape.conv2d(x, given["w"], (1, 1), (2, 2), given["b"])
        y = tape.max_pool2d(y, 3, 2, 1)
        # What is added is used again, as the input of a residual block is.
        y = tape.relu(tape.add(tape.conv2d(y, given["one"]), y))
        return tape.linear(tape.average_pool2d(y, 2), given["m"], given["c"])

    run()
    found = tape.backward(dy)
    assert sorted(found) == sorted(shapes)
    for name, gradient in found.items():
        direction, kept, values = rng.standard_normal(shapes[name]), given[name].copy(), []
        for step in (1e-6, -1e-6):
            given[name][...] = kept + step * direction
            values.append(float((run() * dy).sum()))
            tape.forget()
        given[name][...] = kept
        slope = (values[0] - values[1]) / 2e-6
        assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-5), name


def test_the_tape_is_read_once(rng):
    network, (x, target) = unet(), batch(rng)
    tape = TapeOps()
    network.place(tape)
    run(network, tape, x, target)
    with pytest.raises(RuntimeError, match="the tape is empty; run the network first"):
        tape.backward(np.zeros(1))
    first = run(network, tape, x, target)[1]
    again = run(network, tape, x, target)[1]
    for name, gradient in first.items():
        np.testing.assert_array_equal(gradient, again[name])


def test_one_pixel_a_channel_has_no_variance(rng):
    network, (x, _) = unet(), batch(rng, n=1, h=16, w=31)
    with pytest.raises(ValueError, match="one pixel a channel .* train on more images at once"):
        network.apply(x, TapeOps())
    network.apply(x, TapeOps(training=False))


# ---- PyTorch


@pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])
def test_pytorch_finds_the_same_gradients_and_statistics(bilinear, rng):
    torch = pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )
    from originals import torch_unet

    network, (x, target) = unet(bilinear, width=4, n_classes=3), batch(rng, classes=3)
    theirs = torch_unet(torch, bilinear, width=4, n_classes=3).double().train()
    theirs.load_state_dict(
        {name: torch.from_numpy(array) for name, array in network.state_dict().items()}
    )
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    loss, found = run(network, tape, x, target)
    logits = theirs(torch.from_numpy(x).double())
    t = torch.from_numpy(target)
    p = logits.softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(t, 3).permute(0, 3, 1, 2)
    dice = (2 * (p * one_hot).sum() + 1e-6) / (p.sum() + one_hot.sum() + 1e-6)
    expected = torch.nn.functional.cross_entropy(logits, t) + 1 - dice
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for name, parameter in theirs.named_parameters():
        assert tolerance.relative_error(found[name], parameter.grad.numpy()) < 1e-8, name
    for name, buffer in theirs.named_buffers():
        if "num_batches" not in name:
            np.testing.assert_allclose(tape.parameters[name], buffer.numpy(), rtol=1e-9)
