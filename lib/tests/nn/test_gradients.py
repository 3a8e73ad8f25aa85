# SPDX-License-Identifier: MIT
"""The gradients' twins: against finite differences, as adjoints, by hand, and against PyTorch."""

import numpy as np
import pytest

from convstudy.conv import reference
from convstudy.nn import gradients
from convstudy.nn.reference import ReferenceOps

TWIN = ReferenceOps()
# N, C, H, W: odd and even, one pixel high or wide, several images.
SHAPES = [(2, 3, 5, 4), (1, 2, 4, 6), (3, 1, 7, 3), (2, 2, 1, 6)]


def differences(function, x, step=1e-5):
    """Return the gradient of a number by each element of `x`, from values on both sides of it."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function()
        x[index] = kept - step
        gradient[index] = (above - function()) / (2 * step)
        x[index] = kept
    return gradient


def check(forward, inputs, computed, dy):
    """Compare each gradient of ``sum(y dy)`` with its differences."""
    for x, gradient in zip(inputs, computed, strict=True):
        assert gradient.shape == x.shape
        expected = differences(lambda: float((forward() * dy).sum()), x)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.fixture
def draw(rng):
    return lambda *shape: rng.standard_normal(shape)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


def test_batch_norm_in_training(shape, draw):
    x, weight, bias, dy = draw(*shape), draw(shape[1]), draw(shape[1]), draw(*shape)
    _, mean, var = gradients.batch_norm_train(x, weight, bias, 1e-3)
    computed = gradients.batch_norm_dgrad(dy, x, weight, mean, var, 1e-3)
    check(
        lambda: gradients.batch_norm_train(x, weight, bias, 1e-3)[0],
        (x, weight, bias),
        computed,
        dy,
    )


def test_batch_norm_of_given_statistics(shape, draw, rng):
    c = shape[1]
    x, weight, bias, mean, dy = draw(*shape), draw(c), draw(c), draw(c), draw(*shape)
    var = rng.uniform(0.5, 2, c)
    computed = gradients.batch_norm_dgrad(dy, x, weight, mean, var, 1e-5, training=False)
    check(lambda: TWIN.batch_norm(x, weight, bias, mean, var), (x, weight, bias), computed, dy)


def test_batch_norm_s_statistics_are_those_of_its_input(shape, draw):
    x = draw(*shape) * 3 + 2
    weight, bias = draw(shape[1]), draw(shape[1])
    y, mean, var = gradients.batch_norm_train(x, weight, bias)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(y, TWIN.batch_norm(x, weight, bias, mean, var), rtol=1e-9)


def test_batch_norm_far_from_zero_keeps_its_variance(rng):
    """A one-pass ``E[x^2] - E[x]^2`` in float32 would lose all of it."""
    x = (1000 + rng.standard_normal((2, 1, 32, 32))).astype(np.float32)
    _, _, var = gradients.batch_norm_train(x, np.ones(1, np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(var, x.astype(float).var(), rtol=1e-4)


def test_relu(shape, draw):
    x, dy = draw(*shape), draw(*shape)
    check(lambda: TWIN.relu(x), (x,), (gradients.relu_dgrad(dy, TWIN.relu(x)),), dy)


def test_relu_has_no_gradient_at_zero():
    np.testing.assert_array_equal(
        gradients.relu_dgrad(np.full(3, 5.0), np.array([0.0, 1e-30, 2.0])), [0, 5, 5]
    )


def test_pooling(draw):
    for n, c, h, w in [(2, 3, 5, 4), (1, 2, 4, 6), (3, 1, 7, 3)]:
        x, dy = draw(n, c, h, w), draw(n, c, h // 2, w // 2)
        check(lambda x=x: TWIN.max_pool2d(x), (x,), (gradients.max_pool2d_dgrad(dy, x),), dy)


def test_of_equal_pixels_the_first_has_the_gradient():
    x = np.array([[2, 2, 0, 7, 9], [1, 2, 7, 7, 9], [9, 9, 9, 9, 9]], float)[None, None]
    dx = gradients.max_pool2d_dgrad(np.array([[3.0, 4.0]])[None, None], x)
    expected = [[3, 0, 0, 4, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(dx[0, 0], expected)


@pytest.mark.parametrize("windows", [(3, 2, 1), (3, 1, 1), (2, 1, 0), (2, 3, 1)], ids=str)
def test_pooling_of_windows_that_overlap_or_leave_pixels_out(windows, draw):
    for n, c, h, w in [(2, 3, 5, 4), (1, 2, 4, 7), (1, 1, 3, 3)]:
        x = draw(n, c, h, w)
        dy = draw(*TWIN.max_pool2d(x, *windows).shape)
        computed = gradients.max_pool2d_dgrad(dy, x, *windows)
        check(lambda x=x: TWIN.max_pool2d(x, *windows), (x,), (computed,), dy)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_average_pooling(shape, size, draw):
    x, dy = draw(*shape), draw(*shape[:2], size, size)
    computed = gradients.average_pool2d_dgrad(dy, shape[2:])
    check(lambda: TWIN.average_pool2d(x, size), (x,), (computed,), dy)


def test_linear(shape, draw):
    n, c, h, w = shape
    x, weight, bias, dy = draw(*shape), draw(4, c * h * w), draw(4), draw(n, 4)
    computed = gradients.linear_dgrad(dy, weight, x.shape), *gradients.linear_wgrad(x, dy)
    check(lambda: TWIN.linear(x, weight, bias), (x, weight, bias), computed, dy)


def test_transposed_convolution(shape, draw):
    n, c, h, w = shape
    x, filters, bias, dy = draw(*shape), draw(c, 4, 2, 2), draw(4), draw(n, 4, 2 * h, 2 * w)
    computed = (
        gradients.conv_transpose2d_dgrad(dy, filters),
        *gradients.conv_transpose2d_wgrad(x, dy),
    )
    check(lambda: TWIN.conv_transpose2d(x, filters, bias), (x, filters, bias), computed, dy)


def test_interpolation(shape, draw):
    n, c, h, w = shape
    x, dy = draw(*shape), draw(n, c, 2 * h, 2 * w)
    check(lambda: TWIN.upsample_bilinear(x), (x,), (gradients.upsample_bilinear_dgrad(dy),), dy)


def test_padding_and_concatenation(shape, draw):
    n, c, h, w = shape
    x, skip, dy = draw(*shape), draw(n, 2, h + 3, w + 2), draw(n, c + 2, h + 3, w + 2)
    computed = gradients.pad_concat_dgrad(dy, skip.shape, x.shape)
    check(lambda: TWIN.pad_concat(skip, x), (skip, x), computed, dy)
    assert not any(np.may_share_memory(each, dy) for each in computed)


def test_head(shape, draw):
    n, c, h, w = shape
    x, filters, bias, dy = draw(*shape), draw(4, c, 1, 1), draw(4), draw(n, 4, h, w)
    computed = gradients.head_dgrad(dy, filters), *gradients.head_wgrad(x, dy)
    check(lambda: TWIN.head(x, filters, bias), (x, filters, bias), computed, dy)


def test_convolution(draw):
    x, filters, dy = draw(2, 3, 5, 4), draw(4, 3, 3, 3), draw(2, 4, 5, 4)
    computed = (
        reference.conv2d_dgrad(dy, filters, (5, 4), padding=(1, 1)),
        reference.conv2d_wgrad(x, dy, (3, 3), padding=(1, 1)),
    )
    check(lambda: TWIN.conv2d(x, filters, (1, 1)), (x, filters), computed, dy)


def test_strided_convolution_with_a_bias(draw):
    x, filters, bias, dy = draw(2, 3, 6, 5), draw(4, 3, 3, 2), draw(4), draw(2, 4, 3, 2)
    steps = {"stride": (2, 3), "padding": (1, 1)}
    computed = (
        reference.conv2d_dgrad(dy, filters, (6, 5), **steps),
        reference.conv2d_wgrad(x, dy, (3, 2), **steps),
        gradients.bias_grad(dy),
    )
    check(lambda: TWIN.conv2d(x, filters, bias=bias, **steps), (x, filters, bias), computed, dy)


def test_what_is_linear_is_the_adjoint_of_its_forward(draw):
    """``<A x, y> = <x, A' y>``, to rounding: closer than differences can tell."""
    x, w, zero = draw(2, 3, 6, 5), draw(3, 4, 2, 2), np.zeros(4)
    skip, head = draw(2, 2, 9, 8), draw(4, 3, 1, 1)
    for y, adjoint in (
        (TWIN.conv_transpose2d(x, w, zero), lambda dy: gradients.conv_transpose2d_dgrad(dy, w)),
        (TWIN.upsample_bilinear(x), gradients.upsample_bilinear_dgrad),
        (TWIN.head(x, head, zero), lambda dy: gradients.head_dgrad(dy, head)),
        (
            TWIN.pad_concat(0 * skip, x),
            lambda dy: gradients.pad_concat_dgrad(dy, skip.shape, x.shape)[1],
        ),
    ):
        dy = draw(*y.shape)
        np.testing.assert_allclose(np.vdot(y, dy), np.vdot(x, adjoint(dy)), rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_of_the_inputs_type(dtype, rng):
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, c, up = draw(2, 3, 6, 4), draw(3), draw(2, 3, 12, 8)
    results = [
        *gradients.batch_norm_train(x, c, c),
        *gradients.batch_norm_dgrad(x, x, c, c, c**2, 1e-5),
        gradients.relu_dgrad(x, x),
        gradients.max_pool2d_dgrad(draw(2, 3, 3, 2), x),
        gradients.max_pool2d_dgrad(draw(2, 3, 3, 2), x, 3, 2, 1),
        gradients.average_pool2d_dgrad(draw(2, 3, 7, 7), (6, 4)),
        gradients.linear_dgrad(draw(2, 5), draw(5, 72), x.shape),
        *gradients.linear_wgrad(x, draw(2, 5)),
        gradients.bias_grad(x),
        gradients.conv_transpose2d_dgrad(up, draw(5, 3, 2, 2)),
        *gradients.conv_transpose2d_wgrad(x, up),
        gradients.upsample_bilinear_dgrad(up),
        *gradients.pad_concat_dgrad(x, (2, 1, 6, 4), (2, 2, 5, 4)),
        gradients.head_dgrad(x, draw(3, 2, 1, 1)),
        *gradients.head_wgrad(x, x),
    ]
    assert {each.dtype for each in results} == {np.dtype(dtype)}
    assert all(each.flags.c_contiguous for each in results)


# ---- PyTorch


def test_pytorch_agrees(rng):
    torch = pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )
    functional = torch.nn.functional

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).requires_grad_()

    # Few values, so that windows hold their largest more than once.
    ties = torch.from_numpy(rng.integers(0, 3, (2, 3, 7, 6)).astype(float)).requires_grad_()
    x, w, b = draw(2, 3, 7, 6), draw(3), draw(3)
    up, bias = draw(3, 4, 2, 2), draw(4)
    a = [each.detach().numpy() for each in (x, w, b, up, ties)]
    _, mean, var = gradients.batch_norm_train(a[0], a[1], a[2])
    cases = [
        (
            functional.batch_norm(x, None, None, w, b, training=True),
            (x, w, b),
            lambda dy: gradients.batch_norm_dgrad(dy, a[0], a[1], mean, var),
        ),
        (
            functional.max_pool2d(ties, 2),
            (ties,),
            lambda dy: (gradients.max_pool2d_dgrad(dy, a[4]),),
        ),
        (
            functional.max_pool2d(ties, 3, 2, 1),
            (ties,),
            lambda dy: (gradients.max_pool2d_dgrad(dy, a[4], 3, 2, 1),),
        ),
        (
            functional.adaptive_avg_pool2d(x, 4),
            (x,),
            lambda dy: (gradients.average_pool2d_dgrad(dy, (7, 6)),),
        ),
        (
            functional.conv_transpose2d(x, up, bias, stride=2),
            (x, up, bias),
            lambda dy: (
                gradients.conv_transpose2d_dgrad(dy, a[3]),
                *gradients.conv_transpose2d_wgrad(a[0], dy),
            ),
        ),
        (
            functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
            (x,),
            lambda dy: (gradients.upsample_bilinear_dgrad(dy),),
        ),
    ]
    for y, inputs, ours in cases:
        dy = rng.standard_normal(y.shape)
        theirs = torch.autograd.grad(y, inputs, torch.from_numpy(dy))
        for computed, expected in zip(ours(dy), theirs, strict=True):
            np.testing.assert_allclose(computed, expected.numpy(), rtol=1e-9, atol=1e-11)
