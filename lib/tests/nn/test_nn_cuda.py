# SPDX-License-Identifier: MIT
"""A network's functions as CUDA kernels: on the emulator, through NVRTC, and on a GPU."""

import re

import numpy as np
import pytest
from ptx import bound
from test_nhwc_kernels import KERNELS as NHWC_KERNELS
from test_nn_cpu import CALLS, INPLACE, SHAPES, arguments, call, copies, fits

from convstudy import compile, device, emulator, lane, tolerance
from convstudy.conv import algorithm
from convstudy.device import CPU, EMULATOR
from convstudy.models.unet import UNet
from convstudy.nn import cuda
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps
from convstudy.nn.ops import FUNCTIONS
from convstudy.nn.reference import ReferenceOps
from convstudy.problem import ConvProblem

TWIN = ReferenceOps()
RUNGS = algorithm.kernels_for(ConvProblem(1, 64, 8, 8, 64, 3, 3, padding=1))

# Beyond the CPU's shapes: more channels and pixels than a tile or a block's segment holds.
EDGES = [*SHAPES, (1, 17, 5, 15), (2, 1, 33, 67), (1, 40, 3, 3)]
FITTING = [(method, shape) for method in CALLS for shape in EDGES if fits(method, shape)]


@pytest.fixture
def poisoned(monkeypatch):
    """Every array handed out unwritten is NaN, so that an output nobody wrote does not pass."""

    def nan(ops, shape):
        with ops.active():
            return ops.array_module.full(shape, np.nan, np.float32)

    monkeypatch.setattr(ResidentOps, "empty", nan)


def agree(ops, method, shape, rng):
    values, terms = arguments(method, shape, rng)
    truth = call(TWIN, method, copies(values, np.float64))
    sent = [ops.to_device(v) if isinstance(v, np.ndarray) else v for v in values]
    output = ops.to_host(call(ops, method, sent))
    tolerance.assert_close(output, truth, terms, dtype=np.float32)
    # What must not be overwritten was not.
    for given, original in list(zip(sent, values, strict=True))[method in INPLACE :]:
        if isinstance(original, np.ndarray):
            np.testing.assert_array_equal(ops.to_host(given), original)
    return output


def test_every_kernel_of_a_function_has_a_twin_and_is_launched(monkeypatch, rng):
    launched = {}
    run = compile.Launch.run

    def spy(launch, *arguments, **options):
        launched.setdefault(launch.kernel, set()).add(method)
        return run(launch, *arguments, **options)

    monkeypatch.setattr(compile.Launch, "run", spy)
    for method in FUNCTIONS:
        agree(ResidentOps(device=EMULATOR), method, (1, 2, 4, 6), rng)
    others = {k for k in compile.kernels() if not re.match("conv2d_|memory_", k)}
    assert set(cuda.KERNELS) == others - set(NHWC_KERNELS)
    for kernel, method in cuda.KERNELS.items():
        assert launched[kernel] == {method}
        assert callable(getattr(TWIN, method))


@pytest.mark.parametrize(("method", "shape"), FITTING)
def test_kernels_on_the_emulator_agree_with_their_twins(method, shape, poisoned, rng):
    agree(ResidentOps(device=EMULATOR), method, shape, rng)


def test_a_fault_in_a_kernel_is_seen(monkeypatch, poisoned, rng):
    faults = {
        "batch_norm": ("x[plane + i] - mean[c]", "x[plane + i]"),
        "relu": ("value < 0.0f ? 0.0f : value", "value"),
        "max_pool2d": ("row[inside(left + s, W)]", "row[inside(left, W)]"),
        "average_pool2d": ("i += WARP", "i += WARP + 1"),
        "add": ("x[i] + y[i]", "x[i] + y[begin]"),
        "conv_transpose2d": ("c0 += TILE_C", "c0 += TILE_C + 1"),
        "upsample_bilinear": ("2 * size - 1", "2 * size"),
        "pad_concat": ("i % W - left", "i % W"),
    }
    text = compile.source
    for kernel, method in cuda.KERNELS.items():
        right, wrong = faults[method]
        assert right in text(kernel)
        changed = compile.source.__wrapped__(kernel, cuda_defines(kernel)).replace(right, wrong)
        broken = emulator.load(changed, kernel, f"{kernel}.cu")
        monkeypatch.setattr(compile, "_on_emulator", lambda *_, broken=broken: broken)
        with pytest.raises((AssertionError, emulator.EmulatorError)):
            agree(ResidentOps(device=EMULATOR), method, (1, 21, 6, 7), rng)


def cuda_defines(kernel):
    if "averagepool" in kernel:
        return cuda._PLANES[:1]
    return () if "convtranspose" in kernel else cuda._PLANES


