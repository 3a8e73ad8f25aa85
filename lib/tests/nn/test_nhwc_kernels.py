# SPDX-License-Identifier: MIT
"""All kernels on NHWC arrays and of training: whose they are, their launches, their registers."""

import inspect
import math

import numpy as np
import pytest
from ptx import bound

from convstudy import compile
from convstudy.device import EMULATOR
from convstudy.nn import (
    add_nhwc,
    channels_nhwc,
    head_nhwc,
    images_nhwc,
    norm_nhwc,
    pixels,
    pool_nhwc,
    relu_nhwc,
    transpose,
    upsample_nhwc,
)
from convstudy.train import flat, loss_nhwc

MODULES = (
    *(norm_nhwc, pool_nhwc, relu_nhwc, upsample_nhwc, head_nhwc, images_nhwc),
    *(loss_nhwc, flat, transpose, add_nhwc, channels_nhwc),
)
KERNELS = [kernel for module in MODULES for kernel in module.KERNELS]

# Of U-Net's widest layer, and its batch of 16; those that need most registers, of each kernel.
LARGE, PIXELS = (16, 128, 191, 64), 16 * 128 * 191
SMALL = (1, 32, 47, 256)
RESNET = (3, 3), (2, 2), (1, 1)
LAUNCHES = [
    norm_nhwc.launch_statistics_parts(LARGE, "bfloat16", 768),
    norm_nhwc.launch_statistics(PIXELS, 64, 768),
    norm_nhwc.launch_counted_statistics(PIXELS, 64, 1536),
    norm_nhwc.launch_norm(LARGE, "bfloat16", pool=True),
    norm_nhwc.launch_norm(LARGE, "bfloat16", residual=True),
    norm_nhwc.launch_norm_dgrad_parts(LARGE, "bfloat16", 768),
    norm_nhwc.launch_norm_dgrad_parts(LARGE, "bfloat16", 768, pool=True),
    norm_nhwc.launch_norm_dgrad_parts(LARGE, "float32", 768, pool=True),
    norm_nhwc.launch_norm_dgrad_sums(PIXELS, 64, 512),
    norm_nhwc.launch_norm_dgrad(LARGE, "bfloat16"),
    norm_nhwc.launch_norm_dgrad(LARGE, "bfloat16", pool=True),
    norm_nhwc.launch_norm_whole(SMALL, "bfloat16", pool=True),
    norm_nhwc.launch_norm_dgrad_whole(SMALL, "bfloat16"),
    norm_nhwc.launch_norm_dgrad_whole(SMALL, "bfloat16", pool=True),
    pool_nhwc.launch_max_pool(LARGE, "bfloat16", *RESNET),
    pool_nhwc.launch_max_pool_dgrad(LARGE, "bfloat16", *RESNET),
    pool_nhwc.launch_average_pool(LARGE, "bfloat16"),
    pool_nhwc.launch_average_pool_dgrad(LARGE, "bfloat16"),
    pool_nhwc.launch_average_windows(LARGE, "bfloat16", 7),
    pool_nhwc.launch_average_windows_dgrad(LARGE, "bfloat16", 7),
    add_nhwc.launch_add(LARGE, "bfloat16", relu=True),
    channels_nhwc.launch_blocks(LARGE, "bfloat16", 2, (64, PIXELS * 64), (128, 64)),
    relu_nhwc.launch_relu_dgrad(LARGE, "bfloat16", add=True),
    relu_nhwc.launch_bias_wgrad_parts(LARGE, "bfloat16", 768, relu=True),
    relu_nhwc.launch_sums(512, 130, 128),
    upsample_nhwc.launch_upsample(LARGE, "bfloat16"),
    upsample_nhwc.launch_upsample_dgrad(LARGE, "bfloat16"),
    upsample_nhwc.launch_border(LARGE, "bfloat16", (128, 190)),
    head_nhwc.launch_head(LARGE, "bfloat16", 4, norm=True),
    head_nhwc.launch_head_dgrad_parts(LARGE, "bfloat16", 4, 768),
    head_nhwc.launch_head_dgrad_parts(LARGE, "float32", 32, 768),
    head_nhwc.launch_head_norm_dgrad_parts(LARGE, "bfloat16", 2, 768),
    head_nhwc.launch_head_norm_dgrad_parts(LARGE, "bfloat16", 4, 768),
    head_nhwc.launch_head_norm_dgrad_parts(LARGE, "float32", 32, 768),
    head_nhwc.launch_head_norm_dgrad(LARGE, "bfloat16", 4),
    head_nhwc.launch_mask(LARGE, 2),
    images_nhwc.launch_planes((16, 128, 191, 3), "bfloat16"),
    images_nhwc.launch_bytes((16, 128, 191, 3), "bfloat16"),
    loss_nhwc.launch_loss_parts(PIXELS, 2, 768),
    loss_nhwc.launch_loss(PIXELS, 512),
    loss_nhwc.launch_loss_dgrad(PIXELS, 2),
    loss_nhwc.launch_entropy(64, 1000, "bfloat16"),
    flat.launch_norm_parts(31_000_000, 528),
    flat.launch_begin(528),
    transpose.launch_transpose(1024, 2048, "bfloat16"),
    *(flat.launch_step(name, 31_000_000, copy=True) for name in flat.OPTIMIZERS),
]


