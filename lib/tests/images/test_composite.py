# SPDX-License-Identifier: MIT
"""Composites are the same every time, keep their splits apart, and have exact masks."""

import numpy as np
import pytest
from PIL import Image

from convstudy.images import CompositeSet, composite, load_sample, manifest


def test_a_composite_depends_on_seed_split_and_index_alone():
    one, two = CompositeSet("train", 9, seed=3), CompositeSet("train", 5, seed=3)
    two[4]  # out of order
    for index in (0, 3):
        for a, b in zip(one[index], two[index], strict=True):
            assert np.array_equal(a, b)
    others = [one[1], CompositeSet("train", 9, seed=4)[0], CompositeSet("held-out", 9, seed=3)[0]]
    assert not any(np.array_equal(one[0][0], image) for image, _ in others)


@pytest.mark.parametrize(("height", "width"), [(128, 191), (37, 50), (64, 20)])
def test_shapes_types_and_range(height, width):
    pairs = CompositeSet("held-out", 4, height, width)
    images, masks = pairs.batch([3, 0, -1])
    assert images.shape == (3, 3, height, width)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert masks.shape == (3, height, width)
    assert masks.dtype == np.uint8
    assert 0 <= images.min() < 0.5 < images.max() <= 1
    assert np.array_equal(images[0], images[2])
    for mask in masks:
        assert set(np.unique(mask)) == {0, 1}


def test_a_set_iterates_over_as_many_as_it_says():
    pairs = CompositeSet("train", 3, 16, 24)
    assert len(list(pairs)) == len(pairs) == 3
    with pytest.raises(IndexError, match="no image 3; it holds 3"):
        pairs[3]
    with pytest.raises(ValueError, match="images of one size, got none"):
        pairs.batch([])


def test_splits_share_neither_cut_outs_nor_backgrounds():
    used = {}
    for split in manifest.SPLITS:
        pairs = CompositeSet(split, 300)
        rows = [row for index in range(300) for row in pairs.sources(index)]
        assert {row.split for row in rows} == {split}
        used[split] = {row.sha256 for row in rows}
        everything = manifest.rows("object", split) + manifest.rows("background", split)
        assert 0.8 * len(everything) < len(used[split]) <= len(everything)
    assert not used["train"] & used["held-out"]
    for kind in ("object", "background"):
        one, other = (
            {key for row in manifest.rows(kind, split) for key in (row.sha256, row.source)}
            for split in manifest.SPLITS
        )
        assert one
        assert other
        assert not one & other


def test_a_composite_shows_one_object_or_two():
    pairs = CompositeSet("train", 400)
    shown = [len(pairs.sources(index)) - 1 for index in range(400)]
    assert set(shown) == {1, 2}
    assert 0.25 < np.mean(np.array(shown) == 2) < 0.45


def test_the_foreground_is_neither_nothing_nor_everything():
    _, masks = CompositeSet("train", 60).batch(range(60))
    share = masks.mean(axis=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.65
    assert 0.1 < share.mean() < 0.3


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_mask_is_where_the_cut_out_is_opaque(mirrored, monkeypatch, tmp_path):
    """A red L-shape over black: the mask is exactly its pixels, wherever it was laid."""
    pixels = np.zeros((20, 10, 4), np.uint8)
    pixels[:, :3] = pixels[15:] = (255, 0, 0, 255)
    pixels[:, 3:6, 3] = 100  # a black shadow below one half is no part of the object
    cut_out, black = tmp_path / "l.png", tmp_path / "black.png"
    Image.fromarray(pixels).save(cut_out)
    Image.new("RGB", (300, 200)).save(black)

    def row(path, kind):
        return manifest.Row(path, kind, "train", "", "", "", "", "")

    rows = {"object": (row(cut_out, "object"),) * 2, "background": (row(black, "background"),)}
    monkeypatch.setattr(manifest, "rows", lambda kind, split: rows[kind])
    monkeypatch.setattr(composite, "SECOND_OBJECT", 0)
    monkeypatch.setattr(composite, "_flip", lambda p, _: p[:, ::-1] if mirrored else p)
    pairs = CompositeSet("train", 5)
    for index in range(5):
        image, mask = pairs[index]
        red = image[0] > 0.5 * image[0].max()
        assert (mask != red).sum() <= 0.1 * red.sum()  # the edge is smooth
        assert image[1:].max() < 0.02
        # An L leans on its long side: most of it is on the left unless mirrored.
        columns = np.nonzero(mask)[1]
        middle = (columns.min() + columns.max()) / 2
        assert (columns.mean() > middle) == mirrored


def test_the_ready_made_sample_is_what_the_sources_make():
    images, masks = load_sample()
    assert images.shape == (8, 3, 128, 191)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert masks.shape == (8, 128, 191)
    assert masks.dtype == np.uint8
    made, made_masks = CompositeSet("held-out", 8).batch(range(8))
    # Another version of Pillow or of its JPEG decoder may round by a level or two.
    assert np.abs(images - made).max() * 255 < 2.5
    assert np.mean(masks != made_masks) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("test", 4), "no split 'test'"),
        (("train", -1), "size=-1"),
        (("train", 4, 0), "height=0"),
        (("train", 4, 128, 191, -2), "seed=-2"),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        CompositeSet(*arguments)
