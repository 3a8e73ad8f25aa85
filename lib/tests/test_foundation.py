# SPDX-License-Identifier: MIT
"""The ground floor: one problem, one tolerance, one way from a .cu file to code."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from convstudy import compile, device, loops, paths, tolerance
from convstudy.compile import Launch, Sequence
from convstudy.device import EMULATOR
from convstudy.problem import BFLOAT16, ConvProblem


def test_unet_layer_by_hand():
    problem = ConvProblem(1, 64, 128, 191, 64, 3, 3, padding=1)
    assert problem.padding == (1, 1)
    assert (problem.p, problem.q) == (128, 191)
    assert problem.macs == 128 * 191 * 64 * 64 * 9
    assert problem.terms == 576
    assert problem.bytes == 4 * (2 * 64 * 128 * 191 + 64 * 64 * 9)
    assert problem.intensity == problem.flops / problem.bytes


def test_stride_one_and_no_padding_unless_told_otherwise():
    problem = ConvProblem.of(np.ones((2, 3, 4, 5)).astype("f4"), np.ones((6, 3, 1, 2)).astype("f4"))
    assert problem == ConvProblem(2, 3, 4, 5, 6, 1, 2)
    assert (problem.stride, problem.padding) == ((1, 1), (0, 0))


def test_bfloat16_has_a_precision_of_its_own():
    sizes = {"n": 1, "c": 64, "h": 8, "w": 8, "k": 1, "r": 3, "s": 3}
    single, half = ConvProblem(**sizes), ConvProblem(**sizes, dtype="bfloat16")
    assert (single.precision, half.precision) == ("fp32", "bf16")
    assert half.bytes == single.bytes / 2
    x, w = np.ones((1, 2, 8, 8), BFLOAT16), np.ones((1, 2, 3, 3), BFLOAT16)
    assert ConvProblem.of(x, w).precision == "bf16"
    with pytest.raises(TypeError, match="x is bfloat16 and w is float32; convert one"):
        ConvProblem.of(x, w.astype(np.float32))


def test_output_sizes_follow_stride_and_padding():
    problem = ConvProblem(2, 3, 224, 225, 64, 7, 5, stride=(2, 3), padding=(3, 1))
    assert problem.y_shape == (2, 64, 112, 75)
    assert problem.with_batch(7).x_shape == (7, 3, 224, 225)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"k": -3}, ValueError, "k must be at least 1, got -3"),
        ({"c": 2.0}, TypeError, "c must be an integer, got 2.0"),
        ({"groups": 2}, ValueError, "groups=2 is not supported"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is not supported; use 'float32'"),
        ({"precision": "bf16"}, ValueError, "'bf16' of float32 is not supported; use 'fp32' or"),
        (
            {"dtype": "bfloat16", "precision": "fp32"},
            ValueError,
            "precision='fp32' of bfloat16 is not supported; use 'bf16'",
        ),
        ({"layout": "CHWN"}, ValueError, "layout='CHWN' is not supported"),
        ({"r": 9}, ValueError, "R=9, H=8 with 0 on each side"),
        ({"s": 9}, ValueError, "S=9, W=8 with 0 on each side"),
    ],
)
def test_problem_refuses(change, error, message):
    sizes = {"n": 1, "c": 1, "h": 8, "w": 8, "k": 1, "r": 3, "s": 3}
    with pytest.raises(error, match=re.escape(message)):
        ConvProblem(**(sizes | change))


def test_tolerance_admits_rounding_and_nothing_else(rng):
    terms = 4608
    x, w = rng.standard_normal((2, 400, terms), dtype=np.float32)
    truth = np.einsum("it,it->i", x.astype(float), w.astype(float))
    rounded = np.zeros(400, np.float32)
    for t in range(terms):  # the plainest order there is
        rounded += x[:, t] * w[:, t]
    tolerance.assert_close(rounded, truth, terms)
    with pytest.raises(AssertionError, match="exceeds the tolerance"):
        tolerance.assert_close(rounded - x[:, 7] * w[:, 7], truth, terms)


def test_tolerance_admits_results_rounded_to_bf16_and_no_coarser(rng):
    truth = rng.standard_normal(10**6)
    truth[:2] = -7.97, 5.03  # beyond the largest of a million, and just above a tie
    for products in (9, 9216):
        limits = {"dtype": np.float32, "precision": "bf16"}
        tolerance.assert_close(truth.astype(BFLOAT16), truth, products, **limits)
        coarse = (truth.astype(np.float32).view(np.uint32) & 0xFFFC0000).view(np.float32)
        with pytest.raises(AssertionError, match="exceeds the tolerance"):
            tolerance.assert_close(coarse, truth, products, **limits)


def test_an_output_is_held_to_its_own_scale_too(rng):
    # A row of numbers a millionth as large as the others, and one that no product reaches.
    terms, scales = 27, np.array([1, 1, 1, 1e-6, 0])[:, None]
    x, w = rng.standard_normal((2, 5, 90, terms))
    x *= scales[:, :, None]
    truth = np.einsum("rit,rit->ri", x, w)
    own = np.sqrt(np.einsum("rit,rit->ri", x**2, w**2))
    for dtype, precision in ((np.float32, "fp32"), (BFLOAT16, "bf16")):
        limits = {"dtype": np.float32, "precision": precision}
        actual = truth.astype(dtype).astype(float)
        tolerance.assert_close(actual, truth, terms, own=own, **limits)
        wrong = actual.copy()
        for row in (3, 4):
            wrong[row] = actual[row] + 1e-7  # a stray product of small numbers
            tolerance.assert_close(wrong, truth, terms, **limits)
            with pytest.raises(AssertionError, match="exceeds the tolerance"):
                tolerance.assert_close(wrong, truth, terms, own=own, **limits)
            wrong = actual.copy()
        # Where an output's scale is larger than most, nothing is granted that was not before.
        loose = actual + 9 * tolerance.tolerance(np.float32, terms, precision=precision)
        with pytest.raises(AssertionError, match="exceeds the tolerance"):
            tolerance.assert_close(loose * scales, truth, terms, own=1e9 + own, **limits)
    assert tolerance.relative_error(truth, truth, own) == 0


def test_tolerance_never_passes_nan_and_refuses_nonsense():
    assert tolerance.relative_error(np.array([1.0, np.nan]), np.ones(2)) == math.inf
    assert tolerance.relative_error(np.empty(0), np.empty(0)) == 0
    # Beside zeros, an error is what it is.
    assert tolerance.relative_error(np.array([0.5, 0]), np.zeros(2)) == 0.5
    with pytest.raises(ValueError, match="shapes differ"):
        tolerance.relative_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="positive numbers of products"):
        tolerance.tolerance(np.float32, 0)


def test_tolerance_grows_with_the_root_of_the_terms():
    one, many = tolerance.tolerance(np.float32, 9), tolerance.tolerance(np.float32, 900)
    assert many == pytest.approx(10 * one)
    assert one == pytest.approx(12 * np.finfo(np.float32).eps)
    assert tolerance.tolerance(np.float32, 9, 16) == pytest.approx(one * 5 / 3)


@pytest.mark.parametrize(
    ("kernel", "arch"), [(k, arch) for k in compile.kernels() for arch in compile.architectures(k)]
)
def test_every_kernel_compiles_alone_without_spills(kernel, arch):
    cubin = compile.cubin(kernel, arch)
    assert cubin.code.startswith(b"\x7fELF")
    assert cubin.spill_bytes == 0


@pytest.mark.parametrize("kernel", compile.kernels())
def test_the_header_states_the_static_shared_memory(kernel):
    header = (paths.KERNELS / f"{kernel}.cu").read_text().split("#", 1)[0]
    stated = re.search(r"static: ([\d,]+) with the defaults", header)
    used = compile.cubin(kernel, "sm_90").shared_bytes
    assert used == (int(stated[1].replace(",", "")) if stated else 0)


def test_an_unknown_kernel_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="no kernel 'nothing'; the kernels are .*conv2d_fprop_1"):
        compile.source("nothing")


def test_the_hash_of_a_kernel_follows_its_constants_and_its_includes():
    kernel = "conv2d_fprop_3_tiled"
    assert compile.source_sha256(kernel) != compile.source_sha256(kernel, (("TILE_C", 4),))
    assert "divide_up(int a, int b)" in compile.source(kernel)


@pytest.mark.parametrize(
    ("kernel", "include", "line"), [("broken", "", 2), ("broken_too", '#include "more.cuh"\n', 3)]
)
def test_nvrtc_names_the_line_of_an_error(kernel, include, line, tmp_path, monkeypatch):
    (tmp_path / "more.cuh").write_text("constexpr int ONE = 1;\n// two\n// three\n// four\n")
    (tmp_path / f"{kernel}.cu").write_text(f"{include}\nint wrong = nonsense;\n")
    monkeypatch.setattr(paths, "KERNELS", tmp_path)
    with pytest.raises(RuntimeError, match=rf"{kernel}\.cu\({line}\)"):
        compile.cubin(kernel, "sm_90")


def test_peak_is_two_flops_a_unit_and_cycle():
    h200 = device.Device("gpu", "H200", 0, (9, 0), 132, clock_hz=1.98e9)
    assert h200.peak_fp32_flops == pytest.approx(66.9e12, rel=1e-3)
    assert h200.arch == "sm_90"
    a30 = device.Device("gpu", "A30", 0, (8, 0), 56, clock_hz=1.44e9)
    assert a30.peak_fp32_flops == pytest.approx(10.3e12, rel=1e-2)


def test_kernels_are_compiled_once_each_for_the_device_that_is_named(monkeypatch):
    asked = []
    monkeypatch.setattr(Launch, "prepare", lambda part, device: asked.append((part, device)))
    one = Launch("relu_fprop_1_elementwise", (1,), (32,))
    two = Launch("relu_fprop_1_elementwise", (1,), (32,), shared_bytes=2**16)
    both = Sequence(((one, (0,)), (two, (0,))), (), 0)
    compile.prepare([one, both, replace(one, grid=(7,))], EMULATOR)
    assert sorted(part.shared_bytes for part, _ in asked) == [0, 2**16]
    assert {device for _, device in asked} == {EMULATOR}


def one_more(x):
    return x + 1


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_loop_nest_is_compiled_again(ending, tmp_path, monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert loops.compiled(one_more)(2) == 3
    (kept,) = tmp_path.rglob(f"*.{ending}")
    whole = kept.read_bytes()
    for damaged in (b"", whole[:20], whole[:-5]):
        kept.write_bytes(damaged)
        assert loops.compiled(one_more)(2) == 3
        assert len(kept.read_bytes()) == len(whole)


def test_a_loop_nest_needs_no_folder_to_be_kept_in(monkeypatch):
    import numba

    def njit(function, cache=False):
        if cache:
            raise RuntimeError("no locator available")
        return function

    monkeypatch.setattr(numba, "njit", njit)
    assert loops.compiled(one_more)(2) == 3


def test_what_does_not_compile_is_said(monkeypatch):
    def refuse(part, device):
        raise RuntimeError(f"{part.kernel} for {device.name}: no")

    monkeypatch.setattr(Launch, "prepare", refuse)
    with pytest.raises(RuntimeError, match="relu_fprop_1_elementwise for the CPU emulator: no"):
        compile.prepare([Launch("relu_fprop_1_elementwise", (1,), (32,))], EMULATOR)