def test_every_kernel_has_one_module_and_a_launch():
    assert len(set(KERNELS)) == len(KERNELS)
    assert {launch.kernel for launch in LAUNCHES} == set(KERNELS)


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.kernel)
def test_launches_compile_without_spills(launch):
    def compiled(arch):
        cubin = compile.cubin(launch.kernel, arch, launch.defines)
        assert (cubin.spill_bytes, cubin.stack_bytes) == (0, 0)
        assert cubin.registers * launch.threads <= 65536
        return cubin

    # What takes few registers on one chip has enough on all.
    if compiled("sm_90").registers > 64:
        compiled("sm_80")
        compiled("sm_100")
    assert bound(launch) == launch.threads


def test_launches_are_kept_but_for_the_numbers_they_depend_on():
    launch = norm_nhwc.launch_norm(LARGE, "float32")
    assert norm_nhwc.launch_norm(LARGE, "float32") is launch
    for module in MODULES:
        for name, function in inspect.getmembers(module, callable):
            if name.startswith("launch_") and function.__module__ == module.__name__:
                assert function.__doc__.startswith("Return the launch"), name


# ---- how work is shared out ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("channels", "dtype", "pitches", "vector", "lanes", "chunks"),
    [
        (64, "float32", (64, 128), 4, 8, 2),
        (64, "bfloat16", (64, 128), 8, 8, 1),
        (72, "bfloat16", (), 8, 8, 2),
        (8, "float32", (), 4, 2, 1),
        (12, "bfloat16", (), 1, 16, 1),
        (16, "bfloat16", (20,), 1, 16, 1),
        (1, "float32", (), 1, 1, 1),
        (37, "float32", (40,), 1, 32, 2),
        (12, "float32", (), 4, 4, 1),
    ],
)
def test_vectors_where_channels_and_pitches_allow(channels, dtype, pitches, vector, lanes, chunks):
    found = pixels.share("test", channels, dtype, *pitches)
    assert (found.vector, found.lanes, found.chunks) == (vector, lanes, chunks)
    assert found.rows * found.lanes == found.threads


@pytest.mark.parametrize("channels", [3, 64, 1024])
@pytest.mark.parametrize("count", [1, 88, 24_448, 391_168])
def test_parts_fill_a_device_and_no_more(count, channels):
    for dtype in ("float32", "bfloat16"):
        rows = pixels.part_rows(count, channels, dtype, EMULATOR)
        chunks = pixels.share("test", channels, dtype).chunks
        blocks = -(-count // rows) * chunks
        assert blocks <= max(4 * EMULATOR.sm_count, chunks)
        # A part is as small as it may be, or there are as many as were wanted.
        least = pixels.share("test", channels, dtype).rows
        assert rows == least or 2 * blocks > 4 * EMULATOR.sm_count


def test_a_grid_is_as_large_as_it_must_be():
    """Of fp32, a block does 32 pixels of 32 channels at once, 4 times; or 32 windows."""
    shape = (1, 16, 8, 64)
    assert norm_nhwc.launch_norm(shape, "float32").grid == (2,)
    assert norm_nhwc.launch_norm((1, 3, 43, 64), "float32").grid == (2 * 2,)
    assert norm_nhwc.launch_norm(shape, "float32", pool=True).grid == (2,)
    assert norm_nhwc.launch_norm((1, 15, 9, 64), "float32", pool=True).grid == (2 * 2,)
    assert norm_nhwc.launch_statistics_parts(shape, "float32", 100).grid == (2 * 2,)
    assert norm_nhwc.launch_statistics(128, 64, 100).grid == (8,)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100, 12_000])
def test_parts_are_put_together_by_whole_warps(count):
    for channels in (1, 3, 8, 100):
        found = pixels.share_parts("test", channels, count)
        assert found.threads % 32 == 0
        assert found.threads <= 1024
        assert found.rows >= min(count, 1024 // found.lanes)


def test_a_slice_begins_at_its_channel():
    wide = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    own = pixels.from_channel(wide, 2)
    assert own[0] == wide[0, 0, 0, 2]
    assert own[6] == wide[0, 0, 1, 2]
    assert np.shares_memory(own, wide)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (33, 97), (32, 64), (7, 70)])
def test_a_transpose_is_one(shape, dtype, rng):
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    y = np.full(shape[::-1], np.nan, dtype)
    transpose.launch_transpose(*shape, dtype).run(EMULATOR, (x, y))
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("c", "before"), [(8, 0), (8, 8), (3, 2)])
def test_channels_of_ranks_are_put_together_and_apart(c, before, dtype, rng):
    """Each rank has some channels more, of an array that was joined before this one."""
    ranks, shape = 3, (2, 5, 7)
    blocks = rng.standard_normal((ranks, *shape, before + c), np.float32).astype(dtype)
    apart = before + c, math.prod(shape) * (before + c)
    joined = ranks * c, c
    whole = np.full((*shape, ranks * c), np.nan, dtype)
    launch = channels_nhwc.launch_blocks((*shape, c), dtype, ranks, apart, joined)
    launch.run(EMULATOR, (pixels.from_channel(blocks, before), whole))
    np.testing.assert_array_equal(whole, np.concatenate(list(blocks[..., before:]), axis=-1))
    back = np.full_like(blocks, np.nan)
    launch = channels_nhwc.launch_blocks((*shape, c), dtype, ranks, joined, apart)
    launch.run(EMULATOR, (whole, pixels.from_channel(back, before)))
    np.testing.assert_array_equal(back[..., before:], blocks[..., before:])
    assert np.isnan(back[..., :before].astype(np.float32)).all()
