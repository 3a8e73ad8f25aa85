# SPDX-License-Identifier: MIT
"""Any picture that Pillow reads becomes the same array."""

import numpy as np
import pytest
from PIL import Image

from convstudy.images import load, load_image

HEIGHT, WIDTH = 7, 11


@pytest.fixture
def rgb():
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def loaded(image, path, **options):
    image.save(path, **options)
    array = load_image(path)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.shape[0] == 3
    return array.transpose(1, 2, 0)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_rgb(rgb, tmp_path, ending):
    array = loaded(Image.fromarray(rgb), tmp_path / f"a.{ending}")
    assert np.array_equal(array, (rgb / 255).astype(np.float32))


def test_grey(rgb, tmp_path):
    grey = rgb[..., 0]
    array = loaded(Image.fromarray(grey), tmp_path / "a.png")
    assert np.array_equal(array, np.repeat((grey / 255).astype(np.float32)[..., None], 3, 2))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_range(tmp_path, ending):
    grey = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
    grey[0, :2] = 0, 65535
    array = loaded(Image.fromarray(grey), tmp_path / f"a.{ending}")
    assert np.abs(array - (grey / 65535)[..., None]).max() < 1e-6


def test_transparency_is_shown_over_white(rgb, tmp_path):
    alpha = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
    rgba = np.concatenate([rgb, alpha], axis=2)
    array = loaded(Image.fromarray(rgba), tmp_path / "a.png")
    expected = (rgb * (alpha / 255) + 255 * (1 - alpha / 255)) / 255
    assert np.abs(array - expected).max() < 1.01 / 255


def test_grey_with_transparency_and_palettes(tmp_path):
    grey = Image.new("LA", (WIDTH, HEIGHT), (0, 0))
    assert loaded(grey, tmp_path / "a.png").min() == 1
    palette = Image.new("P", (WIDTH, HEIGHT), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert np.array_equal(loaded(palette, tmp_path / "b.png")[0, 0], [0, 0, 1])
    assert loaded(palette, tmp_path / "c.png", transparency=1).min() == 1
    assert loaded(Image.new("1", (WIDTH, HEIGHT), 1), tmp_path / "d.png").min() == 1


def test_cmyk(tmp_path):
    array = loaded(Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), tmp_path / "a.tif")
    assert np.allclose(array[0, 0], [0, 1, 1], atol=0.01)


def test_a_camera_held_upright(rgb, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    array = loaded(Image.fromarray(rgb), tmp_path / "a.png", exif=exif)
    assert np.array_equal(array, (np.rot90(rgb, -1) / 255).astype(np.float32))


def test_what_is_no_picture(rgb, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png is not there"):
        load_image(tmp_path / "a.png")
    text = tmp_path / "b.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        load_image(text)
    Image.fromarray(rgb).save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:120])
    with pytest.raises(ValueError, match=r"c\.png cannot be read as an image"):
        load_image(tmp_path / "c.png")


@pytest.mark.parametrize("side", [11_000, 20_000])
def test_memory_alone_limits_the_size(side, tmp_path, monkeypatch):
    """Pillow by itself warns of the one picture, and refuses the other."""
    path = tmp_path / "a.ppm"
    path.write_text(f"P6 {side} {side} 255\n")
    monkeypatch.setattr(load, "free_bytes", lambda: side**2)
    with pytest.raises(MemoryError, match=f"a.ppm of {side} x {side} pixels takes .* smaller"):
        load_image(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_white(tmp_path, dtype):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((3, 4), 70000, dtype)).save(path)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        load_image(path)