@pytest.mark.parametrize("kernel", cuda.KERNELS)
@pytest.mark.parametrize("arch", compile.ARCHITECTURES)
def test_kernels_compile_without_spills(kernel, arch):
    windows = (("WINDOW", 3), ("STRIDE", 2), ("PADDING", 1))
    others = (windows,) if "maxpool" in kernel else ()
    for defines in ((), cuda_defines(kernel), *others):
        cubin = compile.cubin(kernel, arch, defines)
        assert cubin.spill_bytes == 0
        assert cubin.stack_bytes == 0


def test_nan_is_not_hidden():
    ops = ResidentOps(device=EMULATOR)
    x = np.full((1, 1, 2, 2), -1, np.float32)
    for i, j in np.ndindex(2, 2):
        spoilt = x.copy()
        spoilt[0, 0, i, j] = np.nan
        assert np.isnan(ops.max_pool2d(spoilt)).all()
        assert np.isnan(ops.max_pool2d(spoilt, 3, 2, 1)).all()
        assert np.isnan(ops.average_pool2d(spoilt)).all()
        assert np.isnan(ops.relu(spoilt)[0, 0, i, j])


def test_to_device_makes_a_copy_so_that_in_place_functions_cannot_reach_the_caller(rng):
    x = rng.standard_normal((1, 2, 3, 4), dtype=np.float32)
    kept = x.copy()
    ops = ResidentOps(device=EMULATOR)
    ops.relu(ops.to_device(x))
    np.testing.assert_array_equal(x, kept)


# ---- whole networks ------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[False, True], ids=["transposed", "bilinear"])
def network(request):
    """A real U-Net, its filters cut to few channels: the emulator runs it in seconds."""
    return small_unet(request.param)


def small_unet(bilinear):
    network = UNet.initialised(7, bilinear=bilinear, width=2)
    network.randomise_statistics(8)
    return network


def image(rng, n=1, h=18, w=21):
    return rng.standard_normal((n, 3, h, w), dtype=np.float32)


def executions():
    yield "resident", ResidentOps(device=EMULATOR)
    for name in RUNGS:
        yield f"resident, {name}", ResidentOps(name, EMULATOR)
    yield "offload, plain", OffloadOps(device=EMULATOR)
    yield "offload, BLAS", OffloadOps(RUNGS[2], EMULATOR, BlasOps())
    yield "offload, filters once", OffloadOps(device=EMULATOR, cpu=BlasOps(), weights="once")
    yield "offload, pinned", OffloadOps(device=EMULATOR, cpu=BlasOps(), memory="pinned")


@pytest.mark.parametrize("title", dict(executions()))
def test_a_network_agrees_with_the_twin(title, network, poisoned, rng):
    x = image(rng)
    truth = network.forward(x, TWIN)
    ops = dict(executions())[title]
    for _ in range(2):  # the second time everything is in its place already
        tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


def test_all_rungs_give_one_network_the_same_bits(network, rng):
    x = image(rng)
    results = [network.forward(x, ResidentOps(name, EMULATOR)) for name in RUNGS]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


class Counting(lane.CpuLane):
    """A lane that keeps the shapes it copied."""

    def __init__(self, device, number=0):
        super().__init__(device, number)
        self.copied = []

    def copy(self, destination, source):
        self.copied.append(source.shape)
        super().copy(destination, source)


def offload_counting(monkeypatch, **options):
    monkeypatch.setattr(cuda, "open_lanes", lambda device, streams: [Counting(device)])
    return OffloadOps(device=EMULATOR, cpu=BlasOps(), **options)


def test_offload_moves_every_layers_input_filters_and_output(network, monkeypatch, rng):
    ops = offload_counting(monkeypatch)
    x = image(rng)
    network.forward(x, ops)
    copied = ops._lane.copied
    assert len(copied) == 3 * 18
    assert copied[0] == x.shape
    assert all(shape[2:] == (3, 3) for shape in copied[1::3])
    # Each output but the last of a level goes straight on to the next convolution.
    assert copied[2] == copied[3]


def test_offload_moves_filters_once_if_so_asked(network, monkeypatch, rng):
    ops = offload_counting(monkeypatch, weights="once")
    for _ in range(2):
        network.forward(image(rng), ops)
    assert len(ops._lane.copied) == 2 * 2 * 18 + 18


def test_filters_that_come_to_lie_where_others_lay_are_not_taken_for_them(rng):
    ops = OffloadOps(device=EMULATOR, cpu=BlasOps(), weights="once")
    x = image(rng)
    for _ in range(20):
        w = rng.standard_normal((2, 3, 3, 3), dtype=np.float32)
        truth = TWIN.conv2d(x.astype(float), w.astype(float), (1, 1))
        tolerance.assert_close(ops.conv2d(x, w, (1, 1)), truth, 27)
        del w


