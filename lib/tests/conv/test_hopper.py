# SPDX-License-Identifier: MIT
"""Rungs 10 and 11: who is refused, how they are cut, their results, and faults planted in them."""

import dataclasses

import numpy as np
import pytest
from chips import H200, ONE_SM
from problems import UNET_PROBLEMS
from test_gemm import PASSES, check, of

from convstudy import compile, device, emulator, tolerance
from convstudy.conv import algorithm, gemm, halo, hopper, reference, windows
from convstudy.conv.epilogue import Epilogue, Source
from convstudy.device import EMULATOR
from convstudy.measure.suites.network import unet
from convstudy.problem import ConvProblem

KERNELS = [row.id for row in algorithm.ALGORITHMS.values() if row.id.endswith(("_wgmma", "_halo"))]
PRECISIONS = ("fp32", "tf32", "bf16")
# Channels in whole lines; tiles that are not full, rows of tiles that wrap, images that follow.
PROBLEMS = {
    "two images": ConvProblem(2, 64, 9, 13, 64, 3, 3, padding=(1, 1)),
    "long sums, few pixels": ConvProblem(1, 512, 5, 7, 128, 3, 3, padding=(1, 1)),
    "channels that fill no tile": ConvProblem(1, 192, 17, 19, 320, 3, 3, padding=(1, 1)),
    "1x1": ConvProblem(3, 64, 7, 8, 128, 1, 1),
    "5x5, padded unevenly": ConvProblem(1, 64, 18, 33, 64, 5, 5, padding=(2, 1)),
    "7x7": ConvProblem(1, 64, 21, 16, 64, 7, 7, padding=(3, 3)),
    "2x4, not padded": ConvProblem(2, 64, 19, 20, 64, 2, 4),
    "stride 2": ConvProblem(2, 64, 16, 23, 64, 3, 3, (2, 2), (1, 1)),
    "stride 3 down alone": ConvProblem(1, 64, 20, 9, 128, 3, 3, (3, 1), (1, 1)),
    "filters that are no whole line": ConvProblem(2, 64, 6, 7, 40, 1, 1),
    "six pixels": ConvProblem(1, 64, 2, 3, 64, 3, 3, padding=(1, 1)),
}


def family(kernel):
    if kernel == "conv2d_wgrad_11_halo":
        return windows
    return halo if kernel.endswith("_halo") else hopper


