# SPDX-License-Identifier: MIT
"""A network's functions on the CPU: the twins against arithmetic, the others against the twins."""

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.conv import reference
from convstudy.nn.blas import BlasOps
from convstudy.nn.images import ImageOps
from convstudy.nn.ops import FUNCTIONS, Ops, Timed
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps, averaging, interpolation

TWIN = ReferenceOps()
EXECUTIONS = {
    "plain": PlainOps(),
    "blas": BlasOps(),
    "blas, 1 thread": BlasOps(1),
    "by images": ImageOps(),
}
EVERY = {"reference": ReferenceOps(np.float32), **EXECUTIONS}

# N, C, H, W: odd and even, one pixel high or wide, several images.
SHAPES = [(1, 3, 16, 16), (1, 5, 17, 19), (3, 4, 7, 11), (2, 3, 1, 6), (1, 2, 9, 1), (5, 9, 1, 1)]

# Each function as U-Net calls it, and as VGG and ResNet do: what is called stands before the comma.
CALLS = (
    *FUNCTIONS,
    *("conv2d, of one pixel", "conv2d, 7 x 7 at stride 2", "conv2d, strides apart"),
    *("max_pool2d, 3 x 3", "max_pool2d, 3 x 3 at stride 1", "average_pool2d, 7 x 7"),
)
OPTIONS = {
    "max_pool2d, 3 x 3": (3, 2, 1),
    "max_pool2d, 3 x 3 at stride 1": (3, 1, 1),
    "average_pool2d, 7 x 7": (7,),
}
INPLACE = ("batch_norm", "relu", "add")


def fits(title, shape):
    """Whether a pooling has a window on an image of `shape`."""
    return title != "max_pool2d" or min(shape[2:]) >= 2


FITTING = [(title, shape) for title in CALLS for shape in SHAPES if fits(title, shape)]


