# SPDX-License-Identifier: MIT
"""Pooling, interpolation, ReLU and biases on NHWC arrays, against the float64 twins."""

import numpy as np
import pytest
from nhwc_arrays import Bench, close, draw, host, nchw, nhwc, plant

from convstudy.device import EMULATOR
from convstudy.emulator import EmulatorError
from convstudy.nn import add_nhwc, gradients, pool_nhwc, relu_nhwc, upsample_nhwc
from convstudy.nn.reference import ReferenceOps

TWIN = ReferenceOps()
# Single numbers; whole vectors in a slice, more than a block has lanes for.
ODD = (2, 5, 7, 3), "float32", (0, 0)
CHUNKS = (1, 4, 5, 72), "bfloat16", (8, 16)
SINGLE = (1, 1, 3, 1), "float32", (0, 0)


# ---- max pooling ---------------------------------------------------------------------------------
def windows(x, window, stride, padding):
    """Return each tap of all windows of an NHWC array, (taps, N, P, Q, C); outside is -inf."""
    _, p, q, _ = pool_nhwc.pooled_shape(x.shape, window, stride, padding)
    (pad_h, pad_w), (down, across) = padding, stride
    sides = [(0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)]
    wide = np.pad(x, sides, constant_values=-np.inf)
    return np.array(
        [
            wide[:, r : r + down * (p - 1) + 1 : down, s : s + across * (q - 1) + 1 : across]
            for r, s in np.ndindex(*window)
        ]
    )


def scattered(dy, winners, shape, window, stride, padding):
    """Return the gradient of pooling, one output at a time."""
    dx = np.zeros(shape)
    for n, p, q, c in np.ndindex(dy.shape):
        r, s = divmod(winners[n, p, q, c], window[1])
        dx[n, p * stride[0] - padding[0] + r, q * stride[1] - padding[1] + s, c] += dy[n, p, q, c]
    return dx


def do_max_pool(bench, case, options, rng):
    shape, dtype, around = case
    window, stride, padding = options
    values = rng.integers(-3, 4, shape) / 4  # ties abound
    taps = windows(values, window, stride, padding)
    x, y = bench.put(values, dtype, around), bench.slice(taps.shape[1:], dtype, around)
    winners = bench.array(np.full(y.shape, 255), np.uint8)
    launch = pool_nhwc.launch_max_pool(shape, dtype, *options, pitch_x=x.pitch, pitch_y=y.pitch)
    bench.run(launch, x, y, winners)
    np.testing.assert_array_equal(y.get(), taps.max(axis=0))
    np.testing.assert_array_equal(host(winners), taps.argmax(axis=0))

    dy = draw(rng, y.shape, dtype)
    dx = bench.slice(shape, dtype, around[::-1])
    launch = pool_nhwc.launch_max_pool_dgrad(
        shape, dtype, *options, pitch_dy=y.pitch, pitch_dx=dx.pitch
    )
    bench.run(launch, bench.put(dy, dtype, around), winners, dx)
    expected = scattered(dy, taps.argmax(axis=0), shape, *options)
    close(dx.get(), expected, 16, dtype)
    if window == stride == (2, 2):
        twin = gradients.max_pool2d_dgrad(nchw(dy), nchw(values))
        np.testing.assert_array_equal(expected, nhwc(twin))


VGG, RESNET = ((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (ODD, VGG),
        (CHUNKS, VGG),
        (CHUNKS, RESNET),
        (((1, 6, 4, 8), "float32", (0, 4)), RESNET),
        (((2, 4, 1, 3), "bfloat16", (0, 0)), ((3, 1), (1, 2), (1, 0))),
    ],
)
def test_max_pooling_and_its_gradient(bench, case, options, rng):
    do_max_pool(bench, case, options, rng)


def test_pooling_hides_no_nan_and_needs_no_winners(bench):
    for i, j in np.ndindex(2, 2):
        values = np.full((1, 2, 2, 3), -1.0)
        values[0, i, j] = np.nan
        y = bench.slice((1, 1, 1, 3))
        bench.run(pool_nhwc.launch_max_pool(values.shape, "float32"), bench.put(values), y, None)
        assert np.isnan(y.get()).all()


@pytest.mark.parametrize("case", [ODD, CHUNKS])
def test_average_pooling_and_its_gradient(bench, case, rng):
    (n, h, w, c), dtype, around = case
    values, dy = draw(rng, (n, h, w, c), dtype), draw(rng, (n, 1, 1, c), dtype)
    x, y = bench.put(values, dtype, around), bench.slice((n, 1, 1, c), dtype)
    bench.run(pool_nhwc.launch_average_pool(x.shape, dtype, x.pitch), x, y)
    close(y.get(), values.mean(axis=(1, 2), keepdims=True), h * w, dtype)
    dx = bench.slice(x.shape, dtype, around)
    bench.run(
        pool_nhwc.launch_average_pool_dgrad(x.shape, dtype, dx.pitch), bench.put(dy, dtype), dx
    )
    close(dx.get(), np.broadcast_to(dy / (h * w), x.shape), 4, dtype)


