# SPDX-License-Identifier: MIT
"""The Carvana loader, on files in the layout that Kaggle ships."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from convstudy.images import CarvanaSet, carvana, check

WIDTH, HEIGHT = 1918, 1280
NAMES = ("0cdf5b5d0ce1_01", "0cdf5b5d0ce1_02", "fff9b3a5373f_16")


def save(root, name, size=(WIDTH, HEIGHT), car=(500, 300, 1400, 900)):
    """Write an image that is white where the mask is, as a JPEG and a GIF of two colours."""
    mask = Image.new("1", size)
    mask.paste(1, car)
    mask.save(root / "train_masks" / f"{name}_mask.gif")
    mask.convert("RGB").save(root / "train" / f"{name}.jpg", quality=95)


@pytest.fixture
def root(tmp_path):
    for folder in ("train", "train_masks"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        save(tmp_path, name)
    return tmp_path


def test_pairs_at_a_tenth(root):
    pairs = CarvanaSet(root)
    assert len(pairs) == 3
    assert tuple(pairs.names) == NAMES
    images, masks = pairs.batch([2, 0])
    assert images.shape == (2, 3, 128, 191)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert masks.shape == (2, 128, 191)
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert abs(masks.mean() - 900 * 600 / (WIDTH * HEIGHT)) < 0.005
    inside = masks.astype(bool)
    assert images.transpose(0, 2, 3, 1)[inside].mean() > 0.97
    assert images.transpose(0, 2, 3, 1)[~inside].mean() < 0.03


def test_sizes_are_truncated_and_both_are_resized_as_said(root):
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(root / "train" / f"{NAMES[0]}.jpg", quality=95)
    speckled = rng.random((HEIGHT, WIDTH)) < 0.3
    Image.fromarray(speckled).save(root / "train_masks" / f"{NAMES[0]}_mask.gif")
    image, mask = CarvanaSet(root, scale=0.0351)[0]
    height, width = int(0.0351 * HEIGHT), int(0.0351 * WIDTH)
    assert mask.shape == (height, width)
    # The nearest pixel, reckoned by hand: the one that holds the centre.
    rows = ((np.arange(height) + 0.5) * HEIGHT / height).astype(int)
    columns = ((np.arange(width) + 0.5) * WIDTH / width).astype(int)
    # Where a centre lies between two pixels, either is the nearest.
    assert np.mean(mask != speckled[np.ix_(rows, columns)]) < 0.05
    stored = Image.open(root / "train" / f"{NAMES[0]}.jpg")
    expected = np.asarray(stored.resize((width, height), Image.Resampling.BICUBIC)) / 255
    assert np.abs(image.transpose(1, 2, 0) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("levels", "share"), [((0, 1), 0.5), ((7, 200), 0.5), ((0, 0), 0), ((9, 9), 1)]
)
def test_masks_of_any_two_values(root, levels, share):
    mask = np.repeat(np.array(levels, np.uint8), WIDTH // 2)
    mask = np.broadcast_to(mask, (HEIGHT, WIDTH)).copy()
    Image.fromarray(mask).save(root / "train_masks" / f"{NAMES[1]}_mask.gif")
    assert CarvanaSet(root)[1][1].mean() == pytest.approx(share, abs=0.01)


def says(error, *words):
    message = str(error.value)
    for word in words:
        assert str(word) in message, message


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        CarvanaSet(tmp_path / "none")
    says(error, tmp_path / "none" / "train", "is not there", "Kaggle", "train_masks.zip", "unpack")


@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_an_empty_folder(root, folder):
    for path in (root / folder).iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        CarvanaSet(root)
    says(error, root / folder, "holds no *", "Kaggle")


@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_an_archive_that_was_not_unpacked(root, folder):
    archive = root / f"{folder}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in (root / folder).iterdir():
            packed.write(path, f"{folder}/{path.name}")
            path.unlink()
    (root / folder).rmdir()
    with pytest.raises(FileNotFoundError) as error:
        CarvanaSet(root)
    command = f"-m zipfile -e {archive} {root}"
    says(error, f"{folder} is not there", command)
    zipfile.main(command.split()[2:])  # what it says works
    assert len(CarvanaSet(root)) == 3


def test_a_mask_without_its_image(root):
    image = root / "train" / f"{NAMES[1]}.jpg"
    image.unlink()
    with pytest.raises(FileNotFoundError) as error:
        CarvanaSet(root)
    says(error, f"{image} is missing, the image of", f"{NAMES[1]}_mask.gif", "remove")


def test_images_without_their_masks(root):
    for name in NAMES[:2]:
        (root / "train_masks" / f"{name}_mask.gif").unlink()
    with pytest.raises(FileNotFoundError) as error:
        CarvanaSet(root)
    says(error, f"{NAMES[0]}_mask.gif (and 1 more) is missing, the mask of", f"{NAMES[0]}.jpg")


def test_sizes_that_differ(root):
    Image.new("1", (1917, HEIGHT)).save(root / "train_masks" / f"{NAMES[2]}_mask.gif")
    with pytest.raises(ValueError) as error:
        CarvanaSet(root)[2]
    says(error, f"{NAMES[2]}_mask.gif is 1917 x 1280", f"{NAMES[2]}.jpg is 1918 x 1280", "again")


@pytest.mark.parametrize(("folder", "ending"), [("train", ".jpg"), ("train_masks", "_mask.gif")])
@pytest.mark.parametrize("keep", [0, 200])
def test_an_unreadable_file(root, folder, ending, keep):
    path = root / folder / f"{NAMES[0]}{ending}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError) as error:
        CarvanaSet(root)[0]
    says(error, path, "cannot be read as an image", "again")


def test_a_mask_of_more_than_two_values(root):
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (9, 9, 90, 90))
    mask.paste(128, (9, 9, 20, 20))
    mask.save(root / "train_masks" / f"{NAMES[0]}_mask.gif")
    with pytest.raises(ValueError) as error:
        CarvanaSet(root)[0]
    says(error, f"{NAMES[0]}_mask.gif holds 3 values", "two at most", "again")


@pytest.mark.parametrize("scale", [0, -0.1, 1.5, float("nan")])
def test_a_scale_out_of_range(root, scale):
    with pytest.raises(ValueError, match=r"in \(0, 1\], got"):
        CarvanaSet(root, scale)
    with pytest.raises(ValueError, match="vanishes at the scale"):
        CarvanaSet(root, 1e-4)[0]


def test_images_of_two_sizes_are_no_batch(root):
    save(root, NAMES[1], (500, 400), (9, 9, 99, 99))
    pairs = CarvanaSet(root)
    assert pairs[1][1].shape == (40, 50)
    with pytest.raises(ValueError, match="images of one size"):
        pairs.batch([0, 1])


def test_the_report_counts_what_is_there(root, monkeypatch):
    monkeypatch.setattr(carvana.CarvanaSet.__init__, "__defaults__", (root, 0.1))
    whole, text = check.report()
    assert whole
    assert "Carvana: 3 images with masks; at the scale 0.1 they are (128, 191)" in text
    (root / "train" / f"{NAMES[0]}.jpg").write_bytes(b"")
    whole, text = check.report()
    assert whole
    assert f"{NAMES[0]}.jpg cannot be read" in text
