# SPDX-License-Identifier: MIT
"""The head of a network of NHWC arrays, the mask, and the images that go in, against float64."""

import math

import numpy as np
import pytest
from nhwc_arrays import Bench, close, draw, host, nchw, nhwc, plant

from convstudy.device import EMULATOR
from convstudy.emulator import EmulatorError
from convstudy.nn import gradients, head_nhwc, images_nhwc
from convstudy.nn.norm_nhwc import launch_norm_dgrad_sums
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.relu_nhwc import launch_sums

TWIN = ReferenceOps()
# Shape, dtype, channels around, classes: few and many, vectors and single numbers, an odd slice.
CASES = [
    ((2, 5, 7, 3), "float32", (0, 0), 2),
    ((1, 6, 5, 72), "bfloat16", (8, 16), 2),
    ((1, 3, 5, 40), "float32", (0, 0), 1),
    ((1, 2, 9, 37), "bfloat16", (1, 0), 9),
]


def parameters(rng, classes, c):
    return draw(rng, (classes, c)), draw(rng, classes)


def do_head(bench, case, norm, rng):
    shape, dtype, around, classes = case
    values = draw(rng, shape, dtype)
    w, bias = parameters(rng, classes, shape[-1])
    a, b = draw(rng, (2, shape[-1]))
    x, logits = bench.put(values, dtype, around), bench.unwritten(*shape[:3], classes)
    launch = head_nhwc.launch_head(shape, dtype, classes, norm, x.pitch)
    factors = bench.array([a, b]) if norm else None
    bench.run(launch, x, factors, bench.array(w), bench.array(bias), logits)
    z = np.maximum(a * values + b, 0) if norm else values
    expected = nhwc(TWIN.head(nchw(z), w[:, :, None, None], bias))
    close(host(logits), expected, shape[-1] + 16)


@pytest.mark.parametrize(("case", "norm"), [*((case, False) for case in CASES), (CASES[1], True)])
def test_the_head(bench, case, norm, rng):
    do_head(bench, case, norm, rng)