def do_average_windows(bench, shape, dtype, size, rng):
    n, h, w, c = shape
    values, dy = draw(rng, shape, dtype), draw(rng, (n, size, size, c), dtype)
    y, dx = bench.slice(dy.shape, dtype), bench.slice(shape, dtype)
    bench.run(pool_nhwc.launch_average_windows(shape, dtype, size), bench.put(values, dtype), y)
    expected = nhwc(TWIN.average_pool2d(nchw(values), size))
    close(y.get(), expected, h * w, dtype)
    launch = pool_nhwc.launch_average_windows_dgrad(shape, dtype, size)
    bench.run(launch, bench.put(dy, dtype), dx)
    close(dx.get(), nhwc(gradients.average_pool2d_dgrad(nchw(dy), (h, w))), 16, dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    # Windows that overlap, that are one pixel, and that pixels are repeated for.
    [
        ((2, 9, 11, 3), "float32", 7),
        ((1, 14, 7, 72), "bfloat16", 7),
        ((2, 1, 2, 5), "float32", 3),
    ],
)
def test_averages_of_windows_and_their_gradient(bench, shape, dtype, size, rng):
    do_average_windows(bench, shape, dtype, size, rng)


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        ("avgpool_fprop_2_windows", "(p + 1) * H + size - 1", "(p + 1) * H"),
        ("avgpool_dgrad_2_windows", "((h + 1) * size - 1) / H", "h * size / H"),
    ],
)
def test_a_wrong_window_shows(kernel, right, wrong, rng, monkeypatch):
    plant(monkeypatch, kernel, right, wrong)
    with pytest.raises((AssertionError, EmulatorError)):
        do_average_windows(Bench(EMULATOR), (2, 9, 11, 3), "float32", 7, rng)


# ---- sums ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("case", "into"), [(ODD, "y"), (CHUNKS, "x"), (SINGLE, "other")])
def test_sums_and_their_relu(bench, case, into, relu, rng):
    shape, dtype, _ = case
    x, other = draw(rng, shape, dtype), draw(rng, shape, dtype)
    arrays = {"x": bench.put(x, dtype), "other": bench.put(other, dtype)}
    arrays["y"] = bench.slice(shape, dtype)
    launch = add_nhwc.launch_add(shape, dtype, relu)
    bench.run(launch, arrays["x"], arrays["other"], arrays[into])
    expected = np.maximum(x + other, 0) if relu else x + other
    close(arrays[into].get(), expected, 2, dtype)


# ---- interpolation -------------------------------------------------------------------------------
def do_upsample(bench, case, margins, rng):
    """Write into an image with so many more rows above and below, and columns left and right."""
    (n, h, w, c), dtype, around = case
    (above, below), (left, right) = margins
    values = draw(rng, (n, h, w, c), dtype)
    size = 2 * h + above + below, 2 * w + left + right
    x, y = bench.put(values, dtype, around), bench.slice((n, *size, c), dtype, around)
    where = size, (above, left)
    launch = upsample_nhwc.launch_upsample
    bench.run(launch(x.shape, dtype, *where, pitch_x=x.pitch, pitch_y=y.pitch), x, y)
    expected = nhwc(TWIN.upsample_bilinear(nchw(values)))
    close(y.get(), np.pad(expected, [(0, 0), *margins, (0, 0)]), 16, dtype)

    dy, dx = draw(rng, y.shape, dtype), bench.slice(x.shape, dtype, around[::-1])
    launch = upsample_nhwc.launch_upsample_dgrad(
        x.shape, dtype, *where, pitch_dy=y.pitch, pitch_dx=dx.pitch
    )
    bench.run(launch, bench.put(dy, dtype, around), dx)
    inside = dy[:, above : above + 2 * h, left : left + 2 * w]
    close(dx.get(), nhwc(gradients.upsample_bilinear_dgrad(nchw(inside))), 16, dtype)


@pytest.mark.parametrize(
    ("case", "margins"),
    [(ODD, ((1, 2), (0, 1))), (CHUNKS, ((0, 0), (1, 0))), (SINGLE, ((0, 0), (0, 0)))],
)
def test_interpolation_and_its_gradient(bench, case, margins, rng):
    do_upsample(bench, case, margins, rng)


@pytest.mark.parametrize(
    ("case", "part", "corner"),
    [(ODD, (2, 4), (2, 1)), (CHUNKS, (4, 4), (0, 0)), (ODD, (4, 7), (1, 0))],
)
def test_a_border_is_zero_and_nothing_else_is_touched(bench, case, part, corner, rng):
    shape, dtype, around = case
    values = draw(rng, shape, dtype)
    y = bench.put(values, dtype, around)
    bench.run(upsample_nhwc.launch_border(shape, dtype, part, corner, y.pitch), y)
    own = (slice(None), *(slice(a, a + b) for a, b in zip(corner, part, strict=True)))
    expected = np.zeros(shape)
    expected[own] = values[own]
    np.testing.assert_array_equal(y.get(), expected)
    assert upsample_nhwc.launch_border(shape, dtype, shape[1:3]) is None


