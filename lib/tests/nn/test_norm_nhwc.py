# SPDX-License-Identifier: MIT
"""Batch norm's kernels on NHWC arrays, with what they do in passing, against the float64 twins."""

import math

import numpy as np
import pytest
from nhwc_arrays import DTYPES, Bench, close, draw, host, nchw, nhwc, plant, stored

from convstudy.device import EMULATOR
from convstudy.nn import gradients, norm_nhwc

EPS, MOMENTUM = 1e-3, 0.2
# N, H, W, C, and the channels before and behind it in a wider array.
ODD = (2, 5, 7, 3), (0, 0)
# Whole vectors of either dtype, more than a block has lanes for, and lanes with nothing to do.
CHUNKS = (1, 4, 3, 72), (8, 16)
ONE_CHANNEL = (1, 1, 13, 1), (0, 0)
# More numbers than a block has lanes for, in a slice that starts on no vector; a single column.
NUMBERS = (1, 6, 1, 36), (3, 0)


def forward_statistics(bench, x, rows, weight, bias, running):
    """Run both halves; return statistics, factors, and what the running ones became."""
    pixels, c = math.prod(x.shape[:3]), x.channels
    parts = bench.unwritten(math.ceil(pixels / rows), 2, c)
    bench.run(norm_nhwc.launch_statistics_parts(x.shape, x.dtype, rows, x.pitch), x, parts)
    return put_together(bench, parts, pixels, rows, weight, bias, running)


def put_together(bench, parts, pixels, rows, weight, bias, running):
    c = len(weight)
    statistics, factors = bench.unwritten(2, c), bench.unwritten(2, c)
    mean, var = map(bench.array, running)
    launch = norm_nhwc.launch_statistics(pixels, c, rows, EPS, MOMENTUM)
    given = bench.array(weight), bench.array(bias), mean, var
    bench.run(launch, parts, *given, statistics, factors)
    return [host(a) for a in (statistics, factors, mean, var)]


def forward_whole(bench, x, weight, bias, running, arrays, options):
    """Run the one launch; return what `forward_statistics` does."""
    c = len(weight)
    statistics, factors = bench.unwritten(2, c), bench.unwritten(2, c)
    mean, var = map(bench.array, running)
    names = ("pitch_x", "pitch_residual", "pitch_y", "pitch_pooled")
    launch = norm_nhwc.launch_norm_whole(
        x.shape, x.dtype, **options, eps=EPS, momentum=MOMENTUM, **dict.fromkeys(names, x.pitch)
    )
    given = bench.array(weight), bench.array(bias), mean, var
    bench.run(launch, x, *given, statistics, factors, *arrays)
    return [host(a) for a in (statistics, factors, mean, var)]


def check_statistics(found, x, weight, bias, running):
    """Compare with the twin, and with PyTorch's rule for the running statistics."""
    statistics, factors, mean, var = found
    _, true_mean, true_var = gradients.batch_norm_train(nchw(x), weight, bias, EPS)
    scale = 1 / np.sqrt(true_var + EPS)
    close(statistics[0], true_mean, 64)
    close(statistics[1], scale, 64)
    close(factors[0], weight * scale, 64)
    # What they make of the values: an offset by itself may be the small difference of two numbers.
    normal = (x - true_mean) * scale * weight + bias
    close(x * factors[0].astype(np.float64) + factors[1], normal, 64)
    count = x.size // x.shape[-1]
    close(mean, (1 - MOMENTUM) * running[0] + MOMENTUM * true_mean, 64)
    close(var, (1 - MOMENTUM) * running[1] + MOMENTUM * true_var * count / (count - 1), 64)


def of_channels(rng, c):
    """Return weight, bias, and running mean and variance."""
    weight, var = (stored(rng.uniform(0.5, 2, c)) for _ in range(2))
    return weight, draw(rng, c), (draw(rng, c), var)


def do_statistics(bench, case, dtype, rows, rng):
    shape, around = case
    values = stored(rng.standard_normal(shape) * 2 + 1, dtype)
    own = of_channels(rng, shape[-1])
    x = bench.put(values, dtype, around)
    check_statistics(forward_statistics(bench, x, rows, *own), values, *own)


