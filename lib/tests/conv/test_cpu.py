# SPDX-License-Identifier: MIT
"""The two convolutions on the CPU, beyond what every algorithm is tested for."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from problems import PROBLEMS, random_arrays

from convstudy import paths, tolerance
from convstudy.conv import cpu, reference
from convstudy.problem import ConvProblem


def convolve(function, problem, x, w, bias):
    out = np.full(problem.y_shape, np.nan, np.float32)
    function(problem, x, w, bias, out)
    return out


def truth(problem, x, w, bias):
    bias = None if bias is None else bias.astype(float)
    return reference.conv2d(x.astype(float), w.astype(float), bias, problem.stride, problem.padding)


@pytest.mark.parametrize("function", [cpu.plain, cpu.blas])
@pytest.mark.parametrize("title", PROBLEMS)
def test_without_bias(title, function, rng):
    problem = PROBLEMS[title]
    x, w, _ = random_arrays(problem, rng)
    output = convolve(function, problem, x, w, None)
    tolerance.assert_close(output, truth(problem, x, w, None), problem.terms)


# From one unfolded pixel at a time, through parts of rows, to several rows.
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1, 100, 300, 2000])
@pytest.mark.parametrize("title", PROBLEMS)
def test_blas_does_not_depend_on_how_it_is_cut(title, block, threads, rng, monkeypatch):
    problem = PROBLEMS[title]
    arrays = random_arrays(problem, rng)
    monkeypatch.setattr(cpu, "_BLOCK", block)
    monkeypatch.setattr(cpu, "_threads_for", lambda products: threads)
    unfolded, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: unfolded.append(a[0]) or empty(*a, **k))
    output = convolve(cpu.blas, problem, *arrays)
    tolerance.assert_close(output, truth(problem, *arrays), problem.terms + 1)
    sizes = [size for size in unfolded if isinstance(size, int)]
    assert max(sizes, default=0) <= max(block, problem.terms)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1, 300, 2**20])
@pytest.mark.parametrize("title", PROBLEMS)
def test_gradients(title, block, threads, rng, monkeypatch):
    problem = PROBLEMS[title]
    x, w, _ = random_arrays(problem, rng)
    dy = rng.standard_normal(problem.y_shape, dtype=np.float32)
    monkeypatch.setattr(cpu, "_BLOCK", block)
    monkeypatch.setattr(cpu, "_threads_for", lambda products: threads)
    how = problem.stride, problem.padding
    dx, dw = np.full_like(x, np.nan), np.full_like(w, np.nan)
    cpu.dgrad(problem, dy, w, dx)
    cpu.wgrad(problem, x, dy, dw)
    x, w, dy = (array.astype(float) for array in (x, w, dy))
    truth = reference.conv2d_dgrad(dy, w, (problem.h, problem.w), *how)
    tolerance.assert_close(dx, truth, problem.k * problem.r * problem.s)
    truth = reference.conv2d_wgrad(x, dy, (problem.r, problem.s), *how)
    tolerance.assert_close(dw, truth, problem.n * problem.p * problem.q)


@pytest.mark.parametrize("function", [cpu.plain, cpu.blas])
def test_arguments_are_not_changed(function, rng):
    problem = PROBLEMS["unet, odd width"]
    arrays = random_arrays(problem, rng)
    before = [array.copy() for array in arrays]
    convolve(function, problem, *arrays)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_plain_adds_in_the_order_of_its_loops():
    # 2^24 + 1 rounds back to 2^24: what comes before it is lost, what comes after it is not.
    problem = PROBLEMS["1x1"].with_batch(1)
    x = np.ones(problem.x_shape, np.float32)
    w = np.zeros(problem.w_shape, np.float32)
    w[:, :4, 0, 0] = 1, 2.0**24, 1, -(2.0**24)
    output = convolve(cpu.plain, problem, x, w, None)
    np.testing.assert_array_equal(output, np.zeros_like(output))


def test_threads_are_limited_and_given_back():
    before = cpu.threads()
    with cpu.limit_threads(1):
        assert cpu.threads() == 1
    assert cpu.threads() == before
    with cpu.limit_threads(None):
        assert cpu.threads() == before


def test_calls_that_overlap_leave_blas_its_threads(rng):
    problem = ConvProblem(1, 16, 40, 40, 32, 3, 3, padding=(1, 1))
    x, w, bias = random_arrays(problem, rng)
    expected, before = convolve(cpu.blas, problem, x, w, bias), cpu.threads()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(convolve, cpu.blas, problem, x, w, bias) for _ in range(200)]
        for call in calls:
            np.testing.assert_allclose(call.result(), expected, rtol=1e-4, atol=1e-4)
    assert cpu.threads() == before


def test_one_thread_is_assumed_where_blas_does_not_tell(monkeypatch):
    monkeypatch.setattr(cpu, "_blas_libraries", lambda: SimpleNamespace(lib_controllers=[]))
    assert cpu.threads() == 1


def test_numba_waits_until_it_is_needed():
    script = "import sys, convstudy.conv.api, convstudy.nn.plain; print('numba' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_machine_code_is_kept(rng):
    import numba

    problem = PROBLEMS["1x1"]
    convolve(cpu.plain, problem, *random_arrays(problem, rng))
    folder = Path(os.environ.get("NUMBA_CACHE_DIR", paths.BUILD / "numba"))
    assert Path(numba.config.CACHE_DIR) == folder
    assert list(folder.rglob("cpu._loops-*.nbi"))
