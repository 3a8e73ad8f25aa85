# SPDX-License-Identifier: MIT
"""The instructions of ``kernels/hopper.cuh`` on the emulator: what they do, and their misuse."""

import itertools
import re

import numpy as np
import pytest

from convstudy import emulator, paths
from convstudy.device import EMULATOR
from convstudy.problem import BFLOAT16
from convstudy.tensor_map import TensorMap

F32, I32 = np.float32, np.int32
HOPPER = (paths.KERNELS / "hopper.cuh").read_text()
# Those need several blocks that run at the same time.
OF_CLUSTERS = {
    "cluster_rank",
    "cluster_arrive",
    "cluster_wait",
    "address_in",
    "barrier_arrive_in",
} | {*("barrier_wait_cluster", "store_in_block", "shared_address")}
ROOM = """
extern __shared__ __align__(1024) unsigned char room[];
"""


def kernel(body, parameters, **options):
    text = f'{HOPPER}{ROOM}\nextern "C" __global__ void k({parameters})\n{{{body}}}\n'
    return emulator.load(text, "k", **options)


def bits(rng, shape, dtype):
    """Return numbers that the operands of a product hold exactly."""
    x = rng.standard_normal(shape).astype(F32)
    if dtype is BFLOAT16:
        return x.astype(BFLOAT16)
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(F32)


def test_the_emulator_has_every_instruction_but_those_of_clusters():
    pattern = r"^ *(?:__device__ )?__forceinline__ \w+ (\w+)\("
    emulated = (paths.PACKAGE / "emulator" / "hopper_cpu.h").read_text()
    assert set(re.findall(pattern, HOPPER, re.M)) - set(re.findall(pattern, emulated, re.M)) == (
        OF_CLUSTERS
    )


# ---- copies --------------------------------------------------------------------------------------
COPY = """
    uint64* barrier = (uint64*)(room + bytes);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(barrier, bytes);
        CALL;
    }
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x) {
        const int moved = i / 8 * 8 + (i % 8 ^ i / 8 % 8);
        to[i] = ((const uint4*)room)[moved];
    }
"""
OF_COPY = (
    "const __grid_constant__ TensorMap map, uint4* to, int bytes, "
    "int x, int y, int z, int u, int s, int r"
)
BOX = "load_box(room, map, barrier, x, y)"
CALLS = {
    2: BOX,
    3: "load_box(room, map, barrier, x, y, z)",
    4: "load_box(room, map, barrier, x, y, z, u)",
    6: "load_im2col(room, map, barrier, x, y, z, u, s, r)",
}