STATISTICS = [
    (ODD, "float32", 7),
    (ODD, "bfloat16", 64),
    (CHUNKS, "float32", 1),
    (CHUNKS, "bfloat16", 12),
    (ONE_CHANNEL, "float32", 4),
    (NUMBERS, "float32", 3),
]


@pytest.mark.parametrize(("case", "dtype", "rows"), STATISTICS)
def test_statistics_agree_with_the_twin(bench, case, dtype, rows, rng):
    do_statistics(bench, case, dtype, rows, rng)


@pytest.mark.parametrize("rows", [100, 10_000])
def test_a_large_mean_does_not_swallow_the_variance(bench, rows, rng):
    """A plain sum of squares in float32 would have none of its digits left."""
    values = stored(rng.standard_normal((2, 19, 23, 8)) + 10_000)
    found = forward_statistics(bench, bench.put(values), rows, *of_channels(rng, 8))
    mean, scale = found[0]
    np.testing.assert_allclose(mean, values.mean(axis=(0, 1, 2)), rtol=2e-7)
    # Parts keep their means in float32, to 0.0005: of that the variance between parts is made.
    np.testing.assert_allclose(scale, 1 / np.sqrt(values.var(axis=(0, 1, 2)) + EPS), rtol=2e-4)


@pytest.mark.parametrize(("count", "rows", "c"), [(1, 9, 5), (37, 4, 8), (301, 128, 19)])
def test_parts_that_another_kernel_made_are_put_together(bench, count, rows, c, rng):
    pixels = count * rows - rows // 2
    values = stored(rng.standard_normal((1, pixels, 1, c)) + np.arange(c))
    cuts = [values[0, begin : begin + rows, 0] for begin in range(0, pixels, rows)]
    parts = bench.array([(cut.mean(axis=0), cut.var(axis=0) * len(cut)) for cut in cuts])
    own = of_channels(rng, c)
    check_statistics(put_together(bench, parts, pixels, rows, *own), values, *own)


def test_without_parts_the_running_statistics_count_and_stay(bench, rng):
    weight, bias, (mean, var) = of_channels(rng, 11)
    given = [bench.array(a) for a in (weight, bias, mean, var)]
    statistics, factors = bench.unwritten(2, 11), bench.unwritten(2, 11)
    bench.run(norm_nhwc.launch_running_statistics(11, EPS), None, *given, statistics, factors)
    scale = 1 / np.sqrt(var + EPS)
    close(host(statistics), np.array([mean, scale]), 4)
    close(host(factors), np.array([weight * scale, bias - mean * weight * scale]), 4)
    np.testing.assert_array_equal(host(given[2]), mean)
    np.testing.assert_array_equal(host(given[3]), var)


# ---- forward -------------------------------------------------------------------------------------
def exact_factors(rng, c):
    """Return an a and a b with which multiples of 1/4 give numbers that even bf16 holds."""
    return rng.choice([-1, -0.5, 0.5, 1, 2], c), rng.choice([-1, -0.5, 0, 0.25], c)


def with_ties(rng, *shape):
    return rng.integers(-8, 9, shape) / 4


def normalised(x, a, b, relu, residual=0.0):
    y = a * x + b + residual
    return np.maximum(y, 0) if relu else y


