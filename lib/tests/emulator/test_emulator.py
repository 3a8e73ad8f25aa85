# SPDX-License-Identifier: MIT
"""The emulator: right answers, exact counts, and every fault, planted and mended.

Each planted fault has a twin that differs by the mend alone (`#if BAD`) and must pass: a checker
that cries at everything would fail here, as would one that sleeps.
"""

import concurrent.futures
import dataclasses
import subprocess
import sys
import uuid

import numpy as np
import pytest

from convstudy import emulator
from convstudy.emulator import build
from convstudy.emulator.loops import find_loops

F32, I32 = np.float32, np.int32


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)


def kernel(body, parameters="const float* x, float* y, int n", head="", **options):
    """Load a kernel `k` of this body."""
    text = f'{head}\nextern "C" __global__ void k({parameters})\n{{{body}}}\n'
    return emulator.load(text, "k", **options)


# ---- faults --------------------------------------------------------------------------------------
# Body, the class of its fault, threads of a block, blocks. The line with HERE is the fault's.
FAULTS = {
    "write past the end": (
        """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        #if BAD
        if (i <= n)
        #else
        if (i < n)
        #endif
            y[i] = 1.0f;  // HERE
        """,
        (emulator.OutOfBounds, 64, 5),
    ),
    "read before the start": (
        """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        float left = 0.0f;
        #if BAD
        left = x[i - 1];  // HERE
        #else
        if (i > 0) left = x[i - 1];
        #endif
        y[i] = left;
        """,
        (emulator.OutOfBounds, 64, 4),
    ),
    "index of a shared array": (
        """
        __shared__ float tile[8][9];
        int t = threadIdx.x;
        tile[t / 8][t % 8] = x[t];
        __syncthreads();
        y[t] = tile[t / 8][t % 8 + BAD * 2 * (t == 63)];  // HERE
        """,
        (emulator.OutOfBounds, 64, 1),
    ),
    "pointer out of a shared array": (
        """
        __shared__ float tile[64];
        float* at = tile;
        at[threadIdx.x + BAD] = x[threadIdx.x];  // HERE
        """,
        (emulator.OutOfBounds, 64, 1),
    ),
    "dynamic shared memory not asked for": (
        """
        extern __shared__ float room[];
        room[threadIdx.x + BAD] = x[threadIdx.x];  // HERE
        """,
        (emulator.OutOfBounds, 64, 1),
    ),
    "index of a local array": (
        """
        float own[4] = {1.0f, 2.0f, 3.0f, 4.0f};
        float sum = 0.0f;
        for (int i = 0; i < 4 + BAD + 0 * n; i++)
            sum += own[(i * n) / n];  // HERE
        y[threadIdx.x] = sum;
        """,
        (emulator.OutOfBounds, 32, 1),
    ),
    "null pointer": (
        """
        const float* from = BAD ? nullptr : x;
        y[threadIdx.x] = from[threadIdx.x];  // HERE
        """,
        (emulator.OutOfBounds, 32, 1),
    ),
    "misaligned vector": (
        """
        float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + BAD);  // HERE
        y[threadIdx.x] = v.x + v.w;
        """,
        (emulator.MisalignedAccess, 32, 1),
    ),
    "no barrier after filling the tile": (
        """
        __shared__ float tile[64];
        int t = threadIdx.x;
        tile[t] = x[t];  // HERE
        #if !BAD
        __syncthreads();
        #endif
        y[t] = tile[63 - t];
        """,
        (emulator.SharedRace, 64, 1),
    ),
    "no barrier before the next tile": (
        """
        __shared__ float tile[64];
        int t = threadIdx.x;
        float sum = 0.0f;
        for (int i = 0; i < 3; i++) {
            tile[t] = x[t + 64 * i];
            __syncthreads();
            sum += tile[t ^ 1];  // HERE
            #if !BAD
            __syncthreads();
            #endif
        }
        y[t] = sum;
        """,
        (emulator.SharedRace, 64, 1),
    ),
    "two threads write one shared word": (
        """
        __shared__ int last;
        if (threadIdx.x <= BAD) last = threadIdx.x;  // HERE
        __syncthreads();
        y[threadIdx.x] = last;
        """,
        (emulator.SharedRace, 32, 1),
    ),
    "no __syncwarp between neighbours": (
        """
        __shared__ float tile[64];
        int t = threadIdx.x;
        tile[t] = x[t];  // HERE
        #if !BAD
        __syncwarp();
        #endif
        y[t] = tile[t ^ 1];
        """,
        (emulator.SharedRace, 64, 1),
    ),
    "__syncwarp for another warp's data": (
        """
        __shared__ float tile[64];
        int t = threadIdx.x;
        tile[t] = x[t];
        __syncwarp();
        y[t] = tile[t ^ (BAD ? 32 : 1)];
        """,
        (emulator.SharedRace, 64, 1),
    ),
    "__syncwarp of too few lanes": (
        """
        __shared__ float tile[32];
        int t = threadIdx.x;
        tile[t] = x[t];
        __syncwarp(t < 16 ? 0x0000ffffu : 0xffff0000u);
        y[t] = tile[t ^ (BAD ? 16 : 8)];  // HERE
        """,
        (emulator.SharedRace, 32, 1),
    ),
    "plain reset of a shared counter": (
        """
        __shared__ int count;
        if (threadIdx.x == 0) count = 0;
        #if !BAD
        __syncthreads();
        #endif
        atomicAdd(&count, 1);
        __syncthreads();
        if (threadIdx.x == 0) y[0] = count;
        """,
        (emulator.SharedRace, 64, 1),
    ),
    "one byte of several that a thread wrote": (
        """
        __shared__ unsigned char tile[64];
        int t = threadIdx.x;
        tile[4 * t] = t;
        tile[4 * t + 1] = t;
        #if !BAD
        __syncwarp();
        #endif
        y[t] = tile[t / 2 * 8];  // HERE
        """,
        (emulator.SharedRace, 16, 1),
    ),
    "shared memory never written": (
        """
        __shared__ float tile[64];
        int t = threadIdx.x;
        if (t < 64 - BAD) tile[t] = x[t];
        __syncthreads();
        y[t] = tile[t];  // HERE
        """,
        (emulator.UninitialisedShared, 64, 1),
    ),
    "shared memory of an earlier block": (
        """
        __shared__ float tile[32];
        int t = threadIdx.x;
        if (!BAD || blockIdx.x == 0) tile[t] = x[t];
        __syncthreads();
        y[t + 32 * blockIdx.x] = tile[t];  // HERE
        """,
        (emulator.UninitialisedShared, 32, 2),
    ),
    "index read from memory never written": (
        """
        __shared__ int where[32];
        if (!BAD) where[threadIdx.x] = threadIdx.x;
        y[where[threadIdx.x]] = 1.0f;  // HERE
        """,
        (emulator.UninitialisedShared, 32, 1),
    ),
    "two threads write one element": (
        """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        y[BAD ? i / 2 : i] = i;  // HERE
        """,
        (emulator.GlobalRace, 32, 2),
    ),
    "two blocks write one element": (
        """
        y[threadIdx.x + (BAD ? 0 : 32 * blockIdx.x)] = 1.0f;  // HERE
        """,
        (emulator.GlobalRace, 32, 2),
    ),
    "a block reads what another wrote": (
        """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        y[i] = 1.0f;
        __syncthreads();
        y[i] += y[BAD ? threadIdx.x : i];  // HERE
        """,
        (emulator.GlobalRace, 32, 2),
    ),
    "a block writes what another read": (
        """
        float* from = const_cast<float*>(x);
        y[threadIdx.x + 32 * blockIdx.x] = from[threadIdx.x];
        if (BAD && blockIdx.x == 2) from[threadIdx.x] = 1.0f;  // HERE
        """,
        (emulator.GlobalRace, 32, 3),
    ),
    "no barrier between global write and read": (
        """
        int t = threadIdx.x;
        y[t] = x[t];
        #if !BAD
        __syncthreads();
        #endif
        float v = y[63 - t];
        __syncthreads();
        y[t] = v;
        """,
        (emulator.GlobalRace, 64, 1),
    ),
    "sum without an atomic": (
        """
        #if BAD
        y[0] += x[threadIdx.x];  // HERE
        #else
        atomicAdd(y, x[threadIdx.x]);
        #endif
        """,
        (emulator.GlobalRace, 32, 2),
    ),
    "return before a barrier": (
        """
        if (BAD && threadIdx.x >= 33) return;
        __syncthreads();  // HERE
        """,
        (emulator.DivergentBarrier, 64, 1),
    ),
    "two barriers for two halves": (
        """
        if (threadIdx.x < 33 || !BAD)
            __syncthreads();  // HERE
        else
            __syncthreads();
        """,
        (emulator.DivergentBarrier, 64, 1),
    ),
    "lanes that never come": (
        """
        int mine = threadIdx.x;
        if (!BAD || threadIdx.x % 32 < 20)
            mine = __shfl_xor_sync(0xffffffffu, mine, 1);  // HERE
        else
            __syncthreads();
        #if !BAD
        __syncthreads();
        #endif
        """,
        (emulator.Deadlock, 32, 1),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_its_twin_passes(name):
    body, (error, block, grid) = FAULTS[name]
    x, y = np.arange(256, dtype=F32), np.zeros(256, F32)
    arguments = (x, y, I32(256))

    with pytest.raises(error) as caught:
        kernel(body, defines=[("BAD", 1)])(grid, block, arguments, shared_bytes=256)
    assert type(caught.value) is error
    text = f"\n\n{{{body}"  # as `kernel` puts it together
    marked = [i for i, line in enumerate(text.splitlines(), 1) if "HERE" in line]
    lines = {caught.value.line, caught.value.other_line}
    assert not marked or marked[0] in lines
    assert f"kernel.cu:{caught.value.line}: k: thread" in str(caught.value)

    # The process, and this very kernel's memory, are whole after a launch that was abandoned.
    kernel(body, defines=[("BAD", 0)])(grid, block, arguments, shared_bytes=256)


def test_race_names_both_threads_their_lines_and_the_array():
    body = """
        __shared__ float tile[64];
        int t = threadIdx.x + 16 * threadIdx.y;
        tile[t] = x[t];
        y[t] = tile[t == 5 ? 40 : t];
    """
    race = kernel(body)
    with pytest.raises(emulator.SharedRace) as caught:
        race((2, 1), (16, 4), (np.zeros(64, F32), np.zeros(64, F32), I32(0)))
    fault = caught.value
    assert {(fault.line, fault.thread), (fault.other_line, fault.other_thread)} == {
        (6, (8, 2, 0)),
        (7, (5, 0, 0)),
    }
    assert fault.block == fault.other_block == (0, 0, 0)
    assert "byte 160 of shared array tile (256 bytes)" in str(fault)


def test_out_of_bounds_says_how_far_beyond_which_argument():
    beyond = kernel("y[n] = x[0];")
    y = np.zeros(10, F32)
    with pytest.raises(
        emulator.OutOfBounds, match=r"12 bytes past the end of argument 1 \(40 bytes"
    ):
        beyond(1, 1, (np.zeros(4, F32), y, I32(12)))
    with pytest.raises(emulator.OutOfBounds, match="4 bytes before the start of argument 1"):
        beyond(1, 1, (np.zeros(4, F32), y, I32(-1)))
    assert not y.any()  # caught before it happens


def test_neighbouring_bytes_of_one_word_are_no_race():
    swap = kernel(
        """
        __shared__ unsigned char tile[64];
        tile[threadIdx.x] = x[threadIdx.x];
        y[threadIdx.x] = tile[threadIdx.x] + 1;
        """,
        "const unsigned char* x, unsigned char* y",
    )
    x, y = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    swap(1, 64, (x, y))
    np.testing.assert_array_equal(y, x + 1)


def test_what_came_before_a_warp_barrier_is_ordered_byte_by_byte():
    body = """
        __shared__ unsigned char tile[4];
        if (threadIdx.x == 0) tile[0] = 7;
        __syncwarp();
        if (threadIdx.x == 0) tile[1] = 8;
        y[threadIdx.x] = tile[0];
    """
    y = np.zeros(32, F32)
    kernel(body)(1, 32, (y, y, I32(0)))
    assert (y == 7).all()


def test_barrier_faults_are_found_without_checking_too():
    early = kernel("if (threadIdx.x < 3) return;\n__syncthreads();", checked=False)
    with pytest.raises(emulator.DivergentBarrier, match=r"kernel\.cu:4: .* has returned"):
        early(64, 32, (np.zeros(1, F32), np.zeros(1, F32), I32(0)))


# ---- counts --------------------------------------------------------------------------------------
COPY = """
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i * n];
"""


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32), (0, 1)])
def test_sectors_of_a_strided_load(stride, sectors):
    x, y = np.arange(32 * 128, dtype=F32), np.zeros(128, F32)
    counts = kernel(COPY)(2, 64, (x, y, I32(stride)))
    np.testing.assert_array_equal(y, x[np.arange(128) * stride])
    assert counts == emulator.Counts(
        threads=128,
        blocks=2,
        barriers=0,
        global_loads=128,
        global_stores=128,
        shared_loads=0,
        shared_stores=0,
        global_load_bytes=512,
        global_store_bytes=512,
        shared_load_bytes=0,
        shared_store_bytes=0,
        atomics=0,
        global_load_requests=4,
        global_store_requests=4,
        global_load_sectors=4 * sectors,
        global_store_sectors=16,
    )