def do_gradients(bench, case, rows, in_place, rng):
    shape, dtype, around, classes = case
    c = shape[-1]
    values, dlogits = draw(rng, shape, dtype), draw(rng, (*shape[:3], classes))
    w, _ = parameters(rng, classes, c)
    z = bench.put(values, dtype, around)
    dz = z if in_place else bench.slice(shape, dtype, around[::-1])
    count = -(-values.size // c // rows)
    parts = bench.unwritten(count, classes * (c + 1))
    launch = head_nhwc.launch_head_dgrad_parts(
        shape, dtype, classes, rows, pitch_z=z.pitch, pitch_dz=dz.pitch
    )
    bench.run(launch, bench.array(dlogits), z, bench.array(w), dz, parts)
    dw, dbias = bench.unwritten(classes, c), bench.unwritten(classes)
    bench.run(launch_sums(count, classes * (c + 1), classes * c), parts, dw, dbias)
    twin = gradients.head_dgrad(nchw(dlogits), w[:, :, None, None])
    close(dz.get(), nhwc(twin), classes + 16, dtype)
    true_dw, true_dbias = gradients.head_wgrad(nchw(values), nchw(dlogits))
    close(host(dw), true_dw[:, :, 0, 0], values.size // c + 16)
    close(host(dbias), true_dbias, values.size // c + 16)


@pytest.mark.parametrize(
    ("case", "rows", "in_place"),
    [(CASES[0], 9, True), (CASES[1], 31, False), (CASES[2], 100, False), (CASES[3], 7, True)],
)
def test_gradients_of_the_head(bench, case, rows, in_place, rng):
    do_gradients(bench, case, rows, in_place, rng)


def do_both_gradients(bench, case, rows, rng):
    """Through the head and the batch norm before it, whose output was never written."""
    shape, dtype, around, classes = case
    pixels, c = math.prod(shape[:3]), shape[-1]
    values, dlogits = draw(rng, shape, dtype), draw(rng, (*shape[:3], classes))
    w, _ = parameters(rng, classes, c)
    a, b, mean = draw(rng, (3, c))
    scale = draw(rng, c) ** 2 + 0.5
    x, given = bench.put(values, dtype, around), (bench.array(dlogits), bench.array(w))
    factors, statistics = bench.array([a, b]), bench.array([mean, scale])
    count = -(-pixels // rows)
    head_parts, norm_parts = bench.unwritten(count, classes * (c + 1)), bench.unwritten(count, 2, c)
    launch = head_nhwc.launch_head_norm_dgrad_parts(shape, dtype, classes, rows, x.pitch)
    bench.run(launch, given[0], x, factors, statistics, given[1], head_parts, norm_parts)
    dw, dbias = bench.unwritten(classes, c), bench.unwritten(classes)
    bench.run(launch_sums(count, classes * (c + 1), classes * c), head_parts, dw, dbias)
    norm_dw, norm_db, coefficients = (bench.unwritten(*s) for s in ((c,), (c,), (2, c)))
    launch = launch_norm_dgrad_sums(pixels, c, count)
    bench.run(launch, norm_parts, statistics, factors, norm_dw, norm_db, coefficients)
    launch = head_nhwc.launch_head_norm_dgrad(
        shape, dtype, classes, pitch_x=x.pitch, pitch_dx=x.pitch
    )
    bench.run(launch, given[0], x, factors, coefficients, given[1], x)

    z = nchw(np.maximum(a * values + b, 0))
    true_dw, true_dbias = gradients.head_wgrad(z, nchw(dlogits))
    g = gradients.relu_dgrad(gradients.head_dgrad(nchw(dlogits), w[:, :, None, None]), z)
    var = 1 / scale**2
    truth = gradients.batch_norm_dgrad(g, nchw(values), a / scale, mean, var, 0.0)
    close(x.get(), nhwc(truth[0]), pixels + 16, dtype)
    expected = (true_dw[:, :, 0, 0], true_dbias, *truth[1:])
    for actual, true in zip((dw, dbias, norm_dw, norm_db), expected, strict=True):
        close(host(actual), true, pixels + 16)


@pytest.mark.parametrize(("case", "rows"), [(CASES[1], 13), (CASES[2], 100), (CASES[3], 7)])
def test_gradients_of_the_head_and_of_the_norm_before_it(bench, case, rows, rng):
    do_both_gradients(bench, case, rows, rng)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_mask(bench, classes, rng):
    logits = rng.integers(-2, 3, (2, 5, 7, classes)) / 2
    mask = bench.array(np.full(logits.shape[:3], 255), np.uint8)
    bench.run(head_nhwc.launch_mask(logits.shape, classes), bench.array(logits), mask)
    expected = logits[..., 0] > 0 if classes == 1 else logits.argmax(axis=-1)
    np.testing.assert_array_equal(host(mask), expected)


# ---- images --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 9, 31, 3), "float32"), ((1, 5, 4, 1), "bfloat16")]
)
def test_planes_become_pixels(bench, shape, dtype, rng):
    values = draw(rng, shape, dtype)
    y = bench.slice(shape, dtype)
    bench.run(images_nhwc.launch_planes(shape, dtype), bench.array(nchw(values)), y)
    np.testing.assert_array_equal(y.get(), values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_become_numbers_up_to_1(bench, dtype, rng):
    shape = (2, 11, 19, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    images[0, 0, 0] = 0, 128, 255
    y = bench.slice(shape, dtype)
    bench.run(images_nhwc.launch_bytes(shape, dtype), bench.array(images, np.uint8), y)
    expected = (images.astype(np.float32) / np.float32(255)).astype(y.wide.dtype)
    np.testing.assert_array_equal(y.get(), expected.astype(float))


# ---- faults and errors ---------------------------------------------------------------------------
FAULTS = {
    "head_fprop_1_lanes": ("distance = LANES / 2", "distance = LANES / 4"),
    "head_dgrad_1_parts": ("t == VECTOR && place.chunk == 0", "t == VECTOR"),
    "head_dgrad_2_norm": ("value - mean[v]", "value"),
    "batchnorm_dgrad_5_head": ("> 0.0f", "> -1.0f"),
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_in_a_kernel_is_seen(kernel, monkeypatch, rng):
    plant(monkeypatch, kernel, *FAULTS[kernel])
    what, *options = {
        "head_fprop_1_lanes": (do_head, True),
        "head_dgrad_1_parts": (do_gradients, 31, False),
    }.get(kernel, (do_both_gradients, 13))
    with pytest.raises((AssertionError, EmulatorError)):
        what(Bench(EMULATOR), CASES[1], *options, rng)


def test_bad_calls_are_refused_in_words():
    with pytest.raises(ValueError, match="head: 33 classes; it takes 1 to 32, and a convolution"):
        head_nhwc.launch_head((1, 4, 4, 8), "float32", 33)
    with pytest.raises(ValueError, match="mask: 257 classes do not fit into a byte"):
        head_nhwc.launch_mask((1, 4, 4, 8), 257)
    with pytest.raises(ValueError, match="images: dtype is 'float64'; use 'float32' or 'bfloat16'"):
        images_nhwc.launch_planes((1, 4, 4, 3), "float64")