BAD = {
    "unknown kernel": (lambda: ResidentOps("magic", EMULATOR), "no algorithm 'magic'"),
    "CPU algorithm": (
        lambda: ResidentOps("cpu-blas", EMULATOR),
        "cpu-blas is no kernel that convolves NCHW",
    ),
    "offload, CPU algorithm": (lambda: OffloadOps("cpu-blas", EMULATOR), "cpu-blas is no kernel"),
    "another layout": (lambda: ResidentOps("conv2d_fprop_8_mma", EMULATOR), "no kernel that"),
    "a device by name": (lambda: ResidentOps("auto", "gpu"), "device must be a Device, such as"),
    "on the CPU": (lambda: ResidentOps(device=CPU), "ResidentOps: this machine's CPU runs no"),
    "weights": (lambda: OffloadOps(device=EMULATOR, weights="never"), "weights is 'never'"),
    "memory": (lambda: OffloadOps(device=EMULATOR, memory="warm"), "'pageable' or 'pinned'"),
    "no window": (lambda: cuda.launch_max_pool2d((1, 1, 1, 9)), "1 x 9 has no window"),
    "huge plane": (lambda: cuda.launch_upsample_bilinear((1, 1, 2**14, 2**15)), "cut the image"),
    "huge transposed plane": (
        lambda: cuda.launch_conv_transpose2d((1, 1, 2**14, 2**15), (1, 1, 2, 2)),
        "cut the image",
    ),
    "huge pooling": (lambda: cuda.launch_max_pool2d((1, 1, 2**16, 2**15)), "cut the image"),
    "windows on padding": (
        lambda: cuda.launch_max_pool2d((1, 1, 9, 9), 3, 2, 2),
        "padding=2; the first two must be at least 1, the padding at most half the window",
    ),
    "huge average": (lambda: cuda.launch_average_pool2d((1, 1, 2**14, 2**15), 7), "cut the image"),
    "huge average batch": (lambda: cuda.launch_average_pool2d((2**31, 9, 1, 1)), "cut the batch"),
    "huge sum": (lambda: cuda.launch_add(2**42), "cut the batch"),
    "huge batch": (lambda: cuda.launch_batch_norm((2**22, 1024, 1, 1), 1e-5), "cut the batch"),
    "huge array": (lambda: cuda.launch_relu(2**42), "cut the batch"),
    "huge transposed": (
        lambda: cuda.launch_conv_transpose2d((2**31, 1, 8, 8), (1, 64, 2, 2)),
        "cut the batch",
    ),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_calls_are_refused_in_words(title):
    do, message = BAD[title]
    with pytest.raises((TypeError, ValueError), match=message):
        do()


@pytest.mark.parametrize(
    ("launch", "blocks"),
    [
        # Whole blocks of 1,024 values, and of 64 pixels times 16 filters of 4 taps; one more.
        (cuda.launch_relu(3 * 1024), 3),
        (cuda.launch_relu(3 * 1024 + 1), 4),
        (cuda.launch_batch_norm((2, 3, 32, 32), 1e-5), 6),
        (cuda.launch_batch_norm((2, 3, 25, 41), 1e-5), 12),
        (cuda.launch_max_pool2d((2, 3, 65, 64)), 6),
        (cuda.launch_max_pool2d((2, 3, 65, 64), 3, 1, 1), 2 * 3 * 5),
        (cuda.launch_average_pool2d((2, 3, 9, 9)), 1),
        (cuda.launch_average_pool2d((2, 3, 9, 9), 2), 3),
        (cuda.launch_add(3 * 1024 + 1), 4),
        (cuda.launch_conv_transpose2d((2, 3, 8, 16), (3, 32, 2, 2)), 8),
        (cuda.launch_conv_transpose2d((1, 3, 5, 13), (3, 17, 2, 2)), 4),
        (cuda.launch_upsample_bilinear((2, 3, 16, 16)), 6),
        (cuda.launch_pad_concat((2, 3, 32, 32), (2, 1, 31, 30)), 8),
        # The largest plane that is taken.
        (cuda.launch_max_pool2d((1, 1, 2**16, 2**15 - 1)), 2**15 * (2**14 - 1) // 1024),
    ],
)
def test_a_grid_is_as_large_as_it_must_be(launch, blocks):
    assert launch.grid == (blocks,)
    assert launch.threads == bound(launch)


@pytest.mark.skipif(bool(device.devices()), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("execution", [ResidentOps, OffloadOps])
def test_a_gpu_that_is_not_there_is_refused_in_words(execution):
    with pytest.raises(RuntimeError, match=f"{execution.__name__} needs a GPU: "):
        execution()


# ---- on a GPU ------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.parametrize(("method", "shape"), FITTING)
def test_kernels_on_the_gpu_agree_with_their_twins_and_with_the_emulator(
    method, shape, poisoned, rng
):
    state = rng.bit_generator.state
    on_gpu = agree(ResidentOps(), method, shape, rng)
    rng.bit_generator.state = state
    on_emulator = agree(ResidentOps(device=EMULATOR), method, shape, rng)
    # For a linear layer a GPU may have a better kernel than the emulator runs.
    if method != "linear":
        np.testing.assert_array_equal(on_gpu, on_emulator)


@pytest.mark.gpu
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("shape", [(2, 64, 128, 191), (3, 256, 16, 23), (1, 1024, 8, 11)])
def test_kernels_on_the_gpu_agree_at_the_sizes_of_unet(method, shape, poisoned, rng):
    agree(ResidentOps(), method, shape, rng)


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_the_gpu():
    """3 x 2^30 values: an offset of 32 bits wraps round; zeros but for the last pixel of all."""
    ops = ResidentOps()
    if ops.device.memory_bytes < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    xp = device.array_module(ops.device)
    n, c, h, w = 3, 1024, 1024, 1024
    x = xp.zeros((n, c, h, w), xp.float32)
    x[-1, -1, -1, -1] = 3
    one, two = (xp.full(c, value, xp.float32) for value in (1, 2))
    normed = ops.relu(ops.batch_norm(x, two, one, one, one, eps=0.0))
    assert normed[-1, -1, -1, -1].item() == 5
    assert normed[-1, -1, -1, -2].item() == 0
    pooled = ops.max_pool2d(normed)
    assert [v.item() for v in (pooled[-1, -1, -1, -1], pooled[-1, -1, -1, -2])] == [5, 0]
    joined = ops.pad_concat(normed, pooled[:, -1:].copy())
    assert [v.item() for v in (joined[-1, -1, -257, -257], joined[-1, -1, -1, -1])] == [5, 0]
    assert joined[-1, -2, -1, -1].item() == 5
    del x, normed, joined
    weights = xp.ones((c, c, 2, 2), xp.float32)
    spread = ops.conv_transpose2d(pooled, weights, xp.zeros(c, xp.float32))
    assert spread.shape == (n, c, h, w)
    assert [v.item() for v in (spread[-1, -1, -1, -1], spread[-1, -1, -1, -3])] == [5, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 128, 191), (3, 3, 45, 70)])
def test_a_whole_unet_on_the_gpu_agrees_with_the_twin(shape, bilinear, rng):
    network = UNet.initialised(3, bilinear=bilinear)
    network.randomise_statistics(4)
    x = rng.standard_normal(shape, dtype=np.float32)
    truth = network.forward(x, TWIN)
    executions = [ResidentOps(name) for name in RUNGS]
    results = [network.forward(x, ops) for ops in executions]
    for result in results:
        tolerance.assert_close(result, truth, *network.terms())
        np.testing.assert_array_equal(result, results[0])
    for weights, memory in (("each call", "pageable"), ("once", "pinned")):
        ops = OffloadOps(cpu=BlasOps(), weights=weights, memory=memory)
        for _ in range(2):
            tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


@pytest.mark.gpu
def test_resident_never_waits_for_the_device(rng):
    """The host is back long before the device is done: nothing inside waits."""
    import time

    network = UNet.initialised(3)
    ops = ResidentOps("conv2d_fprop_1_naive")
    x = ops.to_device(rng.standard_normal((4, 3, 128, 191), dtype=np.float32))
    network.apply(x, ops)
    ops.synchronise()
    start = time.perf_counter()
    network.apply(x, ops)
    issued = time.perf_counter() - start
    ops.synchronise()
    assert issued < 0.5 * (time.perf_counter() - start)


@pytest.mark.gpu
def test_every_gpu_computes_the_same_bits(rng):
    x = rng.standard_normal((1, 3, 64, 95), dtype=np.float32)
    network = UNet.initialised(5)
    results = [network.forward(x, ResidentOps(device=gpu)) for gpu in device.devices()]
    results += [
        network.forward(x, OffloadOps(device=gpu, cpu=BlasOps(1))) for gpu in device.devices()
    ]
    count = len(device.devices())
    for result in results[1:count]:
        np.testing.assert_array_equal(result, results[0])
    for result in results[count + 1 :]:
        np.testing.assert_array_equal(result, results[count])