def pooled_of(y):
    n, h, w, c = y.shape
    even = y[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def do_norm(bench, case, dtype, options, rng):
    shape, around = case
    n, h, w, c = shape
    a, b = draw(rng, (2, c))
    values, added = draw(rng, shape, dtype), draw(rng, shape, dtype)
    x, y = bench.put(values, dtype, around), bench.slice(shape, dtype, around[::-1])
    residual = bench.put(added, dtype, around) if options.get("residual") else None
    pooled = None
    if options.get("pool"):
        pooled = bench.slice((n, h // 2, w // 2, c), dtype, around)
    names = ("pitch_x", "pitch_residual", "pitch_y", "pitch_pooled")
    launch = norm_nhwc.launch_norm(shape, dtype, **options, **dict.fromkeys(names, x.pitch))
    bench.run(launch, x, bench.array([a, b]), residual, y, pooled)
    added = added if residual else 0.0
    close(y.get(), normalised(values, a, b, options.get("relu", True), added), 4, dtype)
    if pooled:
        # Of what was written, as pooling by itself would see it.
        np.testing.assert_array_equal(pooled.get(), pooled_of(y.get()))


NORM = [
    (ODD, "float32", {"residual": True}),
    (ODD, "float32", {"pool": True, "relu": False}),
    (ODD, "bfloat16", {"pool": True}),
    (CHUNKS, "float32", {"residual": True, "relu": False}),
    (CHUNKS, "bfloat16", {"residual": True}),
    (CHUNKS, "float32", {"pool": True}),
    (CHUNKS, "bfloat16", {"pool": True}),
    (ONE_CHANNEL, "float32", {"relu": False}),
    (NUMBERS, "bfloat16", {"pool": True}),
]


@pytest.mark.parametrize(("case", "dtype", "options"), NORM)
def test_norm_does_what_it_is_told_to(bench, case, dtype, options, rng):
    do_norm(bench, case, dtype, options, rng)


@pytest.mark.parametrize(
    ("case", "dtype", "options"),
    [
        (ODD, "float32", {"pool": True, "relu": False}),
        (CHUNKS, "bfloat16", {"pool": True}),
        (((2, 9, 15, 12), (0, 0)), "float32", {"residual": True}),
    ],
)
def test_norm_in_one_launch(bench, case, dtype, options, rng):
    """In place, so that no block may read what another has."""
    shape, around = case
    n, h, w, c = shape
    values = stored(rng.standard_normal(shape) + 1, dtype)
    added = draw(rng, shape, dtype) if options.get("residual") else 0.0
    x, own = bench.put(values, dtype, around), of_channels(rng, c)
    residual = bench.put(added, dtype, around) if options.get("residual") else None
    pooled = None
    if options.get("pool"):
        pooled = bench.slice((n, h // 2, w // 2, c), dtype, around)
    found = forward_whole(bench, x, *own, (residual, x, pooled), options)
    check_statistics(found, values, *own)
    a, b = found[1]
    close(x.get(), normalised(values, a, b, options.get("relu", True), added), 4, dtype)
    if pooled:
        np.testing.assert_array_equal(pooled.get(), pooled_of(x.get()))


def test_norm_may_write_where_it_reads_or_the_pooled_image_alone(bench, rng):
    shape = (1, 5, 6, 72)
    values, (a, b) = with_ties(rng, *shape), exact_factors(rng, 72)
    expected, factors = normalised(values, a, b, True), bench.array([a, b])
    x, pooled = bench.put(values), bench.slice((1, 2, 3, 72))
    bench.run(norm_nhwc.launch_norm(shape, "float32", pool=True), x, factors, None, None, pooled)
    np.testing.assert_array_equal(pooled.get(), pooled_of(expected))
    np.testing.assert_array_equal(x.get(), values)
    bench.run(norm_nhwc.launch_norm(shape, "float32"), x, factors, None, x, None)
    np.testing.assert_array_equal(x.get(), expected)


def test_nan_is_not_hidden(bench):
    for i, j in np.ndindex(2, 2):
        values = np.full((1, 2, 2, 3), -1.0)
        values[0, i, j] = np.nan
        x, pooled = bench.put(values, "bfloat16"), bench.slice((1, 1, 1, 3), "bfloat16")
        launch = norm_nhwc.launch_norm(values.shape, "bfloat16", pool=True)
        bench.run(launch, x, bench.array([[1] * 3, [0] * 3]), None, x, pooled)
        assert np.isnan(x.get()[0, i, j]).all()
        assert np.isnan(pooled.get()).all()


# ---- backward ------------------------------------------------------------------------------------
def before_norm(dz, dpooled, x, a, b, relu, dtype):
    """Return the gradient of a x + b: the twins of pooling and ReLU, on what memory held."""
    y = nchw(stored(normalised(x, a, b, relu), dtype))
    g = 0.0 if dz is None else nchw(dz)
    if dpooled is not None:
        g = g + gradients.max_pool2d_dgrad(nchw(dpooled), y)
    return gradients.relu_dgrad(g, y) if relu else g


def backward(bench, arrays, statistics, factors, options, rows, training, dx):
    """Run all three kernels, or without `rows` the one; return dx, dweight and dbias."""
    x, c = arrays[2], arrays[2].channels
    pitches = {
        f"pitch_{name}": array.pitch
        for name, array in zip(("dz", "dpooled", "x"), arrays, strict=True)
        if array
    }
    statistics, factors = bench.array(statistics), bench.array(factors)
    dweight, dbias, coefficients = (bench.unwritten(*s) for s in ((c,), (c,), (2, c)))
    if rows is None:
        launch = norm_nhwc.launch_norm_dgrad_whole(
            x.shape, x.dtype, **options, training=training, **pitches, pitch_dx=dx.pitch
        )
        bench.run(launch, *arrays, factors, statistics, dweight, dbias, dx)
        return dx.get(), host(dweight), host(dbias)
    count = math.ceil(norm_nhwc.count_cells(x.shape, options.get("pool")) / rows)
    parts = bench.unwritten(count, 2, c)
    launch = norm_nhwc.launch_norm_dgrad_parts(x.shape, x.dtype, rows, **options, **pitches)
    bench.run(launch, *arrays, factors, statistics, parts)
    launch = norm_nhwc.launch_norm_dgrad_sums(math.prod(x.shape[:3]), c, count, training)
    bench.run(launch, parts, statistics, factors, dweight, dbias, coefficients)
    pitches["pitch_dx"] = dx.pitch
    launch = norm_nhwc.launch_norm_dgrad(x.shape, x.dtype, **options, **pitches)
    bench.run(launch, *arrays, factors, coefficients, dx)
    return dx.get(), host(dweight), host(dbias)


def do_backward(bench, case, dtype, options, rng, rows=5, training=True, write="dx"):
    """Compare with the twins; ties abound, and the forward pass rounds nothing."""
    (n, h, w, c), around = case
    a, b = exact_factors(rng, c)
    values = with_ties(rng, n, h, w, c)
    dz = draw(rng, (n, h, w, c), dtype) if options.get("direct", True) else None
    dpooled = draw(rng, (n, h // 2, w // 2, c), dtype) if options.get("pool") else None
    # Any statistics will do that have these factors: the kernels are told both.
    scale = rng.choice([0.5, 1.0, 2.0], c)
    mean = draw(rng, c)
    g = before_norm(dz, dpooled, values, a, b, options.get("relu", True), dtype)
    truth = gradients.batch_norm_dgrad(
        g, nchw(values), a / scale, mean, 1 / scale**2, 0.0, training
    )

    x = bench.put(values, dtype, around)
    arrays = [None if each is None else bench.put(each, dtype, around) for each in (dz, dpooled)]
    dx = {"dx": bench.slice(x.shape, dtype, around[::-1]), "dz": arrays[0], "x": x}[write]
    found = backward(bench, (*arrays, x), [mean, scale], [a, b], options, rows, training, dx)
    close(found[0], nhwc(truth[0]), n * h * w + 16, dtype)
    close_sum(found[1], truth[1], g * (nchw(values) - mean[:, None, None]) * scale[:, None, None])
    close_sum(found[2], truth[2], g)


def close_sum(actual, expected, summed):
    """Compare sums that may cancel: they are as exact as what was summed."""
    room = 8 * np.finfo(np.float32).eps * np.abs(summed).sum(axis=(0, 2, 3))
    assert (np.abs(actual - expected) <= room).all()


BACKWARD = [
    (ODD, "float32", {"relu": False}),
    (ODD, "float32", {"pool": True, "relu": False}),
    (ODD, "bfloat16", {"pool": True}),
    (CHUNKS, "float32", {}),
    (CHUNKS, "bfloat16", {}),
    (CHUNKS, "float32", {"pool": True}),
    (CHUNKS, "bfloat16", {"pool": True}),
    (ONE_CHANNEL, "bfloat16", {"pool": True, "direct": False}),
    (NUMBERS, "float32", {"pool": True}),
]


@pytest.mark.parametrize(("case", "dtype", "options"), BACKWARD)
def test_gradients_agree_with_the_twins(bench, case, dtype, options, rng):
    do_backward(bench, case, dtype, options, rng)


@pytest.mark.parametrize("options", [{}, {"pool": True}], ids=["pixels", "windows"])
def test_gradients_whatever_the_parts_and_wherever_they_go(bench, options, rng):
    case = (2, 5, 3, 72), (0, 0)
    for rows, write in ((1, "dz"), (1000, "x")):
        do_backward(bench, case, "float32", options, rng, rows, write=write)


@pytest.mark.parametrize(
    ("case", "dtype", "options", "write"),
    [
        (ODD, "float32", {"pool": True}, "x"),
        (CHUNKS, "bfloat16", {"pool": True}, "dz"),
        (((2, 9, 15, 12), (0, 0)), "float32", {}, "dx"),
    ],
)
def test_gradients_in_one_launch(bench, case, dtype, options, write, rng):
    do_backward(bench, case, dtype, options, rng, rows=None, write=write)


def test_statistics_that_were_given_take_nothing_back(bench, rng):
    do_backward(bench, CHUNKS, "float32", {}, rng, training=False)
    do_backward(bench, ODD, "float32", {"pool": True}, rng, rows=None, training=False)


def test_forward_and_backward_with_the_statistics_the_kernels_find(bench, rng):
    values = stored(rng.standard_normal((2, 3, 5, 72)) * 3 + 50)
    weight, bias, running = of_channels(rng, 72)
    x, y, dz = bench.put(values), bench.slice(values.shape), draw(rng, values.shape)
    statistics, factors, *_ = forward_statistics(bench, x, 9, weight, bias, running)
    launch = norm_nhwc.launch_norm(values.shape, "float32")
    bench.run(launch, x, bench.array(factors), None, y, None)
    true_y, mean, var = gradients.batch_norm_train(nchw(values), weight, bias, EPS)
    true_y = np.maximum(true_y, 0)
    # x lies some 17 deviations from 0, which cancel in a x + b.
    close(y.get(), nhwc(true_y), 17**2)
    arrays, dx = (bench.put(dz), None, x), bench.slice(values.shape)
    found = backward(bench, arrays, statistics, factors, {}, 9, True, dx)
    g = gradients.relu_dgrad(nchw(dz), true_y)
    truth = gradients.batch_norm_dgrad(g, nchw(values), weight, mean, var, EPS)
    for actual, expected in zip(found, (nhwc(truth[0]), *truth[1:]), strict=True):
        close(actual, expected, 17**2)


# ---- the same bits, faults, errors ---------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_run_gives_the_same_bits_at_the_sizes_of_unet(dtype, rng):
    from convstudy.device import get_device
    from convstudy.nn.pixels import part_rows

    bench = Bench(get_device())
    shape = (4, 128, 191, 64)
    rows = part_rows(math.prod(shape[:3]), 64, dtype, bench.where)
    cells = norm_nhwc.count_cells(shape, pool=True)
    x, dz = (bench.put(draw(rng, shape), dtype, (0, 64)) for _ in range(2))
    dpooled, own = bench.put(draw(rng, (4, 64, 95, 64)), dtype), of_channels(rng, 64)
    results = []
    for _ in range(5):
        found = forward_statistics(bench, x, rows, *own)
        check_statistics(found, x.get(), *own)
        arrays, dx = (dz, dpooled, x), bench.slice(shape, dtype)
        window_rows = part_rows(cells, 64, dtype, bench.where)
        options = {"pool": True}
        results.append(
            (*found, *backward(bench, arrays, *found[:2], options, window_rows, True, dx))
        )
    for others in zip(*results, strict=True):
        for other in others[1:]:
            np.testing.assert_array_equal(other, others[0])


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_the_gpu():
    """5 x 2^30 numbers of bf16: an offset of 32 bits wraps round; zeros but at the very end."""
    from convstudy.device import array_module, get_device

    where = get_device()
    if where.memory_bytes < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    xp, shape = array_module(where), (5, 1024, 1024, 1024)
    bits = xp.zeros(shape, xp.uint16)
    bits[-1, -1, -1, -8:] = 0x4040  # 3
    half = xp.zeros((5, 512, 512, 1024), xp.uint16)
    factors = xp.ones((2, 1024), xp.float32)
    launch = norm_nhwc.launch_norm(shape, "bfloat16", pool=True)
    launch.run(where, (bits, factors, None, bits, half))
    for found in (bits, half):
        assert found[-1, -1, -1, -9:].tolist() == [0x3F80] + 8 * [0x4080]  # 1 and 4
    launch = norm_nhwc.launch_norm_dgrad(shape, "bfloat16", pool=True)
    launch.run(where, (bits, half, bits, factors, xp.zeros((2, 1024), xp.float32), bits))
    # 4 and the pooled 4; of pixels that are all alike, the first of a window has the pooled one's.
    assert bits[-1, -1, -1, -9:].tolist() == [0x3F80] + 8 * [0x4100]
    assert bits[-1, -2, -2, :2].tolist() == [0x4000] * 2


FAULTS = {
    "batchnorm_statistics_1_parts": ("all.values[1] += number(x[offset(begin, pitch, c)])", ""),
    "batchnorm_statistics_2_combine": ("float(pixels - 1)", "float(pixels)"),
    "batchnorm_fprop_2_scale_shift": ("value += at(added[i][t], v)", "value += 0.0f"),
    "batchnorm_dgrad_1_parts": ("value[t] - mean[v]", "value[t]"),
    "batchnorm_dgrad_2_combine": ("share * scale * scale", "share * scale"),
    "batchnorm_dgrad_3_apply": ("fmaf(-p[v], value[t], q[v])", "q[v]"),
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_in_a_kernel_is_seen(kernel, monkeypatch, rng):
    do = {"statistics": (do_statistics, 7), "fprop": (do_norm, {"residual": True})}
    what, option = do.get(kernel.split("_")[1], (do_backward, {"relu": False}))
    plant(monkeypatch, kernel, *FAULTS[kernel])
    with pytest.raises(AssertionError):
        what(Bench(EMULATOR), ODD, "float32", option, rng)


def test_ties_go_to_the_first(monkeypatch, rng):
    """A pooled gradient that went to every winner of a tie would be seen."""
    plant(monkeypatch, "batchnorm_dgrad_1_parts", "sought = sought && !found", "")
    with pytest.raises(AssertionError):
        do_backward(Bench(EMULATOR), ODD, "bfloat16", {"pool": True}, rng)


BAD = {
    "no image": (lambda: norm_nhwc.launch_norm((0, 4, 4, 8), "float32"), "each at least 1"),
    "rank": (lambda: norm_nhwc.launch_norm((4, 4, 8), "float32"), r"must be \(N, H, W, C\)"),
    "too many": (lambda: norm_nhwc.launch_norm((2, 2**15, 2**15, 1), "float32"), "cut the batch"),
    "dtype": (lambda: norm_nhwc.launch_norm((1, 4, 4, 8), "float16"), "use 'float32' or"),
    "pitch": (
        lambda: norm_nhwc.launch_norm((1, 4, 4, 8), "float32", pitch_x=4),
        "a pitch of 4 is less than the 8 channels",
    ),
    "one pixel": (lambda: norm_nhwc.launch_statistics(1, 8, 4), "no variance to train on"),
    "unused": (
        lambda: norm_nhwc.launch_norm_dgrad((1, 4, 4, 8), "float32", direct=False),
        "that nothing used",
    ),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_calls_are_refused_in_words(title):
    do, message = BAD[title]
    with pytest.raises(ValueError, match=message):
        do()
