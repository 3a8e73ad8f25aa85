# SPDX-License-Identifier: MIT
"""The loss: by hand, by finite differences, at its extremes, and against PyTorch."""

import math

import numpy as np
import pytest

from convstudy.train.losses import cross_entropy, cross_entropy_dice


def draw(rng, classes, n=2, h=4, w=5):
    logits = rng.standard_normal((n, classes, h, w))
    return logits, rng.integers(0, max(classes, 2), (n, h, w))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_gradient_is_the_slope(classes, rng):
    logits, target = draw(rng, classes)
    _, gradient, _ = cross_entropy_dice(logits, target)
    for index in np.ndindex(logits.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[index] += step
            values.append(cross_entropy_dice(moved, target)[0])
        assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_classes_of_images(rng):
    logits, labels = 3 * rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    loss, gradient = cross_entropy(logits, labels)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(shares[np.arange(4), labels]).mean())
    for index in np.ndindex(logits.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[index] += step
            values.append(cross_entropy(moved, labels)[0])
        assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)
    large = cross_entropy(np.array([[300, -300]], np.float32), np.array([1]))
    assert large[0] == pytest.approx(600)
    assert large[1].dtype == np.float32


def test_by_hand():
    # Two pixels of equal probabilities, one of each class: p = 1/2 everywhere.
    loss, _, parts = cross_entropy_dice(np.zeros((1, 2, 1, 2)), np.array([[[0, 1]]]))
    assert parts["cross_entropy"] == pytest.approx(math.log(2))
    # 2 (1/2 + 1/2) over 2 + 2.
    assert parts["dice"] == pytest.approx(0.5)
    assert loss == pytest.approx(math.log(2) + 0.5)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_result_that_is_right_costs_nothing_and_a_wrong_one_much(classes):
    target = np.array([[[0, 1, 1]]], np.uint8)
    sure = np.where(target == 1, 200.0, -200.0)[:, None].astype(np.float32)
    logits = sure if classes == 1 else np.concatenate([-sure, sure], axis=1)
    loss, gradient, parts = cross_entropy_dice(logits, target)
    assert loss == pytest.approx(0, abs=1e-6)
    assert parts["dice"] == pytest.approx(1)
    assert np.abs(gradient).max() < 1e-6
    loss, gradient, parts = cross_entropy_dice(-logits, target)
    assert loss == pytest.approx(1 + (200 if classes == 1 else 400), rel=1e-5)
    assert np.isfinite(gradient).all()


def test_an_empty_mask_of_one_class_is_no_division_by_zero():
    logits = np.full((1, 1, 4, 4), -1000, np.float32)
    loss, gradient, parts = cross_entropy_dice(logits, np.zeros((1, 4, 4), np.uint8))
    assert loss == 0
    assert parts["dice"] == 1
    assert not gradient.any()


def test_float32_stays_float32_and_close(rng):
    logits, target = draw(rng, 2, n=4, h=64, w=95)
    truth, expected, _ = cross_entropy_dice(logits, target)
    loss, gradient, _ = cross_entropy_dice(logits.astype(np.float32), target.astype(np.uint8))
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(truth, rel=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-9)


# ---- PyTorch


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_pytorch_agrees(classes, rng):
    torch = pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )
    functional = torch.nn.functional
    logits, target = draw(rng, classes, n=3)
    z = torch.from_numpy(logits).requires_grad_()
    t = torch.from_numpy(target)
    if classes == 1:
        p, one_hot = torch.sigmoid(z[:, 0]), t.double()
        entropy = torch.nn.BCEWithLogitsLoss()(z[:, 0], one_hot)
    else:
        p = functional.softmax(z, dim=1)
        one_hot = functional.one_hot(t, classes).permute(0, 3, 1, 2).double()
        entropy = torch.nn.CrossEntropyLoss()(z, t)
    dice = (2 * (p * one_hot).sum() + 1e-6) / (p.sum() + one_hot.sum() + 1e-6)
    expected = entropy + 1 - dice
    expected.backward()
    loss, gradient, parts = cross_entropy_dice(logits, target)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert parts["dice"] == pytest.approx(dice.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-10, atol=1e-14)