def which(kernel):
    return kernel.split("_")[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("title", [*PROBLEMS, *UNET_PROBLEMS])
def test_kernels_on_the_gpu_agree_with_float64(title, kernel, precision, rng):
    problem, gpu = {**PROBLEMS, **UNET_PROBLEMS}[title], device.get_device()
    ok, reason = algorithm.get_algorithm(kernel).supports(of(problem, precision), gpu)
    if not ok:
        pytest.skip(reason)
    check(kernel, problem, precision, gpu, rng)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_on_the_emulator_agree_with_float64(kernel, precision, rng):
    problem = PROBLEMS["two images" if family(kernel) is windows else "2x4, not padded"]
    ok, reason = algorithm.get_algorithm(kernel).supports(of(problem, precision), EMULATOR)
    if ok:
        check(kernel, problem, precision, EMULATOR, rng)
    else:
        assert kernel.endswith("_halo"), reason
        assert precision == "fp32", reason


def wide(kernel):
    """Return a problem whose columns, or rows, fill no tile."""
    c, k = {"fprop": (64, 192), "dgrad": (192, 64), "wgrad": (64, 64)}[which(kernel)]
    return ConvProblem(1, c, 9, 17, k, 3, 3, padding=(1, 1))


def some_choices(kernel, precision):
    """Return a part of all tiles, another for each kernel and precision, whole or split."""
    found = family(kernel).choices(kernel, of(wide(kernel), precision), ONE_SM)
    first = KERNELS.index(kernel) + PRECISIONS.index(precision)
    if family(kernel) is halo:
        return found[first % 2 :: 2]
    if family(kernel) is windows:
        return [windows.Choice(3, 64), windows.Choice(1, 128, 3)][:: 1 - 2 * (first % 2)]
    tiles = list(dict.fromkeys(choice.tile for choice in found))
    tiles = tiles[first % 4 :: 4] + [tile for tile in tiles if tile.turns]
    return [hopper.Choice(tile, 1 + 3 * ((first + i) % 2)) for i, tile in enumerate(tiles)]


CHOSEN = [
    (kernel, precision, choice)
    for kernel in KERNELS
    for precision in PRECISIONS[kernel.endswith("_halo") :]
    for choice in some_choices(kernel, precision)
]


def run_choice(kernel, problem, precision, choice, where, rng, monkeypatch):
    planned = family(kernel).plan(kernel, of(problem, precision), where, choice)
    monkeypatch.setattr("convstudy.conv.api.plan", lambda *_: planned)
    check(kernel, problem, precision, where, rng)


@pytest.mark.parametrize(("kernel", "precision", "choice"), CHOSEN)
def test_tiles_and_splits_on_the_emulator_give_the_right_result(
    kernel, precision, choice, rng, monkeypatch
):
    run_choice(kernel, wide(kernel), precision, choice, ONE_SM, rng, monkeypatch)


def test_every_tile_is_among_those_tried_on_the_emulator():
    tried = {choice[0] for kernel, _, choice in CHOSEN if family(kernel) is hopper}
    all_tiles = {*hopper._TILES_SPLIT, *hopper._TILES_WHOLE}
    usual = {dataclasses.replace(tile, filters_first=False, turns=False) for tile in tried}
    assert usual == all_tiles
    assert any(tile.filters_first for tile in tried)
    assert any(tile.turns for tile in tried)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_choice_gives_the_right_result(kernel, precision, rng, monkeypatch):
    gpu = device.get_device()
    problem = PROBLEMS["channels that fill no tile"]
    exact = of(problem, precision)
    if not algorithm.get_algorithm(kernel).supports(exact, gpu)[0]:
        pytest.skip("it refuses this precision, or this GPU")
    for choice in family(kernel).choices(kernel, exact, gpu):
        run_choice(kernel, problem, precision, choice, gpu, rng, monkeypatch)


# ---- sums shared evenly --------------------------------------------------------------------------
def streamed(kernel, problem, precision, sm_count):
    """Return a device of so few multiprocessors, and the choices that share sums evenly on it."""
    where = dataclasses.replace(EMULATOR, sm_count=sm_count, name="a few multiprocessors")
    choices = hopper.choices(kernel, of(problem, precision), where)
    return where, [choice for choice in choices if choice.rounds is not None]


# Runs that begin and end within tiles; a tile that three or more have parts of; one round or two
# of whole tiles before.
@pytest.mark.parametrize("sm_count", [2, 3, 7])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", PASSES)
def test_blocks_may_share_sums_evenly(which, precision, sm_count, rng, monkeypatch):
    kernel = f"conv2d_{which}_10_wgmma"
    problem = ConvProblem(2, 64, 11, 13, 192, 3, 3, padding=(1, 1))
    where, choices = streamed(kernel, problem, precision, sm_count)
    first = PRECISIONS.index(precision) + PASSES.index(which)
    for choice in choices[first % 4 :: 4]:
        run_choice(kernel, problem, precision, choice, where, rng, monkeypatch)


def test_all_kinds_of_rounds_are_tried():
    rounds = {
        choice.rounds
        for which in PASSES
        for count in (2, 3, 7)
        for choice in streamed(
            f"conv2d_{which}_10_wgmma",
            ConvProblem(2, 64, 11, 13, 192, 3, 3, padding=(1, 1)),
            "bf16",
            count,
        )[1]
    }
    assert rounds >= {0, 1, 2}


def shared_out(rng):
    """Return a plan whose blocks hand sums on, what it is given, and what it is to give."""
    kernel, problem = "conv2d_wgrad_10_wgmma", ConvProblem(4, 64, 23, 25, 64, 3, 3, padding=(1, 1))
    exact = of(problem, "bf16")
    where, choices = streamed(kernel, problem, "bf16", 7)
    launch = hopper.plan(kernel, exact, where, choices[0])
    x, dy = (
        rng.standard_normal((4, 23, 25, 64)).astype(np.float32).astype(exact.dtype)
        for _ in range(2)
    )
    moved = (np.moveaxis(each.astype(float), 3, 1) for each in (x, dy))
    expected = np.moveaxis(reference.conv2d_wgrad(*moved, (3, 3), (1, 1), (1, 1)), 1, 3)
    return where, launch, [x, dy], expected


def test_flags_are_left_as_they_were_found(rng):
    where, launch, given, expected = shared_out(rng)
    sums, flags = (np.full(shape, np.nan, np.float32) for shape in launch.temporaries)
    assert launch.zeros == (1,)
    flags[...] = 0
    for _ in range(2):  # the second finds what the first has left
        dw = np.full(expected.shape, np.nan, given[0].dtype)
        arrays = [*given, dw, sums, flags]
        for step, places in launch.steps:
            step.run(where, [None if i is None else arrays[i] for i in places])
        tolerance.assert_close(dw, expected, 2300, dtype=np.float32, precision="bf16")
        assert not flags.any()


HANDED_ON = {
    "sums taken before they are there": ("await(flag(--block))", "--block", emulator.GlobalRace),
    "sums of which nobody is told": ("publish(flag(", "(void)(flag(", emulator.EmulatorFault),
    "sums told of before other lanes wrote": (
        "__syncwarp();\n        if (threadIdx.x % 32 == 0) publish",
        "if (threadIdx.x % 32 == 0) publish",
        emulator.GlobalRace,
    ),
    "sums of the nearest block alone": (
        "while (items.run_of(block) > start)",
        "if (items.run_of(block) > start)",
        AssertionError,
    ),
    "a tile that its last block does not end": (
        "if (item.first) slots.take(items, sums);",
        "",
        AssertionError,
    ),
}


@pytest.mark.parametrize("title", HANDED_ON)
def test_a_fault_planted_where_sums_are_handed_on_is_found(title, rng, monkeypatch):
    old, new, error = HANDED_ON[title]
    whole = compile.source

    def faulty(name, defines=()):
        text = whole(name, defines)
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(compile, "source", faulty)
    compile._on_emulator.cache_clear()
    where, launch, given, expected = shared_out(rng)
    dw = np.full(expected.shape, np.nan, given[0].dtype)

    def run():
        launch.run(where, [*given, dw])
        tolerance.assert_close(dw, expected, 2300, dtype=np.float32, precision="bf16")

    with pytest.raises(error):
        run()
    compile._on_emulator.cache_clear()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", PASSES)
def test_sharing_evenly_spills_no_register(which, precision):
    kernel, texts = f"conv2d_{which}_10_wgmma", {}
    for _, problem in unet().layers(128, 191, 16)[1:]:
        problem = of(problem, precision)
        for choice in hopper.choices(kernel, problem, H200):
            if choice.rounds is not None:
                part = hopper.plan(kernel, problem, H200, choice).main_launch
                texts.setdefault(choice.tile, part.defines)
    first = PASSES.index(which) + PRECISIONS.index(precision)
    for defines in list(texts.values())[first % 3 :: 3]:
        assert compile.cubin(kernel, "sm_90", defines).spill_bytes == 0


# ---- windows, backwards to the filters -----------------------------------------------------------
# Lines shorter than a tile, as long, and a little longer; filters that fill no tile; padding that
# is none, or is not the same both ways.
@pytest.mark.parametrize(
    "problem",
    [
        ConvProblem(2, 64, 3, 5, 64, 3, 3, padding=(1, 1)),
        ConvProblem(1, 64, 4, 64, 192, 3, 3, padding=(1, 1)),
        ConvProblem(1, 128, 3, 67, 128, 3, 3, padding=(0, 2)),
        ConvProblem(3, 64, 5, 35, 64, 3, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_windows_end_with_their_lines(problem, precision, rng, monkeypatch):
    for choice in (windows.Choice(3, 64, 2), windows.Choice(1, 128)):
        run_choice("conv2d_wgrad_11_halo", problem, precision, choice, ONE_SM, rng, monkeypatch)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_windows_may_be_of_a_wider_array(precision, rng):
    problem = of(ConvProblem(2, 64, 4, 7, 64, 3, 3, padding=(1, 1)), precision)
    wider = rng.standard_normal((2, 5, 9, 160), dtype=np.float32).astype(problem.dtype)
    x, dy = wider[:, :4, 1:8, 32:96], rng.standard_normal((2, 4, 7, 64), dtype=np.float32)
    epilogue = Epilogue(source=Source(160, 9 * 160, 5 * 9 * 160))
    launch = windows.plan("conv2d_wgrad_11_halo", problem, ONE_SM, epilogue=epilogue)
    first = wider.reshape(-1)[160 + 32 :]
    dw = np.full((64, 3, 3, 64), np.nan, np.float32).astype(problem.dtype)
    launch.run(ONE_SM, [first, dy.astype(problem.dtype), dw])
    moved = (np.moveaxis(a.astype(problem.dtype).astype(float), 3, 1) for a in (x, dy))
    expected = np.moveaxis(reference.conv2d_wgrad(*moved, (3, 3), (1, 1), (1, 1)), 1, 3)
    tolerance.assert_close(dw, expected, 56, dtype=np.float32, precision=precision)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"r": 5, "s": 5}, "the filter is 5 x 5"),
        ({"stride": (1, 2)}, "neighbouring outputs"),
        ({"c": 96}, "C=96 is no multiple"),
    ],
)
def test_windows_refuse_with_a_reason(change, reason):
    problem = of(dataclasses.replace(PROBLEMS["two images"], **change), "tf32")
    ok, why = algorithm.get_algorithm("conv2d_wgrad_11_halo").supports(problem, EMULATOR)
    assert not ok
    assert reason in why


