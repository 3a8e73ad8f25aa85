# SPDX-License-Identifier: MIT
"""The convolutions of few input channels, all three passes, against float64; and their refusals."""

import dataclasses
import re

import numpy as np
import pytest
from chips import ONE_SM
from problems import UNET_PROBLEMS, random_arrays
from test_gemm import ALL, PASSES, check, gradient, of, operands, run_kernel

from convstudy import compile, device
from convstudy.conv import algorithm, direct
from convstudy.device import EMULATOR
from convstudy.problem import ConvProblem

KERNELS = {which: f"conv2d_{which}_9_direct" for which in PASSES}
FEW = {title: problem for title, problem in ALL.items() if problem.c <= 4}
# Every number of channels and every filter's size, tiles that are not full, more than a round.
EDGES = {
    "a filter and a channel": ConvProblem(2, 1, 9, 21, 1, 3, 3, padding=(1, 1)),
    "two channels, 1x1": ConvProblem(1, 2, 10, 35, 66, 1, 1),
    "1x1, stride 2": ConvProblem(1, 3, 9, 37, 8, 1, 1, (2, 2)),
    "four channels, more than 64 filters": ConvProblem(1, 4, 7, 18, 68, 3, 3, padding=(1, 1)),
    "three rounds of filters, and one left": ConvProblem(1, 3, 5, 9, 129, 3, 3, padding=(1, 1)),
    "5x5": ConvProblem(2, 3, 9, 12, 12, 5, 5, padding=(2, 2)),
    "5x5 of one channel, stride 2": ConvProblem(1, 1, 14, 23, 5, 5, 5, (2, 2), (2, 2)),
    "7x7 of four channels": ConvProblem(1, 4, 9, 13, 8, 7, 7, padding=(3, 3)),
    "7x7 of one channel": ConvProblem(1, 1, 12, 40, 4, 7, 7, padding=(3, 3)),
    "stride 3 down, 4 across": ConvProblem(2, 1, 17, 41, 6, 3, 5, (3, 4), (1, 3)),
    "strides beyond the filter": ConvProblem(1, 2, 13, 22, 4, 2, 1, (3, 2)),
    "two tiles across, several down": ConvProblem(1, 3, 19, 130, 4, 3, 3, padding=(1, 1)),
    "a pixel": ConvProblem(1, 3, 1, 1, 64, 3, 3, padding=(1, 1)),
}
PROBLEMS = {**FEW, **EDGES}