# ---- ReLU and biases -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("case", "add", "write"), [(ODD, False, "y"), (CHUNKS, True, "other"), (CHUNKS, False, "dy")]
)
def test_gradients_of_relu(bench, case, add, write, rng):
    shape, dtype, around = case
    dy, other, y = (draw(rng, shape, dtype) for _ in range(3))
    y = np.maximum(y, 0)
    arrays = {"dy": bench.put(dy, dtype, around), "y": bench.put(y, dtype, around[::-1])}
    arrays["other"] = bench.put(other, dtype, around) if add else None
    dx, pitch = arrays[write], arrays["dy"].pitch
    names = ("pitch_dy", "pitch_other", "pitch_y", "pitch_dx")
    launch = relu_nhwc.launch_relu_dgrad(shape, dtype, add, **dict.fromkeys(names, pitch))
    bench.run(launch, arrays["dy"], arrays["other"], arrays["y"], dx)
    close(dx.get(), gradients.relu_dgrad(dy + other * add, y), 2, dtype)


def do_bias(bench, case, rows, relu, part, rng):
    (n, h, w, c), dtype, around = case
    p, q, top, left = part or (h, w, 0, 0)
    values, y = draw(rng, (n, h, w, c), dtype), np.maximum(draw(rng, (n, h, w, c), dtype), 0)
    dy = bench.put(values, dtype, around)
    output = bench.put(y, dtype, around) if relu else None
    count = -(-n * p * q // rows)
    parts = bench.unwritten(count, c)
    launch = relu_nhwc.launch_bias_wgrad_parts(
        dy.shape,
        dtype,
        rows,
        relu,
        part,
        **dict.fromkeys(("pitch_dy", "pitch_y", "pitch_dx"), dy.pitch),
    )
    bench.run(launch, dy, output, dy if relu else None, parts)
    passed = gradients.relu_dgrad(values, y) if relu else values
    np.testing.assert_array_equal(dy.get(), passed)
    first, second = bench.unwritten(c - 1), bench.unwritten(1)
    bench.run(relu_nhwc.launch_sums(count, c, c - 1), parts, first, second)
    expected = passed[:, top : top + p, left : left + q].sum(axis=(0, 1, 2))
    close(np.append(host(first), host(second)), expected, 64)
    whole = bench.unwritten(c)
    bench.run(relu_nhwc.launch_sums(count, c), parts, whole, None)
    np.testing.assert_array_equal(host(whole), np.append(host(first), host(second)))


@pytest.mark.parametrize(
    ("case", "rows", "relu", "part"),
    [
        (ODD, 7, True, None),
        (CHUNKS, 9, True, None),
        (CHUNKS, 5, False, (3, 4, 1, 1)),
        (ODD, 100, False, (4, 7, 0, 0)),
    ],
)
def test_gradients_of_a_bias(bench, case, rows, relu, part, rng):
    do_bias(bench, case, rows, relu, part, rng)


# ---- faults and errors ---------------------------------------------------------------------------
FAULTS = {
    "maxpool_fprop_2_winners": ("value > best[v]", "value >= best[v]"),
    "maxpool_dgrad_1_winners": ("/ STRIDE_H - i, r", "/ STRIDE_H, r"),
    "upsample_fprop_2_channels": ("- left, n", "- top, n"),
    "upsample_dgrad_1_gather": ("2 * w - 1 + s;", "2 * w + s;"),
    "bias_wgrad_1_parts": ("inside ? number : begin", "number"),
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_in_a_kernel_is_seen(kernel, monkeypatch, rng):
    plant(monkeypatch, kernel, *FAULTS[kernel])
    what, options = {
        "maxpool": (do_max_pool, (RESNET,)),
        "upsample": (do_upsample, (((1, 2), (0, 1)),)),
        "bias": (do_bias, (40, False, (2, 6, 3, 1))),
    }[kernel.split("_")[0]]
    with pytest.raises((AssertionError, EmulatorError)):
        what(Bench(EMULATOR), ODD, *options, rng)


BAD = {
    "no window": (lambda: pool_nhwc.pooled_shape((1, 1, 9, 3)), "1 x 9 has no window of 2 x 2"),
    "windows": (lambda: pool_nhwc.pooled_shape((1, 99, 99, 3), (17, 17)), "1 to 256 pixels"),
    "padding": (
        lambda: pool_nhwc.pooled_shape((1, 9, 9, 3), padding=(2, 0)),
        "padding must be 0 to half",
    ),
    "part": (
        lambda: relu_nhwc.launch_bias_wgrad_parts((1, 4, 4, 8), "float32", 8, part=(4, 4, 1, 0)),
        r"a part of 4 x 4 at \(1, 0\) is not inside an image of 4 x 4",
    ),
    "too small": (
        lambda: upsample_nhwc.launch_upsample((1, 4, 4, 8), "float32", (8, 7)),
        "a part of 8 x 8 at .* is not inside an image of 8 x 7",
    ),
    "too long": (
        lambda: upsample_nhwc.launch_upsample((1, 1, 2**15, 8), "float32"),
        "a side above 2.15",
    ),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_calls_are_refused_in_words(title):
    do, message = BAD[title]
    with pytest.raises(ValueError, match=message):
        do()