@pytest.mark.parametrize("splits", [3, 16, 64])
@pytest.mark.parametrize("size", [70, 1024])
def test_groups_of_threads_add_parts_up(size, splits, rng):
    parts = rng.standard_normal((splits, size), dtype=np.float32)
    total = np.full(size, np.nan, np.float32)
    launch = gemm.total(size, splits, size, of(PROBLEMS["1x1"], "fp32"))
    assert dict(launch.defines).get("GROUPS", 1) == {3: 1, 16: 4, 64: 8}[splits]
    launch.run(EMULATOR, [parts, None, total])
    np.testing.assert_allclose(total, parts.astype(float).sum(0), atol=1e-4)


# What is taken away from a kernel, what stands there instead, and how the emulator finds it.
FULL = "barrier_wait(full(turn.stage), turn.parity);"
EMPTY = "barrier_wait(empty(turn.stage), turn.parity ^ 1);"
PATCH_FULL = "barrier_wait(patch_full(patches.stage), patches.parity);"
PATCH_EMPTY = "barrier_wait(patch_empty(patches.stage), patches.parity ^ 1);"
RACE = emulator.SharedRace
TOO_SOON = (RACE, emulator.UninitialisedShared)
RELEASE = "    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);"
FAULTS = {
    "a stage multiplied before it is full": ("bf16", FULL, "", TOO_SOON),
    "a stage read before it is full": ("fp32", FULL, "", TOO_SOON),
    "a stage overwritten before it was multiplied": ("bf16", EMPTY, "", RACE),
    "a stage overwritten before it was read": ("fp32", EMPTY, "", RACE),
    "a stage given back while multiplied": ("bf16", "wgmma_wait<1>", "wgmma_wait<2>", RACE),
    "a stage given back while others read": ("fp32", f"__syncwarp();\n{RELEASE}", RELEASE, RACE),
    "a stage given back by three warps": ("bf16", "stage), SHARING * 4", "stage), 3", RACE),
    "bytes that do not come": ("bf16", "stage), STAGE)", "stage), STAGE + 128)", emulator.Deadlock),
    "barriers unknown to the TMA": ("bf16", "barrier_init_done();", "", emulator.EmulatorFault),
    "barriers unknown to others": ("bf16", "#endif\n    __syncthreads();", "#endif", RACE),
    "products without a fence": ("bf16", "wgmma_fence();", "", emulator.EmulatorFault),
    "sums stored before they are there": ("bf16", "wgmma_wait<0>();", "", AssertionError),
    "lines stored before exchanged": (
        "bf16",
        "__syncwarp();\n            const size_t",
        "const size_t",
        RACE,
    ),
    "lines exchanged before stored": ("fp32", "__syncwarp();\n        }", "}", RACE),
    "a patch multiplied before it is full": ("halo", PATCH_FULL, "", RACE),
    "a patch overwritten before it was multiplied": ("halo", PATCH_EMPTY, "", RACE),
    "a window read before it is full": ("windows", FULL, "", TOO_SOON),
    "a window given back while it is read": (
        "windows",
        "wgmma_wait<0>();\n            sums.keep();\n            release(empty(turn.stage));",
        "release(empty(turn.stage));\n            wgmma_wait<0>();\n            sums.keep();",
        RACE,
    ),
    "pixels overwritten while they are multiplied": (
        "windows",
        "if (next >= AHEAD) wgmma_wait<AHEAD - 1>();",
        "",
        AssertionError,
    ),
    "columns multiplied before they are turned": (
        "windows",
        "if (TURNERS) barrier_wait(turned(turn.stage), turn.parity);",
        "",
        RACE,
    ),
    "columns turned with no fence behind": (
        "windows",
        "shared_fence();",
        "",
        emulator.EmulatorFault,
    ),
    "squares overwritten before they are read": (
        "windows",
        "__syncwarp();  // all",
        "// all",
        RACE,
    ),
    "a tap that reads another's pixels": ("windows", "% 4 + tap % S;", "% 4;", AssertionError),
    "a line of dy that runs on into the next": (
        "windows",
        "(Q - 1) / TILE_D + 1",
        "Q / TILE_D",
        AssertionError,
    ),
}


