# SPDX-License-Identifier: MIT
"""The committed files can be made again from the packages."""

import numpy as np
import pytest
from PIL import Image

from convstudy import paths
from convstudy.images import composite, load_sample, manifest, prepare
from convstudy.images.load import open_image

SAMPLE = (("composite", ""), ("mask", "-mask"))


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Give two packages with an original each, and a manifest without hashes."""
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(composite, "SECOND_OBJECT", 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "stamps" / "a").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    pixels = np.full((600, 900, 4), 77, np.uint8)
    pixels[..., 3] = 0
    pixels[100:400, 200:800] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "stamps" / "a" / "red.png")
    Image.new("RGB", (2000, 1000), (0, 0, 255)).save(tmp_path / "photos" / "blue.png")
    made = [(f"composites/{i}{end}.png", kind) for kind, end in SAMPLE for i in range(8)]
    stated = ("held-out", "here", "objects/red.png", "none", "none", "")
    red = ("objects/red.png", "object", "held-out", "stamps 1", "a/red.png", "none", "none", "")
    blue = (
        "backgrounds/b.jpg",
        "background",
        "held-out",
        "photos 2",
        "blue.png",
        "none",
        "none",
        "",
    )
    manifest.write([manifest.Row(*row) for row in (red, blue, *((*row, *stated) for row in made))])
    return tmp_path


def test_files_are_made_of_the_packages_and_hashed(packages):
    assert len(manifest.problems()) == 18
    prepare.prepare(packages)
    assert manifest.problems() == []
    red = open_image(paths.IMAGES / "objects" / "red.png")
    assert red.size == (256, 128)  # cropped to what is visible, then reduced
    assert np.asarray(red)[5, 5].tolist() == [255, 0, 0, 255]
    assert open_image(paths.IMAGES / "backgrounds" / "b.jpg").size == (640, 320)
    images, masks = load_sample()
    for image, mask in zip(images, masks, strict=True):
        assert np.array_equal(mask == 1, image[0] > image[2])


def test_what_cannot_be_seen_is_not_stored(packages):
    path = packages / "stamps" / "a" / "red.png"
    pixels = np.asarray(open_image(path)).copy()
    pixels[200:300, 300:500, 3] = 0
    Image.fromarray(pixels).save(path)
    prepare.prepare(packages)
    stored = np.asarray(open_image(paths.IMAGES / "objects" / "red.png"))
    clear = stored[..., 3] == 0
    assert clear.any()
    assert not stored[clear].any()