def test_sectors_do_not_depend_on_where_the_array_lies():
    memory = np.zeros(1000, F32)
    counts = [kernel(COPY)(1, 32, (memory[i : i + 32], memory[500:532], I32(1))) for i in range(8)]
    assert {c.global_load_sectors for c in counts} == {4}


def test_sectors_of_two_arrays_are_never_one():
    body = """
        const float* from[2] = {x, z};
        y[threadIdx.x] = from[threadIdx.x % 2][threadIdx.x];
    """
    x, z, y = np.zeros(32, F32), np.ones(32, F32), np.zeros(32, F32)
    read = kernel(body, "const float* x, const float* z, float* y")
    counts = read(1, 32, (x, z, y))
    assert (counts.global_load_requests, counts.global_load_sectors) == (1, 8)
    np.testing.assert_array_equal(y, np.arange(32) % 2)


@pytest.mark.parametrize("checked", [True, False])
def test_index_of_a_conditional(checked):
    """g++ 12 loses the index in one branch where it holds a structure that a call returned."""
    x, y = np.arange(64, dtype=F32), np.zeros(32, F32)
    body = "y[threadIdx.x] = (threadIdx.x % 2 ? x : x + n)[threadIdx.x];"
    kernel(body, checked=checked)(1, 32, (x, y, I32(32)))
    np.testing.assert_array_equal(y, np.arange(32) + 32 * (np.arange(32) % 2 == 0))


