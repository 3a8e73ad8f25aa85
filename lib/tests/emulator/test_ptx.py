# SPDX-License-Identifier: MIT
"""The instructions of ``kernels/ptx.cuh`` on the emulator: what they do, and their misuse."""

import re

import numpy as np
import pytest

from convstudy import emulator, paths
from convstudy.problem import BFLOAT16

F32 = np.float32
PTX = (paths.KERNELS / "ptx.cuh").read_text()


def kernel(body, parameters="const float* x, float* y", **options):
    text = f'{PTX}\nextern "C" __global__ void k({parameters})\n{{{body}}}\n'
    return emulator.load(text, "k", **options)


def test_the_emulator_has_every_instruction_that_kernels_have():
    pattern = r"^(?:__device__ __forceinline__|inline) \w+ (\w+)\("
    emulated = (paths.PACKAGE / "emulator" / "ptx_cpu.h").read_text()
    assert re.findall(pattern, PTX, re.M) == re.findall(pattern, emulated, re.M)


def test_assembly_is_nowhere_else():
    users = [p.name for p in paths.KERNELS.glob("*.cu*") if re.search(r"\basm\b", p.read_text())]
    assert sorted(users) == ["hopper.cuh", "overlap.cuh", "ptx.cuh"]


MMA = """
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                      to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
    unsigned fb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
    float* place[4] = {d + g * 8 + 2 * t, d + g * 8 + 2 * t + 1,
                       d + (g + 8) * 8 + 2 * t, d + (g + 8) * 8 + 2 * t + 1};
    float sum[4];
    for (int i = 0; i < 4; i++) sum[i] = *place[i];
    mma_tf32(sum, fa, fb);
    for (int i = 0; i < 4; i++) *place[i] = sum[i];
"""


def tf32(x):
    """Round to 10 bits of the fraction, to nearest."""
    mantissa, exponent = np.frexp(x.astype(float))
    return np.ldexp(np.trunc(mantissa * 2**11 + np.copysign(0.5, mantissa)) / 2**11, exponent)


@pytest.mark.parametrize("checked", [True, False])
def test_tensor_cores_multiply_tf32_and_drop_the_rest_of_the_sum(checked, rng):
    a, b, c = (rng.standard_normal(shape, dtype=F32) for shape in ((16, 8), (8, 8), (16, 8)))
    d = c.copy()
    load = kernel(MMA, "const float* a, const float* b, float* d", checked=checked)
    load(1, 32, (a, b, d))
    exact = c + tf32(a) @ tf32(b)
    assert (np.abs(d) <= np.abs(exact)).all()
    np.testing.assert_allclose(d, exact, rtol=2.0**-23)


# a lies row by row in `across`, b depth by depth: one is read as it lies, the other transposed.
MMA_BF16 = """
    __shared__ __align__(16) bf16 across[16][16 + 8], depths[16][8];
    int l = threadIdx.x, g = l / 4, t = l % 4;
    for (int i = l; i < 256; i += 32) across[i / 16][i % 16] = a[i];
    for (int i = l; i < 128; i += 32) depths[i / 8][i % 8] = b[i];
    __syncthreads();
    unsigned fa[4], fb[4];
    ldmatrix<false>(fa, &across[l % 16][l / 16 * 8]);
    ldmatrix<true>(fb, depths[l % 16]);
    float* place[4] = {d + g * 8 + 2 * t, d + g * 8 + 2 * t + 1,
                       d + (g + 8) * 8 + 2 * t, d + (g + 8) * 8 + 2 * t + 1};
    float sum[4];
    for (int i = 0; i < 4; i++) sum[i] = *place[i];
    mma_bf16(sum, fa, {fb[0], fb[1]});
    for (int i = 0; i < 4; i++) *place[i] = sum[i];
"""
OF_BF16 = "const bf16* a, const bf16* b, float* d"


@pytest.mark.parametrize("checked", [True, False])
def test_tensor_cores_multiply_bf16_that_ldmatrix_reads(checked, rng):
    a, b = (rng.standard_normal(shape).astype(BFLOAT16) for shape in ((16, 16), (16, 8)))
    c = rng.standard_normal((16, 8), dtype=F32)
    d = c.copy()
    kernel(MMA_BF16, OF_BF16, checked=checked)(1, 32, (a, b, d))
    exact = c + a.astype(float) @ b.astype(float)
    assert (np.abs(d) <= np.abs(exact)).all()
    np.testing.assert_allclose(d, exact, rtol=2.0**-23)


LDMATRIX = """
    __shared__ __align__(16) unsigned short rows[32][8 * PITCH + SHIFT];
    for (int i = 0; i < 8; i++) rows[threadIdx.x][i + SHIFT] = 8 * threadIdx.x + i;
    if (BARRIER) __syncthreads();
    unsigned words[4];
    ldmatrix<TRANSPOSED>(words, &rows[31 - threadIdx.x][SHIFT]);
    for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = words[i];
"""


def ldmatrix(transposed=0, pitch=2, shift=0, barrier=1):
    names = {"TRANSPOSED": transposed, "PITCH": pitch, "SHIFT": shift, "BARRIER": barrier}
    y = np.zeros((32, 4), np.uint32)
    counts = kernel(LDMATRIX, "unsigned* y", defines=list(names.items()))(1, 32, (y,))
    return y, counts