@pytest.mark.parametrize("title", FAULTS)
def test_a_fault_planted_in_a_kernel_is_found(title, rng, monkeypatch):
    precision, old, new, error = FAULTS[title]
    kernel, problem = "conv2d_fprop_10_wgmma", PROBLEMS["two images"]
    if precision == "halo":
        # One tap, so that patches follow as fast as filters do; several go round.
        kernel, precision = "conv2d_fprop_11_halo", "bf16"
        problem = ConvProblem(1, 320, 5, 7, 64, 1, 1)
    elif precision == "windows":
        kernel, precision = "conv2d_wgrad_11_halo", "tf32"
        problem = ConvProblem(2, 64, 9, 36, 64, 3, 3, padding=(1, 1))
    whole = compile.source

    def faulty(name, defines=()):
        text = whole(name, defines)
        assert name != kernel or old in text
        return text.replace(old, new) if name == kernel else text

    monkeypatch.setattr(compile, "source", faulty)
    compile._on_emulator.cache_clear()
    with pytest.raises(error):
        check(kernel, problem, precision, EMULATOR, rng)
    compile._on_emulator.cache_clear()


@pytest.mark.parametrize(
    ("change", "kernel", "reason"),
    [
        ({"c": 48}, "conv2d_fprop_10_wgmma", "C=48 is no multiple"),
        ({"k": 80}, "conv2d_wgrad_10_wgmma", "K=80 is no multiple"),
        ({"stride": (2, 1)}, "conv2d_dgrad_10_wgmma", r"the stride is \(2, 1\)"),
        ({"padding": (3, 1)}, "conv2d_dgrad_10_wgmma", "more than the filter reaches"),
        ({"stride": (9, 9)}, "conv2d_fprop_10_wgmma", "larger than the TMA walks"),
        ({"n": 2**20, "h": 64, "w": 64}, "conv2d_fprop_10_wgmma", "cut the batch"),
        ({"stride": (2, 2)}, "conv2d_fprop_11_halo", "neighbouring outputs"),
        ({"r": 17, "s": 17, "padding": (8, 8)}, "conv2d_fprop_11_halo", "does not fit"),
        ({"layout": "NCHW"}, "conv2d_fprop_10_wgmma", "it takes NHWC"),
    ],
)
def test_a_refusal_says_why(change, kernel, reason):
    problem = of(ConvProblem(1, 64, 40, 40, 64, 3, 3, padding=(1, 1)), "tf32")
    problem = dataclasses.replace(problem, **change)
    with pytest.raises(ValueError, match=reason):
        algorithm.plan(kernel, problem, H200)


