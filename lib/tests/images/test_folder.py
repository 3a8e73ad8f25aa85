# SPDX-License-Identifier: MIT
"""A folder of one's own pictures: how they are matched, and what is found wrong before any work."""

import numpy as np
import pytest
from PIL import Image

from convstudy.images import FolderSet


@pytest.fixture
def folder(tmp_path, rng):
    """Three pictures with masks of 0 and 255, in several formats."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name, image_ending, mask_ending in (
        ("a", ".png", ".png"),
        ("b", ".bmp", "_mask.gif"),
        ("c", ".png", "_mask.png"),
    ):
        put(tmp_path / "images" / (name + image_ending), rng.integers(0, 256, (10, 12, 3)))
        put(tmp_path / "masks" / (name + mask_ending), 255 * rng.integers(0, 2, (10, 12)))
    return tmp_path


def put(path, levels):
    Image.fromarray(np.asarray(levels, np.uint8)).save(path)


def test_pairs_are_matched_by_name(folder):
    pairs = FolderSet(folder)
    assert pairs.names == ["a", "b", "c"]
    assert pairs.values == (0, 255)
    images, masks = pairs.batch(range(3))
    assert images.shape == (3, 3, 10, 12)
    assert pairs.shape == (3, 10, 12)
    assert images.dtype == np.float32
    assert masks.dtype == np.uint8
    stored = np.asarray(Image.open(folder / "masks" / "c_mask.png"))
    np.testing.assert_array_equal(masks[2], stored // 255)
    stored = np.asarray(Image.open(folder / "images" / "a.png")) / 255
    np.testing.assert_allclose(images[0], stored.transpose(2, 0, 1), atol=1e-6)


def test_any_values_are_classes_in_their_order(folder, rng):
    kinds = rng.integers(0, 3, (10, 12))
    put(folder / "masks" / "a.png", np.array([7, 40, 255])[kinds])
    for name in ("b_mask.gif", "c_mask.png"):
        put(folder / "masks" / name, np.full((10, 12), 40))
    pairs = FolderSet(folder)
    assert pairs.values == (7, 40, 255)
    np.testing.assert_array_equal(pairs[0][1], kinds)
    assert (pairs[1][1] == 1).all()


def test_a_grey_mask_may_be_saved_in_colours(folder):
    grey = np.asarray(Image.open(folder / "masks" / "a.png"))
    put(folder / "masks" / "a.png", np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(FolderSet(folder)[0][1], grey // 255)


def test_several_sizes_are_made_one(folder, rng):
    put(folder / "images" / "b.bmp", rng.integers(0, 256, (30, 20, 3)))
    put(folder / "masks" / "b_mask.gif", 255 * np.tri(30, 20))
    with pytest.raises(ValueError, match=r"30 x 20 .*a batch takes images of one size; give the"):
        FolderSet(folder)
    images, masks = FolderSet(folder, size=(16, 24)).batch(range(3))
    assert images.shape == (3, 3, 16, 24)
    assert FolderSet(folder, size=(16, 24)).shape == (3, 16, 24)
    assert set(np.unique(masks)) == {0, 1}
    assert 0 <= images.min() <= images.max() <= 1
    # The lower left half of it, still.
    assert masks[1, -1, 0] == 1
    assert masks[1, 0, -1] == 0


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda f: (f / "masks" / "a.png").unlink(),
            FileNotFoundError,
            r"the image .*a.png has no mask in .*masks; add a.png there",
        ),
        (
            lambda f: (f / "images" / "a.png").unlink(),
            FileNotFoundError,
            r"the mask .*a.png has no image in",
        ),
        (
            lambda f: [each.unlink() for each in (f / "masks").iterdir()],
            FileNotFoundError,
            "masks is empty; put the masks there",
        ),
        (
            lambda f: (f / "images").rename(f / "pictures"),
            FileNotFoundError,
            "images is not there; a folder to train on holds images/ and masks/",
        ),
        (
            lambda f: (f / "images" / "b.bmp").write_bytes(b"BM nothing"),
            ValueError,
            "b.bmp cannot be read as an image",
        ),
        (
            lambda f: put(f / "masks" / "a.png", np.eye(9, 12) * 255),
            ValueError,
            "a.png is 9 x 12, but .*a.png is 10 x 12",
        ),
        (
            lambda f: put(f / "masks" / "a.png", np.arange(120).reshape(10, 12)),
            ValueError,
            "a.png holds 120 values, .*saved as a JPEG",
        ),
        (
            lambda f: put(f / "masks" / "a.png", np.eye(10, 12)[..., None] * [255, 0, 0]),
            ValueError,
            "a.png is coloured; save the mask as grey",
        ),
        (
            lambda f: Image.new("F", (12, 10), 0.5).save(
                (f / "masks" / "a.png").rename(f / "masks" / "a.tif")
            ),
            ValueError,
            "a.tif holds floats; save the mask as grey, one level for each class",
        ),
        (
            lambda f: [put(each, np.zeros((10, 12))) for each in (f / "masks").iterdir()],
            ValueError,
            "all masks hold the one value 0, so there is nothing to tell apart",
        ),
        (
            lambda f: put(f / "images" / "a.bmp", np.zeros((10, 12, 3))),
            ValueError,
            "have one name; remove one",
        ),
    ],
)
def test_folders_that_are_refused(spoil, error, message, folder):
    spoil(folder)
    with pytest.raises(error, match=message):
        FolderSet(folder)