@pytest.mark.parametrize("where", [EMULATOR, ONE_SM], ids=["many", "one"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("title", PROBLEMS)
def test_kernels_on_the_emulator_agree_with_float64(title, which, where, rng):
    check(KERNELS[which], PROBLEMS[title], "fp32", where, rng)


BF16 = {title: EDGES[title] for title in ("two channels, 1x1", "5x5", "strides beyond the filter")}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("title", [*BF16, "three rounds of filters, and one left", "1x1, stride 2"])
def test_bf16_is_fp32_rounded_once(title, which, rng):
    check(KERNELS[which], EDGES[title], "bf16", EMULATOR, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("title", [*PROBLEMS, *UNET_PROBLEMS])
def test_kernels_on_the_gpu_agree_with_float64(title, which, precision, rng):
    problem = {**PROBLEMS, **UNET_PROBLEMS}[title]
    if problem.c > 4:
        pytest.skip("it has more channels than these kernels take")
    check(KERNELS[which], problem, precision, device.get_device(), rng)


@pytest.mark.gpu
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("title", EDGES)
def test_emulator_gives_the_bits_of_the_gpu(title, which, rng):
    problem = EDGES[title]
    arrays = *random_arrays(problem, rng), gradient(problem, rng)
    gpu = device.get_device()
    like_gpu = dataclasses.replace(EMULATOR, sm_count=gpu.sm_count)
    emulated, real = (
        run_kernel(KERNELS[which], of(problem, "fp32"), arrays, where) for where in (like_gpu, gpu)
    )
    np.testing.assert_array_equal(emulated, real, strict=True)


def plan(which, problem, where=EMULATOR):
    return algorithm.plan(KERNELS[which], of(problem, "fp32"), where)


def test_what_a_plan_can_be_is_among_what_is_tested():
    found = [
        (which, plan(which, problem, where))
        for which in PASSES
        for problem in PROBLEMS.values()
        for where in (EMULATOR, ONE_SM)
    ]
    constants = [(which, dict(launch.defines)) for which, launch in found]
    assert {(w, d["VECTOR"]) for w, d in constants} == {(w, v) for w in PASSES for v in (1, 4)}
    assert {d["WARPS"] for w, d in constants if w == "fprop"} == {2, 4}
    assert {d["STEPS"] for w, d in constants if w == "wgrad"} == {2, 4}
    assert any(w == "wgrad" and d["ROWS"] < d["FILTER_R"] for w, d in constants)
    # Sums in one step, in two, and none; filters in one round and in more.
    steps = {w: {len(getattr(p, "steps", "1")) for v, p in found if v == w} for w in PASSES}
    assert steps == {"fprop": {1}, "dgrad": {1, 2, 3}, "wgrad": {1, 2, 3}}
    # Tiles of a block, lines of a block.
    assert max(p.scalars[-1] for w, p in found if w == "fprop") > 1
    assert max(p.scalars[-2] for w, p in found if w == "dgrad") > 1


@pytest.mark.parametrize("which", PASSES)
def test_a_vector_from_shared_memory_serves_16_products(which, rng):
    problem = ConvProblem(1, 3, 8, 64, 64, 3, 3, padding=(1, 1))
    arrays = *random_arrays(problem, rng), gradient(problem, rng)
    out = {"fprop": problem.y_shape, "dgrad": problem.x_shape, "wgrad": problem.w_shape}[which]
    result = np.empty(out, np.float32)
    counts = plan(which, problem, ONE_SM).run(EMULATOR, (*operands(which, *arrays), result))
    assert counts.shared_loads < problem.macs / 16


@pytest.mark.parametrize("which", PASSES)
def test_auto_takes_them_where_channels_are_few(which):
    first = UNET_PROBLEMS["first layer"]
    for precision in ("fp32", "tf32", "bf16"):
        assert algorithm.choose(of(first, precision), EMULATOR, which) == KERNELS[which]
    for other in (of(UNET_PROBLEMS["wide"], "fp32"), first):
        if which == "fprop" or other is not first:
            assert algorithm.choose(other, EMULATOR, which) != KERNELS[which]


OLD = dataclasses.replace(EMULATOR, compute_capability=(7, 5), name="an old GPU")
SMALL = dataclasses.replace(EMULATOR, shared_bytes_per_block=16 * 1024)
FIRST = UNET_PROBLEMS["first layer"]
REFUSED = {
    "channels": (
        {"c": 5},
        EMULATOR,
        PASSES,
        r"at most 4 input channels; C=5: use conv2d_\w+_8_mma",
    ),
    "a wide filter": ({"s": 11}, EMULATOR, PASSES, "S C=33 weights and a thread holds at most 28"),
    "an old GPU": ({}, OLD, PASSES, r"cp.async \(sm_80 or later\); an old GPU is older"),
    "little room": ({"r": 9}, SMALL, PASSES, r"a block needs \d+ bytes of shared memory and has"),
    "a tall filter": (
        {"r": 60, "h": 99},
        EMULATOR,
        ("dgrad",),
        r"a block needs \d+ bytes of shared memory and has 232448; use conv2d_dgrad_8_mma",
    ),
    "a stride of three": ({"stride": (1, 3)}, EMULATOR, ("dgrad",), "3 along W does not divide 4"),
    "a large stride": (
        {"stride": (1, 8)},
        EMULATOR,
        ("fprop",),
        "too long at a stride of 8 along W; use conv2d_fprop_8_mma",
    ),
    "a huge stride": ({"stride": (1, 16)}, EMULATOR, ("wgrad",), "too long at a stride of 16"),
    "many images": ({"n": 2**25}, EMULATOR, PASSES, "more than 2.31 - 1 blocks; cut the batch"),
    "a huge image": ({"h": 2**16, "w": 2**15 - 1}, EMULATOR, PASSES, "2.31 numbers or more"),
    "NCHW": ({"layout": "NCHW"}, EMULATOR, PASSES, "it takes NHWC; the arrays are NCHW"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_they_cannot_do_is_refused_in_words(title):
    changes, where, passes, message = REFUSED[title]
    problem = dataclasses.replace(of(FIRST, "fp32"), **changes)
    for which in passes:
        ok, reason = algorithm.ALGORITHMS[KERNELS[which]].supports(problem, where)
        assert not ok
        assert re.search(message, reason)
        with pytest.raises(ValueError, match=message):
            algorithm.plan(KERNELS[which], problem, where)


# U-Net's, ResNet's, and what holds most in registers or least.
COMPILED = {
    **{f"{n} images": FIRST.with_batch(n) for n in (1, 16)},
    "ResNet": UNET_PROBLEMS["224, stride 2"],
    "four channels": ConvProblem(16, 4, 128, 191, 64, 3, 3, padding=(1, 1)),
    "7x7 of four channels": ConvProblem(16, 4, 128, 191, 64, 7, 7, padding=(3, 3)),
    "single numbers": ConvProblem(16, 3, 128, 191, 65, 3, 3, padding=(1, 1)),
    "a line of 92": ConvProblem(16, 4, 128, 191, 64, 3, 2, (2, 3)),
    "5x5 of one channel": ConvProblem(16, 1, 128, 191, 64, 5, 5, (2, 2), (2, 2)),
}


@pytest.mark.parametrize("arch", compile.ARCHITECTURES)
@pytest.mark.parametrize("which", PASSES)
def test_every_plan_compiles_without_spills(which, arch):
    takes = [
        p for p in COMPILED.values() if direct.supports(KERNELS[which], of(p, "fp32"), EMULATOR)[0]
    ]
    for constants in {plan(which, p).defines for p in takes}:
        cubin = compile.cubin(KERNELS[which], arch, constants)
        assert (cubin.spill_bytes, cubin.stack_bytes) == (0, 0), constants