@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_gpus_are_refused(kernel, capability):
    other = dataclasses.replace(H200, compute_capability=capability, name="another GPU")
    problem = of(PROBLEMS["two images"], "tf32")
    assert algorithm.get_algorithm(kernel).supports(problem, other) == (
        False,
        "it needs Hopper's wgmma (compute capability 9.0); another GPU has none",
    )


def test_patches_are_not_for_fp32():
    problem = of(PROBLEMS["two images"], "fp32")
    ok, reason = algorithm.get_algorithm("conv2d_fprop_11_halo").supports(problem, H200)
    assert not ok
    assert "use tf32" in reason


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_chosen_fits_the_gpu(kernel, precision):
    for n in (1, 16):
        for _, problem in unet().layers(128, 191, n):
            problem = of(problem, precision)
            if not algorithm.get_algorithm(kernel).supports(problem, H200)[0]:
                continue
            for choice in family(kernel).choices(kernel, problem, H200):
                main = family(kernel).plan(kernel, problem, H200, choice).main_launch
                defines = dict(main.defines)
                assert defines["STAGES"] >= 2
                assert main.shared_bytes <= H200.shared_bytes_per_block
                assert 1 <= main.grid[0] <= 132 * defines.get("BLOCKS_PER_SM", 1)
                assert main.grid[0] % defines.get("CLUSTER", 1) == 0
                assert main.threads <= 1024