def copy(view, array, lines, places=(0, 0), call=None, checked=True, body=COPY):
    """Return what arrives from `places` on (the innermost first), line by line, and the counts."""
    result = np.zeros((lines, 128 // array.itemsize), array.dtype)
    defines = [("CALL", CALLS[len(places)] if call is None else call)]
    numbers = map(I32, (128 * lines, *places, *[0] * (6 - len(places))))
    load = kernel(body, OF_COPY, defines=defines, checked=checked)
    arguments = (view.of(array, EMULATOR), result, *numbers)
    return result, load(1, 64, arguments, shared_bytes=128 * lines + 8)


def window(array, start, shape):
    """Return a part of an array, zeros where it lies outside; the outermost first."""
    found = np.zeros(shape, array.dtype)
    for place in np.ndindex(*shape):
        at = tuple(np.add(start, place))
        if all(0 <= i < size for i, size in zip(at, array.shape, strict=True)):
            found[place] = array[at]
    return found


BOXES = {
    "inside": ((3, 5, 9, 64), (1, 2, 4, 32), (1, 2, 3, 32)),
    "before the start": ((2, 5, 4, 32), (1, 3, 3, 32), (1, -1, -2, 0)),
    "past the end": ((2, 5, 4, 36), (1, 3, 3, 32), (1, 4, 2, 8)),
    "an image that is not there": ((2, 5, 4, 32), (1, 3, 3, 32), (2, 0, 0, 0)),
    "three dimensions": ((7, 3, 36), (3, 2, 32), (5, -1, -4)),
    "two dimensions": ((70, 36), (50, 32), (30, 12)),
}


@pytest.mark.parametrize(
    ("title", "checked"), [*((title, True) for title in BOXES), ("past the end", False)]
)
def test_a_box_arrives_with_zeros_where_it_lies_outside(title, checked, rng):
    shape, box, start = BOXES[title]
    x = rng.standard_normal(shape).astype(F32)
    lines = int(np.prod(box[:-1]))
    view = TensorMap("float32", shape[::-1], box[::-1])
    y, counts = copy(view, x, lines, start[::-1], checked=checked)
    np.testing.assert_array_equal(y, window(x, start, box).reshape(lines, 32))
    if checked:
        inside = window(np.ones_like(x), start, box).sum()
        assert counts.global_load_bytes == 4 * inside
        assert (counts.shared_stores, counts.shared_store_bytes) == (lines, 128 * lines)


def test_chunks_of_a_line_lie_exchanged():
    x = np.arange(256, dtype=I32).reshape(8, 32)
    y, _ = copy(TensorMap("float32", (32, 8), (32, 8)), x, 8, body=COPY.replace("moved]", "i]"))
    line, chunk = np.indices((8, 8))
    np.testing.assert_array_equal(y[:, ::4], 32 * line + 4 * (chunk ^ line))


def test_numbers_are_rounded_to_tf32_on_their_way():
    x = np.array([1 + 2.0**-11, 1 + 2.0**-12, -1 - 3 * 2.0**-12, np.inf, np.nan], F32)
    x = np.append(x, np.zeros(27, F32)).reshape(1, 32)
    y, _ = copy(TensorMap("tf32", (32, 1), (32, 1)), x, 1)
    np.testing.assert_array_equal(y[0, :5], [1 + 2.0**-10, 1, -1 - 2.0**-10, np.inf, np.nan])


@pytest.mark.parametrize("dtype", [F32, BFLOAT16])
@pytest.mark.parametrize(
    ("stride", "padding", "filters"), [((1, 1), (1, 1), (3, 3)), ((2, 3), (2, 0), (4, 2))]
)
def test_a_run_of_pixels_goes_on_in_the_next_row_and_image(stride, padding, filters, dtype, rng):
    n, h, w, channels = 3, 5, 7, 256 // np.dtype(dtype).itemsize
    x = rng.standard_normal((n, h, w, channels)).astype(dtype)
    sizes = [
        (size + 2 * pad - taps) // step + 1
        for size, pad, taps, step in zip((h, w), padding, filters, stride, strict=True)
    ]
    lower = tuple(-pad for pad in padding)
    upper = [
        (count - 1) * step + low - (size - 1)
        for count, step, low, size in zip(sizes, stride, lower, (h, w), strict=True)
    ]
    pixels = [(i, *p) for i in range(n) for p in itertools.product(*map(range, sizes))]
    first, lines, (r, s) = len(pixels) // 4, len(pixels), (filters[0] - 1, 1)
    view = TensorMap(
        "float32" if dtype is F32 else "bfloat16",
        (channels, w, h, n),
        (channels // 2, lines),
        lower[::-1],
        tuple(upper[::-1]),
        stride[::-1],
    )

    def start(pixel):
        i, p, q = pixel
        return i, p * stride[0] + lower[0], q * stride[1] + lower[1]

    i, p, q = start(pixels[first])
    y, _ = copy(view, x, lines, (channels // 2, q, p, i, s, r))
    expected = np.zeros_like(y)
    for line, pixel in enumerate(pixels[first:]):
        i, p, q = start(pixel)
        place = (i, p + r, q + s, channels // 2)
        expected[line] = window(x, place, (1, 1, 1, channels // 2))
    np.testing.assert_array_equal(y, expected)
    assert (y[-first:] == 0).all()


COPY_OF_X = TensorMap("float32", (32, 16), (32, 8))
X = np.ones((16, 32), F32)


def test_a_destination_within_a_kilobyte_is_refused():
    with pytest.raises(emulator.MisalignedAccess, match="fills 1024 bytes .* byte 128 of dynamic"):
        copy(COPY_OF_X, X, 16, call=BOX.replace("room", "room + 128"))


def test_a_destination_beyond_shared_memory_is_refused():
    with pytest.raises(emulator.OutOfBounds):
        copy(COPY_OF_X, X, 8, call=BOX.replace("room", "room + 1024"))


@pytest.mark.parametrize(
    ("view", "places", "message"),
    [
        (COPY_OF_X, (0,) * 3, "copies by a map of rank 2 at 3 coordinates"),
        (COPY_OF_X, (0,) * 6, "copies by a map of rank 2 at 4 coordinates"),
        (TensorMap("float32", (32, 4, 4, 1), (32, 2)), (0,) * 6, "over pixels by a map of boxes"),
        (
            TensorMap("float32", (32, 4, 4, 1), (32, 16), (0, 0), (0, 0)),
            (0,) * 4,
            "copies a box by a map of pixels",
        ),
        (TensorMap("float32", (32, 16), (16, 8)), (0, 0), "lines of 64 bytes; they must be 128"),
    ],
)
def test_a_map_of_another_kind_is_refused(view, places, message):
    with pytest.raises(emulator.EmulatorFault, match=message):
        copy(view, X, 16, places)


def test_a_map_of_more_than_the_array_is_refused():
    with pytest.raises(ValueError, match="reach 2048 bytes far; the array has 1920"):
        COPY_OF_X.of(X[:15], EMULATOR)


# ---- barriers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("call", ["", BOX], ids=["no copy", "half of them"])
def test_a_wait_for_bytes_that_do_not_come_is_reported(call, checked):
    with pytest.raises(emulator.Deadlock, match="a phase that never comes: .* byte 2048 of dyn"):
        copy(COPY_OF_X, X, 16, call=call, checked=checked)


def test_a_copy_to_a_barrier_that_the_tma_does_not_know_is_reported():
    with pytest.raises(emulator.EmulatorFault, match="barrier_init_done"):
        copy(COPY_OF_X, X, 8, body=COPY.replace("barrier_init_done();", ""))


def test_a_barrier_that_nobody_initialised_is_reported():
    with pytest.raises(emulator.UninitialisedShared):
        kernel("barrier_wait((uint64*)room, 1);", "int i")(1, 32, (I32(0),), shared_bytes=8)


MEETING = """
    uint64* barrier = (uint64*)room;
    if (threadIdx.x == 0) barrier_init(barrier, COUNT);
    __syncthreads();
    int* told = (int*)(barrier + 1);
    if (threadIdx.x < 32) {
        told[threadIdx.x] = threadIdx.x;
        barrier_arrive(barrier);
    } else {
        barrier_wait(barrier, 0);
        y[threadIdx.x - 32] = told[63 - threadIdx.x];
    }
"""


@pytest.mark.parametrize("checked", [True, False])
def test_who_waits_sees_what_all_did_before_they_arrived(checked):
    y = np.zeros(32, I32)
    load = kernel(MEETING, "int* y", defines=[("COUNT", 32)], checked=checked)
    load(1, 64, (y,), shared_bytes=8 + 128)
    np.testing.assert_array_equal(y, np.arange(32)[::-1])


FAULTS_OF_A_MEETING = {
    "fewer arrivals than threads that write": ("COUNT", "31", emulator.SharedRace, "to order"),
    "more": ("COUNT", "33", emulator.Deadlock, "a phase that never comes"),
    "nobody waits": ("barrier_wait(barrier, 0)", "", emulator.SharedRace, "to order the two"),
    "a wait for the phase after": (
        "barrier_wait(barrier, 0)",
        "barrier_wait(barrier, 1)",
        emulator.Deadlock,
        "a phase that never comes",
    ),
    "a write after the arrival": (
        "barrier_arrive(barrier);",
        "barrier_arrive(barrier); told[threadIdx.x]++;",
        emulator.SharedRace,
        "to order the two",
    ),
    "not all know that it is initialised": (
        "__syncthreads();",
        "",
        emulator.SharedRace,
        "to order the two",
    ),
    "initialised twice": (
        "barrier_init(barrier, COUNT);",
        "{ barrier_init(barrier, 32); barrier_init(barrier, 32); }",
        emulator.EmulatorFault,
        "initialises a barrier again",
    ),
    "all have arrived, and bytes are missing": (
        "__syncthreads();",
        "__syncthreads(); if (threadIdx.x == 0) barrier_expect(barrier, 16);",
        emulator.EmulatorFault,
        "arrives at a barrier at which all 32 have arrived",
    ),
}


@pytest.mark.parametrize("title", FAULTS_OF_A_MEETING)
def test_a_barrier_used_wrongly_is_reported(title):
    old, new, error, message = FAULTS_OF_A_MEETING[title]
    body = MEETING.replace(old, new).replace("COUNT", "32")
    with pytest.raises(error, match=message):
        kernel(body, "int* y")(1, 64, (np.zeros(32, I32),), shared_bytes=8 + 128)


PHASES = """
    uint64 *full = (uint64*)(room + 2048), *empty = full + 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 2);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x == 64)
        for (int i = 0; i < n; ++i) {
            barrier_wait(empty + i % 2, (i / 2 & 1) ^ 1);
            barrier_expect(full + i % 2, 1024);
            load_box(room + i % 2 * 1024, map, full + i % 2, 0, 8 * i);
        }
    if (threadIdx.x < 64)
        for (int i = 0; i < n; ++i) {
            barrier_wait(full + i % 2, i / 2 & 1);
            y[i * 64 + threadIdx.x] = ((const uint4*)(room + i % 2 * 1024))[threadIdx.x];
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(empty + i % 2);
        }
"""


OF_PHASES = "const __grid_constant__ TensorMap map, uint4* y, int n"


def go_round(body, checked=True):
    """Return what consumers saw of seven boxes in two stages, and what they should have."""
    x = np.arange(7 * 256, dtype=F32).reshape(56, 32)
    y = np.zeros_like(x)
    view = TensorMap("float32", (32, 56), (32, 8)).of(x, EMULATOR)
    load = kernel(body, OF_PHASES, checked=checked)
    load(1, 96, (view, y, I32(7)), shared_bytes=2048 + 32)
    line, chunk = np.indices((56, 8))
    return y[:, ::4], 32 * line + 4 * (chunk ^ line % 8)


@pytest.mark.parametrize("checked", [True, False])
def test_stages_go_round_between_a_producer_and_its_consumers(checked):
    np.testing.assert_array_equal(*go_round(PHASES, checked))


FAULTS_OF_PHASES = {
    "a stage read before it is full": (
        "barrier_wait(full + i % 2, i / 2 & 1);",
        "",
        (emulator.SharedRace, emulator.UninitialisedShared),
        "reads .* of dynamic shared memory",
    ),
    "a stage read when another is full": (
        "barrier_wait(full + i % 2, i / 2 & 1)",
        "barrier_wait(full + (i + 1) % 2, (i + 1) / 2 & 1)",
        emulator.SharedRace,
        "reads .* fills it .* wait at a barrier of phases between",
    ),
    "a stage overwritten before it is empty": (
        "barrier_wait(empty + i % 2, (i / 2 & 1) ^ 1);",
        "",
        emulator.SharedRace,
        "fills .* with nothing to order the two",
    ),
    "a warp that does not wait for its lanes": (
        "__syncwarp();",
        "",
        emulator.SharedRace,
        "fills .* reads it",
    ),
    "a warp that arrives for the other": (
        "if (threadIdx.x % 32 == 0) barrier_arrive(empty + i % 2);",
        "if (threadIdx.x == 0) barrier_arrive(empty + i % 2), barrier_arrive(empty + i % 2);",
        emulator.SharedRace,
        "fills .* reads it",
    ),
    "the same parity every round": (
        "i / 2 & 1);",
        "0);",
        emulator.Deadlock,
        "a phase that never comes",
    ),
    "fewer bytes than come": (
        "i % 2, 1024);",
        "i % 2, 512);",
        emulator.Deadlock,
        "a phase that never comes",
    ),
}


@pytest.mark.parametrize("title", FAULTS_OF_PHASES)
def test_stages_handed_over_wrongly_are_reported(title):
    old, new, error, message = FAULTS_OF_PHASES[title]
    assert old in PHASES
    with pytest.raises(error, match=message):
        go_round(PHASES.replace(old, new))


@pytest.mark.parametrize("waits", [True, False])
def test_a_block_barrier_passes_on_what_is_known_of_copies_and_no_more(waits):
    wait = "if (threadIdx.x == 0) barrier_wait(barrier, 0);" if waits else ""
    body = COPY.replace("barrier_wait(barrier, 0);", f"{wait} __syncthreads();")
    if waits:
        copy(COPY_OF_X, X, 8, body=body)
    else:
        with pytest.raises(emulator.SharedRace, match="reads byte 0 .* fills it"):
            copy(COPY_OF_X, X, 8, body=body)


# ---- products ------------------------------------------------------------------------------------
PRODUCT = """
    const int t = threadIdx.x, g = t / 4 % 8, warp = t / 32;
    unsigned char *a = room, *b = room + 64 * 128;
    uint64* barrier = (uint64*)(b + COLUMNS * 128);
    float d[COLUMNS / 2];
    for (int i = 0; i < COLUMNS / 2; ++i)
        d[i] = y[(warp * 16 + g + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + t % 4 * 2 + i % 2];
    if (t == 0) {
        barrier_init(barrier, 1);
        barrier_init_done();
        barrier_expect(barrier, (64 + COLUMNS) * 128);
        load_box(a, left, barrier, 0, 0);
        for (int i = 0; i < (ACROSS_B ? COLUMNS : 1); i += 64)
            load_box(b + i * 128, right, barrier, i, 0);
    }
    __syncthreads();
    barrier_wait(barrier, 0);
    const uint64 da = describe(a, 1024, 64 * 128), db = describe(b, 1024, 64 * 128);
    unsigned fa[4][4];  // of each product, which reads them until it is waited for
    keep(d);
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        MULTIPLY;
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep(d);
    for (int i = 0; i < COLUMNS / 2; ++i)
        y[(warp * 16 + g + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
"""
FROM_SHARED = "wgmma_tf32(d, move(da, k * 32), move(db, k * 32), ADD || k)"
FROM_REGISTERS = """
    for (int i = 0; i < 4; ++i) {
        const int byte = (warp * 16 + g + i % 2 * 8) * 128 + (k * 8 + t % 4 + i / 2 * 4) * 4;
        fa[k][i] = *(const unsigned*)(a + (byte ^ (byte >> 7 & 7) << 4));
    }
    wgmma_tf32(d, fa[k], move(db, k * 32), ADD || k)
"""
OF_BF16 = """
    wgmma_bf16<ACROSS_A, ACROSS_B>(d, move(da, k * (ACROSS_A ? 2048 : 32)),
                                   move(db, k * (ACROSS_B ? 2048 : 32)), ADD || k)
"""


def operand(rng, size, dtype, across):
    """Return an operand, `size` lines along depth, and how the TMA sees it."""
    depth = 128 // np.dtype(dtype).itemsize
    x = bits(rng, (size, depth), dtype)
    lies = np.ascontiguousarray(x.T) if across else x
    box = (64, depth) if across else (depth, size)
    name = "bfloat16" if dtype is BFLOAT16 else "float32"
    return x.astype(float), lies, TensorMap(name, lies.shape[::-1], box)


def product(
    rng, columns=64, multiply=FROM_SHARED, add=0, across=(0, 0), d=None, checked=True, body=PRODUCT
):
    """Multiply; return the result, the float64 one, the size of the sums, and the counts."""
    dtype = BFLOAT16 if multiply == OF_BF16 else F32
    a, a_lies, a_map = operand(rng, 64, dtype, across[0])
    b, b_lies, b_map = operand(rng, columns, dtype, across[1])
    d = rng.standard_normal((64, columns)).astype(F32) if d is None else d.copy()
    exact = a @ b.T + (d if add else 0)
    defines = {
        "COLUMNS": columns,
        "ADD": add,
        "ACROSS_A": across[0],
        "ACROSS_B": across[1],
        "MULTIPLY": " ".join(multiply.split()),
    }
    parameters = (
        "const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap right, float* y"
    )
    load = kernel(body, parameters, defines=list(defines.items()), checked=checked)
    maps = a_map.of(a_lies, EMULATOR), b_map.of(b_lies, EMULATOR)
    counts = load(1, 128, (*maps, d), shared_bytes=(64 + columns) * 128 + 8)
    return d, exact, np.abs(a) @ np.abs(b).T + 1, counts


def agree(d, exact, scale):
    # Four times what does not fit is dropped, of sums that may be larger in between.
    assert (np.abs(d - exact) <= 2.0**-21 * scale).all()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(("columns", "add"), [(64, 0), (128, 1), (256, 0)])
@pytest.mark.parametrize("multiply", [FROM_SHARED, FROM_REGISTERS], ids=["shared", "registers"])
def test_a_warpgroup_multiplies_tf32(multiply, columns, add, checked, rng):
    *result, counts = product(rng, columns, multiply, add, checked=checked)
    agree(*result)
    if checked and multiply == FROM_SHARED:
        assert counts.shared_load_bytes == (64 + columns) * 128


@pytest.mark.parametrize("columns", [64, 256])
@pytest.mark.parametrize("across", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_warpgroup_multiplies_bf16(columns, across, rng):
    *result, counts = product(rng, columns, OF_BF16, 1, across)
    agree(*result)
    assert counts.shared_load_bytes == (64 + columns) * 128


def test_tensor_cores_do_not_see_what_fp32_has_beyond_tf32(rng, monkeypatch):
    monkeypatch.setitem(globals(), "bits", lambda rng, shape, _: rng.random(shape, F32))
    d, exact, _, _ = product(rng)
    assert (d < exact * (1 - 1e-4)).all()


def test_products_are_there_once_they_have_been_waited_for(rng):
    late = PRODUCT.replace("wgmma_wait<0>()", "wgmma_wait<1>()")
    d = rng.standard_normal((64, 64)).astype(F32)
    np.testing.assert_array_equal(product(rng, add=1, d=d, body=late)[0], d)


def test_what_threads_have_written_is_multiplied_behind_their_fence(rng):
    """Each turns the signs of a line, and says so before the barrier."""
    turn = """
        if (t < 64) for (int i = 0; i < 32; ++i) ((float*)a)[t * 32 + i] *= -1;
        shared_fence();
        __syncthreads();
        keep(d);
    """
    d, exact, scale, _ = product(rng, body=PRODUCT.replace("    keep(d);", turn, 1))
    agree(d, -exact, scale)


FAULTS_OF_A_PRODUCT = {
    "beyond shared memory": (
        "db = describe(b, 1024",
        "db = describe(b, 2048",
        emulator.OutOfBounds,
        "dynamic shared memory",
    ),
    "operands that have not come": (
        "    barrier_wait(barrier, 0);",
        "",
        emulator.SharedRace,
        "reads .* fills it",
    ),
    "no fence": (
        "wgmma_fence();",
        "",
        emulator.EmulatorFault,
        r"multiplies with no wgmma_fence\(\)",
    ),
    "operands that a thread wrote": (
        "    keep(d);",
        "if (t == 0) *(float*)a = 0; __syncthreads(); keep(d);",
        emulator.EmulatorFault,
        r"multiplies what a thread wrote .* no shared_fence\(\)",
    ),
    "operands that a thread wrote after its fence": (
        "    keep(d);",
        "if (t == 0) shared_fence(), *(float*)a = 0; __syncthreads(); keep(d);",
        emulator.EmulatorFault,
        r"multiplies what a thread wrote .* no shared_fence\(\)",
    ),
    "operands that a thread writes with no barrier": (
        "    keep(d);",
        "if (t == 40) *(float*)a = 0, shared_fence(); keep(d);",
        emulator.SharedRace,
        "writes .* reads it",
    ),
    "operands overwritten while they are multiplied": (
        "wgmma_commit();",
        "wgmma_commit(); __syncthreads();"
        "if (t == 0) load_box(a, left, barrier, 0, 0);"
        "__syncthreads();",
        emulator.SharedRace,
        "reads .* fills it",
    ),
}


@pytest.mark.parametrize("title", FAULTS_OF_A_PRODUCT)
def test_a_product_made_wrongly_is_reported(title, rng):
    old, new, error, message = FAULTS_OF_A_PRODUCT[title]
    assert old in PRODUCT
    with pytest.raises(error, match=message):
        product(rng, body=PRODUCT.replace(old, new, 1))


# ---- flags from block to block -------------------------------------------------------------------
HANDED = """
    if (blockIdx.x == WRITER) {
        if (threadIdx.x < 32) numbers[threadIdx.x] = threadIdx.x + 1.0f;
        BETWEEN
        if (threadIdx.x == 0) publish((unsigned*)flag);
        AFTER
    } else if (threadIdx.x < 32) {
        WAIT
        out[threadIdx.x] = numbers[31 - threadIdx.x];
    }
"""
RIGHT = {
    "WRITER": 0,
    "BETWEEN": "__syncwarp();",
    "AFTER": "",
    "WAIT": "await((const unsigned*)flag);",
}


def handed_on(checked=True, **changed):
    defines = list({**RIGHT, **changed}.items())
    parameters = "float* numbers, float* flag, float* out"
    load = kernel(HANDED, parameters, defines=defines, checked=checked)
    numbers, flag, out = np.full(32, np.nan, F32), np.zeros(1, F32), np.full(32, np.nan, F32)
    load(2, 64, (numbers, flag, out))
    return out, flag.view(np.uint32)[0]


@pytest.mark.parametrize("checked", [True, False])
def test_a_block_waits_for_what_one_before_it_has_left(checked):
    out, flag = handed_on(checked)
    np.testing.assert_array_equal(out, np.arange(32, 0, -1))
    assert flag == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"BETWEEN": ""},  # what other lanes wrote is not published
        {"AFTER": "if (threadIdx.x < 32) numbers[threadIdx.x] = 0.0f;"},
        {"WAIT": ""},
    ],
)
def test_what_was_not_handed_on_is_a_race(changed):
    with pytest.raises(emulator.GlobalRace):
        handed_on(**changed)


def test_a_flag_that_no_block_before_sets_is_not_waited_for():
    with pytest.raises(emulator.EmulatorFault, match="waits for a flag that no block before it"):
        handed_on(WRITER=1)