def test_float4_is_one_access_of_16_bytes():
    body = """
        float4 v = reinterpret_cast<const float4*>(x)[threadIdx.x];
        float4 w = __ldg(reinterpret_cast<const float4*>(x) + threadIdx.x);
        v.x += w.w;
        reinterpret_cast<float4*>(y)[threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
    """
    x, y = np.arange(256, dtype=F32), np.zeros(256, F32)
    counts = kernel(body)(1, 64, (x, y, I32(0)))
    expected = x.reshape(-1, 4)[:, ::-1].copy()
    expected[:, 3] += x.reshape(-1, 4)[:, 3]
    np.testing.assert_array_equal(y.reshape(-1, 4), expected)
    assert (counts.global_loads, counts.global_load_bytes) in [(128, 2048), (64, 1024)]
    assert (counts.global_stores, counts.global_store_bytes) == (64, 1024)
    assert counts.global_store_requests == 2
    assert counts.global_store_sectors == 32


def test_counts_of_a_tiled_transposition(rng):
    body = """
        __shared__ float tile[16][17];
        int column = blockIdx.x * 16 + threadIdx.x, row = blockIdx.y * 16 + threadIdx.y;
        if (row < n && column < n) tile[threadIdx.y][threadIdx.x] = x[row * n + column];
        __syncthreads();
        column = blockIdx.y * 16 + threadIdx.x, row = blockIdx.x * 16 + threadIdx.y;
        if (row < n && column < n) y[row * n + column] = tile[threadIdx.x][threadIdx.y];
    """
    n, blocks = 40, 3
    x, y = rng.standard_normal((n, n), dtype=F32), np.zeros((n, n), F32)
    counts = kernel(body)((blocks, blocks), (16, 16), (x, y, I32(n)))
    np.testing.assert_array_equal(y, x.T)
    assert counts.global_loads == counts.global_stores == n * n
    assert counts.shared_loads == counts.shared_stores == n * n
    assert counts.shared_load_bytes == 4 * n * n
    assert counts.barriers == blocks * blocks
    # Two rows of a tile are a warp; 40 = 16 + 16 + 8 columns, and so the last tile has 4 warps.
    assert counts.global_load_requests == 3 * (8 + 8 + 4)
    assert counts.global_load_sectors == n * n // 8