def draw(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def arguments(title, shape, rng):
    """Return fresh arguments of a call for an input of `shape`, and the products it sums."""
    n, c, h, w = shape
    x, method = draw(rng, *shape), title.split(",")[0]
    if title in OPTIONS:
        return (x, *OPTIONS[title]), 16
    if title == "conv2d, of one pixel":
        return (x, draw(rng, 6, c, 1, 1), (0, 0), (2, 2)), c
    if title == "conv2d, 7 x 7 at stride 2":
        return (x, draw(rng, 6, c, 7, 7), (3, 3), (2, 2), draw(rng, 6)), 49 * c
    if title == "conv2d, strides apart":
        return (x, draw(rng, 3, c, 3, 2), (1, 2), (1, 3), draw(rng, 3)), 6 * c
    if method == "conv2d":
        return (x, draw(rng, 6, c, 3, 3), (1, 1)), 9 * c
    if method == "add":
        return (x, draw(rng, *shape)), 16
    if method == "linear":
        return (x, draw(rng, 6, c * h * w), draw(rng, 6)), c * h * w + 16
    if method == "batch_norm":
        # Few roundings, but of single values, and the largest value is several times the rms.
        variance = rng.uniform(0.5, 2, c).astype(np.float32)
        return (x, draw(rng, c), draw(rng, c), draw(rng, c), variance), 16
    if method == "conv_transpose2d":
        return (x, draw(rng, c, 6, 2, 2), draw(rng, 6)), c + 16
    if method == "pad_concat":
        # Margins that halves, thirds and whole numbers would share out in different ways.
        return (draw(rng, n, 2, h + 5, w + 2), x), 1
    if method == "head":
        return (x, draw(rng, 2, c, 1, 1), draw(rng, 2)), c + 16
    return (x,), 16


def call(ops, title, values):
    return getattr(ops, title.split(",")[0])(*values)


def copies(values, dtype=None):
    return [v.astype(dtype or v.dtype) if isinstance(v, np.ndarray) else v for v in values]


def guarded(array):
    """Return a copy that lies between NaNs, so that what is read beyond its ends shows."""
    around = np.full(array.size + 128, np.nan, array.dtype)
    inside = around[64:-64].reshape(array.shape)
    inside[...] = array
    return inside


@pytest.mark.parametrize(("method", "shape"), FITTING)
@pytest.mark.parametrize("name", EXECUTIONS)
def test_agrees_with_the_float64_twin(name, method, shape, rng):
    values, terms = arguments(method, shape, rng)
    truth = call(TWIN, method, copies(values, np.float64))
    given = [guarded(v) if isinstance(v, np.ndarray) else v for v in values]
    output = call(EXECUTIONS[name], method, given)
    assert output.dtype == np.float32
    assert output.flags.c_contiguous
    tolerance.assert_close(output, truth, terms)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("name", EVERY)
def test_only_some_may_overwrite(name, method, rng):
    values, _ = arguments(method, (2, 3, 7, 9), rng)
    given = copies(values)
    call(EVERY[name], method, given)
    free = 1 if method in INPLACE else 0
    for value, original in zip(given[free:], values[free:], strict=True):
        np.testing.assert_array_equal(value, original)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins_keep_the_dtype(method, dtype, rng):
    values, _ = arguments(method, (2, 3, 7, 9), rng)
    assert call(TWIN, method, copies(values, dtype)).dtype == dtype


@pytest.mark.parametrize("ops", EVERY.values(), ids=EVERY)
class TestByHand:
    """What can be worked out on paper."""

    def test_batch_norm(self, ops):
        x = np.array([1, 5, -2, 0], np.float32).reshape(1, 2, 1, 2)
        weight, bias, mean, var = np.array([[2, 3], [10, 20], [1, -2], [4, 0.25]], np.float32)
        y = ops.batch_norm(x, weight, bias, mean, var, eps=0.0)
        np.testing.assert_allclose(y.ravel(), [10, 14, 20, 32], rtol=1e-6)

    def test_batch_norm_needs_eps(self, ops):
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        y = ops.batch_norm(np.full((1, 1, 1, 1), 3, np.float32), one, zero, zero, zero)
        np.testing.assert_allclose(y.ravel(), [3 / np.sqrt(1e-5)], rtol=1e-6)

    def test_relu(self, ops):
        x = np.array([[-1, 0, 2], [3, -0.5, -1e-30]], np.float32)[None, None]
        np.testing.assert_array_equal(ops.relu(x)[0, 0], [[0, 0, 2], [3, 0, 0]])

    def test_pooling_leaves_out_an_odd_row_and_column(self, ops):
        x = np.arange(35, dtype=np.float32).reshape(1, 1, 5, 7)
        expected = [[8, 10, 12], [22, 24, 26]]
        np.testing.assert_array_equal(ops.max_pool2d(x)[0, 0], expected)
        np.testing.assert_array_equal(ops.max_pool2d(-x)[0, 0], [[0, -2, -4], [-14, -16, -18]])

    def test_pooling_of_overlapping_windows_never_takes_the_padding(self, ops):
        x = np.array([[-9, -8, -7], [-6, -5, -4], [-3, -2, -1]], np.float32)[None, None]
        y = ops.max_pool2d(x, 3, 2, 1)
        np.testing.assert_array_equal(y[0, 0], [[-5, -4], [-2, -1]])

    def test_windows_of_one_pixel_copy_it(self, ops):
        x = np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5)
        y = ops.max_pool2d(x, 1, 2, 0)
        np.testing.assert_array_equal(y[0, 0], [[0, 2, 4], [10, 12, 14]])
        y[...] = 99
        assert x.max() == 19

    def test_the_whole_image_is_averaged(self, ops):
        x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
        np.testing.assert_allclose(ops.average_pool2d(x), [[[[2.5]], [[8.5]]]], rtol=1e-6)

    def test_windows_share_an_image_out(self, ops):
        """5 rows by 2: 0 to 2 and 2 to 4, the middle one in both; 3 columns by 2: 0 1, 1 2."""
        x = np.arange(15, dtype=np.float32).reshape(1, 1, 5, 3)
        y = ops.average_pool2d(x, 2)
        np.testing.assert_allclose(y[0, 0], [[3.5, 4.5], [9.5, 10.5]], rtol=1e-6)

    def test_an_image_of_few_pixels_is_spread(self, ops):
        x = np.array([[1, 2], [3, 4]], np.float32)[None, None]
        expected = [[1, 1.5, 2], [2, 2.5, 3], [3, 3.5, 4]]
        np.testing.assert_allclose(ops.average_pool2d(x, 3)[0, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(ops.average_pool2d(x, 2), x)

    def test_add(self, ops):
        x = np.array([1, -2, 3], np.float32).reshape(1, 3, 1, 1)
        y = np.array([10, 20, 30], np.float32).reshape(1, 3, 1, 1)
        np.testing.assert_array_equal(ops.add(x, y).ravel(), [11, 18, 33])

    def test_linear_takes_numbers_in_their_order(self, ops):
        x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32).reshape(2, 1, 2, 2)
        w = np.array([[1, 10, 100, 1000], [0, 0, 0, -1]], np.float32)
        y = ops.linear(x, w, np.array([0.5, 0], np.float32))
        np.testing.assert_array_equal(y, [[4321.5, -4], [8765.5, -8]])

    def test_a_strided_convolution_with_a_bias(self, ops):
        x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
        w = np.array([[1, 10]], np.float32)[None, None]
        y = ops.conv2d(x, w, (0, 1), (2, 3), np.array([0.5], np.float32))
        np.testing.assert_array_equal(y[0, 0], [[0.5, 32.5], [80.5, 120.5]])

    def test_conv_transpose_spreads_a_pixel(self, ops):
        x = np.array([[2, 0], [0, 3]], np.float32)[None, None]
        w = np.array([[1, 10], [100, 1000]], np.float32)[None, None]
        y = ops.conv_transpose2d(x, w, np.array([5], np.float32))
        expected = [[7, 25, 5, 5], [205, 2005, 5, 5], [5, 5, 8, 35], [5, 5, 305, 3005]]
        np.testing.assert_array_equal(y[0, 0], expected)

    def test_conv_transpose_is_the_adjoint_of_a_strided_convolution(self, ops, rng):
        x, y, w = draw(rng, 2, 5, 4, 7), draw(rng, 2, 3, 8, 14), draw(rng, 5, 3, 2, 2)
        forth = ops.conv_transpose2d(x, w, np.zeros(3, np.float32))
        back = reference.conv2d(y.astype(float), w.astype(float), stride=(2, 2))
        # Sums of about a thousand products, none of which is large beside the others.
        scale = np.linalg.norm(forth) * np.linalg.norm(y)
        assert abs(np.vdot(forth.astype(float), y) - np.vdot(x, back)) < 1e-6 * scale

    def test_bilinear(self, ops):
        x = np.array([0, 10, 40], np.float32).reshape(1, 1, 1, 3)
        expected = [0, 4, 8, 16, 28, 40]
        across = ops.upsample_bilinear(x)[0, 0]
        down = ops.upsample_bilinear(x.reshape(1, 1, 3, 1))[0, 0].T
        np.testing.assert_allclose(across, [expected] * 2, rtol=1e-6)
        np.testing.assert_allclose(down, [expected] * 2, rtol=1e-6)

    def test_bilinear_reproduces_a_plane(self, ops):
        rows, columns = np.mgrid[0:5, 0:8]
        x = (3 * rows - 2 * columns + 1).astype(np.float32)[None, None]
        p, q = np.mgrid[0:10, 0:16]
        expected = 3 * p * 4 / 9 - 2 * q * 7 / 15 + 1
        np.testing.assert_allclose(ops.upsample_bilinear(x)[0, 0], expected, atol=1e-5)

    def test_padding_puts_the_smaller_half_first(self, ops):
        skip = np.full((1, 1, 5, 4), 7, np.float32)
        y = ops.pad_concat(skip, np.array([[1, 2, 3], [4, 5, 6]], np.float32)[None, None])
        np.testing.assert_array_equal(y[0, 0], skip[0, 0])
        expected = [[0] * 4, [1, 2, 3, 0], [4, 5, 6, 0], [0] * 4, [0] * 4]
        np.testing.assert_array_equal(y[0, 1], expected)

    def test_head(self, ops):
        x = np.array([[1, 2], [10, 20]], np.float32).reshape(1, 2, 1, 2)
        w = np.array([[1, 1], [3, -1]], np.float32).reshape(2, 2, 1, 1)
        y = ops.head(x, w, np.array([100, 0], np.float32))
        np.testing.assert_array_equal(y[0, :, 0], [[111, 122], [-7, -14]])


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
def test_interpolation_weights(size):
    matrix = interpolation(size, np.float64)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert matrix[0, 0] == 1
    assert matrix[-1, -1] == 1
    # A mirrored input gives a mirrored output.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize(("pixels", "size"), [(1, 1), (7, 7), (7, 3), (3, 7), (13, 7), (14, 7)])
def test_averaging_weights(pixels, size):
    matrix = averaging(pixels, size, np.float64)
    assert matrix.shape == (size, pixels)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    # Every pixel is in a window, and a mirrored input gives a mirrored output.
    assert (matrix.sum(axis=0) > 0).all()
    np.testing.assert_array_equal(matrix, matrix[::-1, ::-1])


@pytest.mark.parametrize("ops", [TWIN, *EXECUTIONS.values()])
def test_windows_that_are_not_there_are_refused(ops):
    x = np.ones((1, 1, 1, 9), np.float32)
    with pytest.raises(ValueError, match="1 x 9 has no window of 2 x 2; pass a larger"):
        ops.max_pool2d(x)
    with pytest.raises(ValueError, match="padding=2; .* the padding at most half the window"):
        ops.max_pool2d(x, 3, 2, 2)


def test_blas_refuses_no_threads():
    with pytest.raises(ValueError, match="threads must be an integer of at least 1, got 0"):
        BlasOps(0)


def test_each_function_is_a_method_and_each_method_a_function():
    assert Ops.__abstractmethods__ == set(FUNCTIONS)


class Late(ReferenceOps):
    """A device on which a call costs 1 s and its completion 10 s more."""

    def __init__(self):
        super().__init__(np.float32)
        self.now = 0
        self.pending = 0

    def relu(self, x):
        self.now += 1
        self.pending += 10
        return x

    def synchronise(self):
        self.now += self.pending
        self.pending = 0


def test_the_stopwatch_waits_for_the_device():
    late = Late()
    timed = Timed(late, clock=lambda: late.now)
    late.pending = 500  # of someone else
    x = np.ones((1, 1, 2, 2), np.float32)
    assert timed.relu(x) is x
    timed.relu(x)
    timed.max_pool2d(x)
    assert timed.seconds["ReLU"] == [11, 11]
    assert timed.seconds["pooling"] == [0]
    assert set(timed.seconds) == set(FUNCTIONS.values())
    assert timed.seconds["convolution"] == []
    assert timed.name == "reference"
    assert timed.to_device(x).dtype == np.float32