@pytest.mark.parametrize("transposed", [0, 1])
def test_ldmatrix_deals_out_rows_or_columns(transposed):
    y, counts = ldmatrix(transposed)
    # Lane l gave row 31 - l: matrix i has rows 31 - 8 i down to 24 - 8 i, of 8 numbers each.
    matrices = np.arange(256).reshape(32, 8)[::-1].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    pairs = matrices[..., ::2] | matrices[..., 1::2] << 16
    np.testing.assert_array_equal(y, pairs.reshape(4, 32).T)
    assert (counts.shared_loads, counts.shared_load_bytes) == (32, 512)


def test_ldmatrix_wants_rows_on_16_bytes_and_written_before():
    with pytest.raises(emulator.MisalignedAccess):
        ldmatrix(shift=4)
    with pytest.raises((emulator.SharedRace, emulator.UninitialisedShared)):
        ldmatrix(barrier=0)


def test_rounding_to_bf16_is_to_nearest_and_ties_to_even(rng):
    body = "reinterpret_cast<unsigned*>(y)[threadIdx.x] = to_bf16x2(x[threadIdx.x], x[32]);"
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3e38, 3.4e38, np.inf, np.nan, 1e-40])
    x = np.append(np.resize(np.append(ties, rng.standard_normal(24)), 32), 0.1).astype(F32)
    y = np.zeros(64, BFLOAT16)
    kernel(body, "const float* x, bf16* y")(1, 32, (x, y))
    np.testing.assert_array_equal(y[::2].astype(F32), x[:32].astype(BFLOAT16).astype(F32))
    assert (y[1::2] == BFLOAT16.type(0.1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["TF32", "bf16"])
def test_tensor_cores_of_the_gpu_agree(kind, rng):
    import cupy

    dtype, depth, body, parameters = {
        "TF32": (F32, 8, MMA, "const float* a, const float* b, float* d"),
        "bf16": (BFLOAT16, 16, MMA_BF16, OF_BF16),
    }[kind]
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((16, depth), (depth, 8)))
    emulated = np.zeros((16, 8), F32)
    kernel(body, parameters)(1, 32, (a, b, emulated))
    text = f'{PTX}\nextern "C" __global__ void k({parameters})\n{{{body}}}\n'
    real = cupy.zeros((16, 8), F32)
    arrays = cupy.asarray(a), cupy.asarray(b), real
    cupy.RawModule(code=text, options=("-std=c++17",)).get_function("k")((1,), (32,), arrays)
    scale = np.abs(a.astype(float)) @ np.abs(b.astype(float))
    assert (np.abs(real.get() - emulated) <= 2.0**-22 * scale).all()


STAGES = """
    __shared__ __align__(16) float tile[2][64];
    int t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        if (t < 16) cp_async<16>(tile[i] + 4 * t, x + 64 * i + 4 * t, 4 * t + 64 * i < n);
        cp_async_commit();
    }
    for (int i = 0; i < 4; i++) {
        cp_async_wait<WAIT>();
        __syncthreads();
        y[64 * i + t] = tile[i % 2][63 - t];
        #if BARRIER
        __syncthreads();
        #endif
        if (t < 16 && i < 2)
            cp_async<16>(tile[i % 2] + 4 * t, x + 64 * (i + 2) + 4 * t, 4 * t + 64 * (i + 2) < n);
        cp_async_commit();
    }
"""


def run_stages(wait, barrier, n=248, checked=True):
    x, y = np.arange(n, dtype=F32), np.full(256, np.nan, F32)
    defines = [("WAIT", wait), ("BARRIER", barrier)]
    load = kernel(STAGES, "const float* x, float* y, int n", defines=defines, checked=checked)
    counts = load(1, 64, (x, y, np.int32(n)))
    padded = np.zeros(256, F32)
    padded[:n] = x
    np.testing.assert_array_equal(y, padded.reshape(4, 64)[:, ::-1].ravel())
    return counts


def test_copies_in_stages_arrive_and_fill_up_with_zeros():
    run_stages(1, 1, checked=False)
    counts = run_stages(1, 1)
    assert counts.global_load_bytes == 4 * 248
    assert counts.shared_stores == 64
    assert counts.shared_store_bytes == 1024


def test_a_copy_that_is_not_waited_for_is_found():
    with pytest.raises(emulator.UninitialisedShared):
        run_stages(2, 1)


def test_a_copy_into_what_others_still_read_is_a_race():
    with pytest.raises(emulator.SharedRace):
        run_stages(1, 0)


@pytest.mark.parametrize("barrier", [True, False])
def test_others_see_a_copy_after_a_barrier_that_follows_the_wait(barrier):
    body = """
        __shared__ __align__(16) float tile[128];
        cp_async<4>(tile + threadIdx.x, x + threadIdx.x, true);
        cp_async_commit();
        if (!BARRIER) __syncthreads();
        cp_async_wait<0>();
        if (BARRIER) __syncthreads();
        y[threadIdx.x] = tile[127 - threadIdx.x];
    """
    x, y = np.arange(128, dtype=F32), np.zeros(128, F32)
    load = kernel(body, defines=[("BARRIER", int(barrier))])
    if barrier:
        load(1, 128, (x, y))
        np.testing.assert_array_equal(y, x[::-1])
    else:
        with pytest.raises((emulator.SharedRace, emulator.UninitialisedShared)):
            load(1, 128, (x, y))


def test_a_copy_beyond_an_array_names_its_line():
    body = """
        __shared__ float tile[32];
        cp_async<4>(tile + threadIdx.x, x + threadIdx.x, true);  // HERE
    """
    with pytest.raises(emulator.OutOfBounds, match=r"thread \(20, 0, 0\)") as caught:
        kernel(body)(1, 32, (np.zeros(20, F32), np.zeros(1, F32)))
    lines = f"{PTX}\n\n{{{body}".splitlines()
    assert "HERE" in lines[caught.value.line - 1]