def test_lanes_that_a_condition_leaves_out_stay_in_step():
    """The counts of a padded convolution are those of lanes that run in lockstep."""
    body = """
        int q = blockIdx.x * blockDim.x + threadIdx.x;
        if (q >= n) return;
        float sum = 0.0f;
        for (int c = 0; c < 3; c++)
            for (int s = 0; s < 5; s++) {
                int i = q + s - 2;
                if (i >= 0 && i < n) sum = fmaf(x[c * n + i], 0.5f, sum);
            }
        for (int c = 0; c < q % 3; c++) sum += x[c * n];
        y[q] = sum + x[q];
    """
    n = 101
    x, y = np.ones(3 * n, F32), np.zeros(n, F32)
    counts = kernel(body)(2, 64, (x, y, I32(n)))

    requests = sectors = loads = 0
    for first in range(0, n, 32):
        lanes = np.arange(first, min(first + 32, n))
        asked = [c * n + lanes + s - 2 for c in range(3) for s in range(5)]
        inside = [(lanes + s - 2 >= 0) & (lanes + s - 2 < n) for _ in range(3) for s in range(5)]
        asked = [a[i] for a, i in zip(asked, inside, strict=True)]
        asked += [np.full(np.count_nonzero(lanes % 3 > c), c * n) for c in range(2)]
        asked.append(lanes)
        asked = [a for a in asked if a.size]
        requests += len(asked)
        loads += sum(a.size for a in asked)
        sectors += sum(len(np.unique(a // 8)) for a in asked)
    assert counts.global_loads == loads
    assert counts.global_load_requests == requests
    assert counts.global_load_sectors == sectors


def test_switches_and_calls_in_loops_stay_in_step():
    head = """
    __device__ __noinline__ float once(const float* x, int t, int i)
    {
        if (t != 7) return x[t];
        float sum = 0.0f;
        for (int k = 0; k < i; k++) sum += x[k];
        return sum;
    }
    """
    body = """
        int t = threadIdx.x;
        float sum = 0.0f;
        for (int i = 0; i < 3; i++) {
            switch ((t + i) % 7) {
                case 0: sum += 1.0f; break;
                case 1: sum *= x[40]; break;
                case 2: sum -= x[41]; break;
                case 3: sum /= 2.0f; break;
                case 4: sum = x[42]; break;
                case 5: sum = -sum;
            }
            sum += once(x, t, i);
        }
        y[t] = sum;
    """
    counts = kernel(body, head=head)(1, 32, (np.ones(64, F32), np.ones(64, F32), I32(0)))
    # Three cases of a switch, and the call's x[t], in each iteration; x[k] for k < i.
    assert counts.global_load_requests == 3 * 3 + 3 + (0 + 1 + 2)


def test_counts_add_up():
    x, y = np.zeros(32, F32), np.zeros(32, F32)
    checked = kernel(COPY)(1, 32, (x, y, I32(1)))
    fast = kernel(COPY, checked=False)(1, 32, (x, y, I32(1)))
    twice = checked + checked
    assert all(
        getattr(twice, f.name) == 2 * getattr(checked, f.name) for f in dataclasses.fields(twice)
    )
    assert fast == emulator.Counts(threads=32, blocks=1, barriers=0)
    assert (fast + checked).global_loads is None
    assert (fast + checked).threads == 64
    with pytest.raises(TypeError):
        checked + 1


# ---- the language --------------------------------------------------------------------------------
TILED_PRODUCT = """
#ifndef TILE
#define TILE 16
#endif
template <int N, class T>
__device__ __forceinline__ T dot(const T (*a)[N], const T (*b)[N + 1], int i, int j, T sum)
{
    #pragma unroll
    for (int k = 0; k < N; k++) sum = fmaf(a[i][k], b[k][j], sum);
    return sum;
}
extern "C" __global__ void __launch_bounds__(TILE * TILE)
product(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int n)
{
    __shared__ float left[TILE][TILE], right[TILE][TILE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int column = blockIdx.x * TILE + tx, row = blockIdx.y * TILE + ty;
    float sum = 0.0f;
    for (int k = 0; k < n; k += TILE) {
        left[ty][tx] = row < n && k + tx < n ? a[row * n + k + tx] : 0.0f;
        right[ty][tx] = column < n && k + ty < n ? b[(k + ty) * n + column] : 0.0f;
        __syncthreads();
        sum = dot<TILE>(left, right, ty, tx, sum);
        __syncthreads();
    }
    if (row < n && column < n) y[row * n + column] = rsqrtf(fabsf(sum) + 1.0f) * sum - a[0] * sum;
}
"""


@pytest.mark.parametrize("tile", [16, 7])
def test_both_modes_give_the_same_bits(tile, rng):
    n = 53
    a, b = rng.standard_normal((2, n, n), dtype=F32)
    results = []
    for checked in (True, False):
        load = emulator.load(TILED_PRODUCT, "product", "p.cu", checked, [("TILE", tile)])
        y = np.full((n, n), np.nan, F32)
        counts = load((-(-n // tile),) * 2, (tile, tile), (a, b, y, I32(n)))
        assert counts.barriers == (-(-n // tile)) ** 3 * 2
        results.append(y)
    assert results[0].tobytes() == results[1].tobytes()
    exact = a.astype(float) @ b.astype(float)
    expected = exact / np.sqrt(np.abs(exact) + 1) - float(a[0, 0]) * exact
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checked", [True, False])
def test_fmaf_is_one_rounding_and_a_product_and_a_sum_are_two(checked, rng):
    multiply_add = kernel(
        "int i = threadIdx.x; y[i] = fmaf(x[i], x[i + 256], x[i + 512]);"
        "y[i + 256] = x[i] * x[i + 256] + x[i + 512];",
        checked=checked,
    )
    x = rng.standard_normal(768, dtype=F32)
    x[512:] = -(x[:256] * x[256:512])  # what remains is the rounding of the product
    y = np.zeros(512, F32)
    multiply_add(1, 256, (x, y, I32(0)))
    a, b, c = x.astype(np.float64).reshape(3, 256)
    np.testing.assert_array_equal(y[:256], (a * b + c).astype(F32))
    np.testing.assert_array_equal(y[256:], np.zeros(256, F32))
    assert np.count_nonzero(y[:256]) > 200


WARP = """
    int t = threadIdx.x;
    float v = x[t];
    for (int step = 16; step > 0; step /= 2) v += __shfl_down_sync(0xffffffffu, v, step);
    y[t] = __shfl_sync(0xffffffffu, v, 0);
    y[t + 64] = __shfl_up_sync(0xffffffffu, x[t], 3);
    y[t + 128] = __shfl_xor_sync(0xffffffffu, x[t], 5, 8);
    y[t + 192] = __popc(__ballot_sync(0xffffffffu, x[t] > 0.0f));
    y[t + 256] = __any_sync(0xffffffffu, t == 40) + 2 * __all_sync(0xffffffffu, t >= 32);
    double wide = __shfl_sync(0xffffffffu, 1.0 / (t + 1), 31, 16);
    y[t + 320] = static_cast<float>(wide);
    y[t + 384] = __syncthreads_count(x[t] > 0.0f) + 1000 * __syncthreads_or(t == 63)
        + 2000 * __syncthreads_and(t == 63);
"""


@pytest.mark.parametrize("checked", [True, False])
def test_shuffles_and_votes(checked, rng):
    x, y = rng.standard_normal(64, dtype=F32), np.zeros((7, 64), F32)
    counts = kernel(WARP, checked=checked)(1, 64, (x, y, I32(0)))
    warps, lane, t = x.reshape(2, 32), np.arange(64) % 32, np.arange(64)
    tree = warps.copy()
    for step in (16, 8, 4, 2, 1):
        tree[:, :step] += tree[:, step : 2 * step]
    np.testing.assert_array_equal(y[0], np.repeat(tree[:, 0], 32))
    np.testing.assert_array_equal(y[1], np.where(lane < 3, x, x[np.maximum(t - 3, 0)]))
    np.testing.assert_array_equal(y[2], x[t ^ 5])
    np.testing.assert_array_equal(y[3], np.repeat((warps > 0).sum(1), 32))
    np.testing.assert_array_equal(y[4], np.repeat([0, 3], 32))
    np.testing.assert_array_equal(y[5], (1 / (t // 16 * 16 + 16.0)).astype(F32))
    np.testing.assert_array_equal(y[6], np.full(64, (x > 0).sum() + 1000))
    assert counts.barriers == 3


@pytest.mark.parametrize("checked", [True, False])
def test_atomics(checked, rng):
    body = """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(sum, x[i]);
        atomicMax(most + 0, i);
        atomicMin(most + 1, -i);
        atomicAdd(bins + (i & 7), 1u);
        if (atomicCAS(most + 2, 0, 1) == 0) atomicExch(most + 3, 77);
        atomicInc(bins + 8, 2u);
        atomicOr(bins + 9, 1u << (i & 31));
    """
    histogram = kernel(
        body, "const float* x, float* sum, int* most, unsigned* bins", checked=checked
    )
    x, total = rng.integers(-8, 8, 256).astype(F32), np.zeros(1, F32)
    most, bins = np.zeros(4, I32), np.zeros(10, np.uint32)
    counts = histogram(4, 64, (x, total, most, bins))
    assert total[0] == x.sum()
    np.testing.assert_array_equal(most, [255, -255, 1, 77])
    np.testing.assert_array_equal(bins, [*[32] * 8, 256 % 3, 0xFFFFFFFF])
    assert counts.atomics == (6 * 256 + 256 + 1 if checked else None)
    assert counts.global_stores == (0 if checked else None)


def test_atomic_sums_do_not_depend_on_the_mode(rng):
    add = "atomicAdd(y, x[blockIdx.x * blockDim.x + threadIdx.x]);"
    x = rng.standard_normal(32 * 4000, dtype=F32)
    sums = []
    for checked in (True, False, False, False):
        sums.append(np.zeros(1, F32))
        kernel(add, checked=checked)(4000, 32, (x, sums[-1], I32(0)))
    assert len({total.tobytes() for total in sums}) == 1


def test_templates_of_two_kernels_have_shared_memory_each(rng):
    head = """
    template <int N> __device__ float* room() { __shared__ float tile[N]; return tile; }
    """
    body = """
        float* a = room<64>();
        a[threadIdx.x] = x[threadIdx.x] + n;
        y[threadIdx.x] = a[threadIdx.x];
    """
    x, y = rng.standard_normal(64, dtype=F32), np.zeros(64, F32)
    for extra in ("", "__shared__ int more[64]; more[threadIdx.x] = n;"):
        for checked in (True, False):
            kernel(body + extra, head=head, checked=checked)(1, 64, (x, y, I32(2)))
            np.testing.assert_array_equal(y, x + 2)
            y[:] = 0


@pytest.mark.parametrize("checked", [True, False])
def test_dynamic_shared_memory_of_two_types(checked):
    body = """
        extern __shared__ __align__(16) unsigned char raw[];
        float* floats = reinterpret_cast<float*>(raw);
        int* ints = reinterpret_cast<int*>(raw + 4 * blockDim.x);
        int t = threadIdx.x;
        if (n == 1) { y[t] = floats[t]; return; }
        floats[t] = x[t];
        ints[t] = 3 * t;
        __syncthreads();
        y[t] = floats[blockDim.x - 1 - t] + ints[t ^ 1];
    """
    t, y = np.arange(96), np.zeros(96, F32)
    reverse = kernel(body, checked=checked)
    reverse(1, 96, (t.astype(F32), y, I32(0)), shared_bytes=96 * 8)
    np.testing.assert_array_equal(y, 95 - t + 3 * (t ^ 1))
    if not checked:  # a new block finds NaN, not what the last one left
        reverse(1, 96, (t.astype(F32), y, I32(1)), shared_bytes=96 * 8)
        assert np.isnan(y).all()


def test_where_a_thread_is_in_three_dimensions():
    body = """
        int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[b * blockDim.x * blockDim.y * blockDim.z + t] = 1000 * b + t;
    """
    y = np.zeros(24 * 30, F32)
    for checked in (True, False):
        counts = kernel(body, checked=checked)((2, 3, 4), (5, 3, 2), (y, y, I32(0)))
        np.testing.assert_array_equal(
            y.reshape(24, 30), 1000 * np.ogrid[:24, :30][0] + np.arange(30)
        )
        assert (counts.blocks, counts.threads) == (24, 720)
        y[:] = 0


def test_many_blocks_on_all_cores_keep_their_shared_memory_apart():
    body = """
        __shared__ int tile[64];
        int t = threadIdx.x, b = blockIdx.x;
        for (int i = 0; i < n; i++) {
            tile[t] = b + i;
            __syncthreads();
            if (tile[63 - t] != b + i) y[b] = 1.0f;
            __syncthreads();
        }
    """
    x, y = np.zeros(1, F32), np.zeros(500, F32)
    counts = kernel(body, checked=False)(500, 64, (x, y, I32(8)))
    assert not y.any()
    assert counts.barriers == 500 * 16


# ---- launches and compilers that are refused -----------------------------------------------------
def test_launch_is_checked_before_it_runs():
    scale = kernel("y[0] = x[0] + n;")
    x, y = np.zeros(4, F32), np.zeros(4, F32)
    good = (x, y, I32(1))
    shared = kernel("__shared__ float tile[1024]; tile[n] = n; y[0] = tile[n];")
    assert shared.static_shared_bytes == 4096
    refused = [
        (scale, 0, 32, good, {}, r"grid \(0, 1, 1\)"),
        (scale, (1, 1, 1, 1), 32, good, {}, "one to three integers"),
        (scale, 1.5, 32, good, {}, "one to three integers"),
        (scale, 1, (32, 33), good, {}, "1056 threads; the most is 1024"),
        (scale, 1, (1, 1, 65), good, {}, "at most"),
        (scale, 1, 32, good, {"shared_bytes": 227 * 1024 + 1}, "227 KiB"),
        (scale, 1, 32, good, {"shared_bytes": -4}, "227 KiB"),
        (shared, 1, 32, good, {"shared_bytes": 227 * 1024 - 4092}, "4096 static"),
        (scale, 1, 32, (x, y), {}, "takes 3 arguments, got 2"),
        (scale, 1, 32, (x, y, 1), {}, "argument 2 is a int of 8 bytes; .* 4-byte integer"),
        (scale, 1, 32, (x, y, np.float32(1)), {}, "argument 2 is a float32 of 4 bytes"),
        (scale, 1, 32, (x, y, y), {}, "argument 2 is an array; .* 4-byte integer"),
        (scale, 1, 32, (x, np.zeros(4), I32(1)), {}, "argument 1 is an array of float64"),
        (scale, 1, 32, (x, np.zeros((4, 4), F32)[:, 1], I32(1)), {}, "not C-contiguous"),
        (scale, 1, 32, (x, [0.0], I32(1)), {}, "argument 1 is a list"),
        (scale, 1, 32, (x, I32(0), I32(1)), {}, "a pointer to 4-byte floating-point numbers"),
    ]
    for function, grid, block, args, options, message in refused:
        with pytest.raises(emulator.EmulatorError, match=message):
            function(grid, block, args, **options)
    assert not y.any()
    scale(1, 1, good)
    assert y[0] == 1


def test_null_pointer_and_values_of_every_size():
    body = "y[0] = (x == nullptr) + a + static_cast<float>(b) + c + (d ? 0.5f : 0.0f);"
    add = kernel(body, "const float* x, float* y, short a, double b, long long c, bool d")
    y = np.zeros(1, F32)
    add(1, 1, (np.uint64(0), y, np.int16(2), 0.25, 40, np.bool_(True)))
    assert y[0] == 43.75


def test_compile_error_names_the_file_and_the_line():
    with pytest.raises(emulator.EmulatorError, match=r"broken\.cu:4:.*'undeclared'"):
        kernel("\n  y[0] = undeclared;\n", filename="broken.cu")
    with pytest.raises(emulator.EmulatorError, match=r"no kernel 'other'"):
        emulator.load("/* other( */ void k() {}", "other")


def test_inline_assembly_is_refused_by_name():
    text = '\n  asm volatile("{\\n\\t" "mma.sync.aligned.m16n8k16 ..." :: "r"(n));\n'
    with pytest.raises(emulator.EmulatorError, match=r"kernel\.cu:4: .*mma\.sync.*not emulated"):
        kernel(text)
    guarded = kernel(f'\n#ifndef CONVSTUDY_EMULATOR\n{text}\n#endif\n y[0] = 1; // asm("x")\n')
    y = np.zeros(1, F32)
    guarded(1, 1, (y, y, I32(0)))
    assert y[0] == 1


def test_missing_compiler_says_how_to_get_one(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(emulator.EmulatorError, match="apt install g"):
        kernel("y[0] = 5;")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("true", "'true' has written nothing, without a word; name a compiler"),
        ('g++ "', "CXX is 'g\\+\\+ \"', which is no command \\(No closing quotation\\)"),
    ],
)
def test_a_compiler_that_is_none_is_told_from_one(command, message, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(build, "CACHE", tmp_path)
    with pytest.raises(emulator.EmulatorError, match=message):
        kernel("y[0] = 5;")


def test_a_damaged_file_comes_with_its_remedy(tmp_path):
    damaged = tmp_path / "k.so"
    damaged.touch()
    with pytest.raises(emulator.EmulatorError, match=r"k\.so: file too short\); `make clean`"):
        build.open_library(damaged)


# ---- the machinery -------------------------------------------------------------------------------
def test_fibers_without_hand_written_switches(monkeypatch):
    monkeypatch.setenv("CXX", "g++ -DEMU_UCONTEXT")
    body, _ = FAULTS["no barrier before the next tile"]
    x, y = np.arange(256, dtype=F32), np.zeros(64, F32)
    for checked in (True, False):
        kernel(body, filename="portable.cu", checked=checked, defines=[("BAD", 0)])(
            1, 64, (x, y, I32(0))
        )
        np.testing.assert_array_equal(y, 3.0 * (np.arange(64) ^ 1) + 192)


def test_loads_side_by_side_build_one_file():
    name = f"side_{uuid.uuid4().hex}"  # never built before
    text = f'extern "C" __global__ void {name}(float* y) {{ y[threadIdx.x] = threadIdx.x; }}'
    script = (
        "import sys, numpy as np; from convstudy import emulator; y = np.zeros(32, np.float32);"
        "emulator.load(sys.argv[1], sys.argv[2])(1, 32, (y,)); print(int(y.sum()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, text, name], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        assert [process.communicate(timeout=60)[0] for process in running] == [b"496\n"] * 3
        assert len(list(build.CACHE.glob(f"{name}*"))) == 1
        assert not list(build.CACHE.glob("tmp*/" + name + "*"))
    finally:
        for built in build.CACHE.glob(f"{name}*"):
            built.unlink()


@pytest.mark.parametrize("checked", [True, False])
def test_launches_from_several_threads_do_not_meet(checked):
    body, _ = FAULTS["no barrier before the next tile"]
    tiled = kernel(body, checked=checked, defines=[("BAD", 0)])

    def launch(seed):
        x, y = np.full(256, seed, F32), np.zeros(64, F32)
        for _ in range(20):
            tiled(1, 64, (x, y, I32(0)))
        return np.array_equal(y, np.full(64, 3 * seed, F32))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(launch, range(8)))


# A loop in a loop, the tests below the bodies, in the words of two processors. Nothing is told of
# the function after it.
X86 = """
0000000000001000 <k>:
    1000:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1005:\tjmp    1040 <k+0x40>
    1010:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1015:\tje     1030 <k+0x30>
    1020:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1025:\tadd    $0x1,%eax
    1030:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1035:\tjne    1010 <k+0x10>
    1040:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1045:\tjne    1030 <k+0x30>
    1050:\tcall   800 <__sanitizer_cov_trace_pc@plt>
    1055:\tret
0000000000001060 <other>:
    1060:\tjmp    1060 <other>
"""
AARCH64 = (
    X86.replace("call  ", "bl    ")
    .replace("je     1030", "cbz    w0, 1030")
    .replace("jne    1010", "tbnz   w0, #3, 1010")
    .replace("jne    1030", "b.ne   1030")
    .replace("jmp  ", "b    ")
)


@pytest.mark.parametrize("text", [X86, AARCH64], ids=["x86-64", "aarch64"])
def test_loops_are_read_from_machine_code(text):
    found = find_loops(text)
    assert found.parents == [-1, 0]
    assert sorted(found.blocks) == [
        (0x1005, -1, False),
        (0x1015, 1, False),
        (0x1025, 1, False),
        (0x1035, 1, True),
        (0x1045, 0, True),
        (0x1055, -1, False),
    ]