def test_auto_takes_the_kernel_that_costs_least():
    layers = dict(unet().layers(128, 191, 16))
    narrow, deep = (of(layers[name], "bf16") for name in ("enc0b", "enc4b"))
    assert algorithm.choose(narrow, H200) == "conv2d_fprop_11_halo"
    assert algorithm.choose(deep, H200) == "conv2d_fprop_10_wgmma"
    assert algorithm.choose(of(layers["enc0a"], "fp32"), H200) == "conv2d_fprop_9_direct"
    assert algorithm.choose(of(layers["enc0a"], "bf16"), H200) == "conv2d_fprop_9_direct"
    older = dataclasses.replace(H200, compute_capability=(8, 0))
    assert algorithm.choose(deep, older) == "conv2d_fprop_8_mma"
    text = algorithm.explain(deep, H200)
    assert "conv2d_fprop_10_wgmma: warpgroups, fed by the tensor memory accelerator; chosen" in text
    assert "conv2d_fprop_11_halo" in text
    assert "; possible" in text


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_chosen_compiles_without_spills(kernel, precision):
    texts = set()
    for _, problem in unet().layers(128, 191, 16):
        problem = of(problem, precision)
        if algorithm.get_algorithm(kernel).supports(problem, H200)[0]:
            planned = algorithm.plan(kernel, problem, H200)
            texts |= {(part.kernel, part.defines) for part in planned.all_launches}
    for text, defines in sorted(texts):
        assert compile.cubin(text, "sm_90", defines).spill_bytes == 0


def test_passes_that_turn_filters_or_pixels_say_so_in_steps():
    problem = PROBLEMS["two images"]
    steps = {
        (w, precision): [
            part.kernel
            for part in algorithm.plan(
                f"conv2d_{w}_10_wgmma", of(problem, precision), H200
            ).all_launches
        ]
        for w in PASSES
        for precision in PRECISIONS
    }
    assert steps["fprop", "fp32"][0] == "conv2d_operand_1_split"
    assert steps["wgrad", "fp32"][0] == "conv2d_operand_1_split"
    for w in PASSES:
        assert steps[w, "bf16"][0] == f"conv2d_{w}_10_wgmma"
    assert steps["fprop", "tf32"][0] == "conv2d_fprop_10_wgmma"
    wgrad = "conv2d_wgrad_10_wgmma", of(problem, "tf32"), H200
    for choice in hopper.choices(*wgrad):
        before = hopper.plan(*wgrad, choice).all_launches[0].kernel == "conv2d_operand_1_split"
        assert before != choice.tile.turns
