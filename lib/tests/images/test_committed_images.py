# SPDX-License-Identifier: MIT
"""The committed images: every file is listed, unchanged, licensed, and small."""

import re
import shutil

import numpy as np
import pytest

from convstudy import cli, paths
from convstudy.images import CompositeSet, carvana, check, manifest
from convstudy.images.load import open_image

LICENCES = {"GPL-2.0-only", "GPL-2.0-or-later", "CC0-1.0", "public domain"}
TEXTS = {"GPL-2.0": "GNU GENERAL PUBLIC LICENSE\n.*Version 2, June 1991", "CC0-1.0": "CC0 1.0"}


@pytest.fixture
def copy(monkeypatch, tmp_path):
    """Give a copy of the committed set, to break."""
    folder = tmp_path / "images"
    shutil.copytree(paths.IMAGES, folder, ignore=shutil.ignore_patterns("carvana"))
    monkeypatch.setattr(paths, "IMAGES", folder)
    return folder


def test_the_set_is_whole():
    assert manifest.problems() == []


def test_every_file_is_in_the_manifest():
    listed = {row.file for row in manifest.rows()}
    files = (p.relative_to(paths.IMAGES) for p in paths.IMAGES.rglob("*") if p.is_file())
    there = {str(f) for f in files if f.parts[0] not in ("carvana", "licences")}
    assert there == listed | {"README.md", manifest.NAME}
    assert len(listed) == len(manifest.rows())


def test_every_row_says_where_the_file_comes_from_and_its_licence():
    readme = (paths.IMAGES / "README.md").read_text()
    for row in manifest.rows():
        assert all(row), row
        assert row.kind in manifest.KINDS
        assert row.split in manifest.SPLITS
        assert row.licence in LICENCES
        if row.kind in ("object", "background"):
            package, version = row.package.split()[:2]
            assert f"{package} {version}" in readme
    for name, words in TEXTS.items():
        text = (paths.IMAGES / "licences" / f"{name}.txt").read_text()
        assert re.search(words, text, re.DOTALL)
        assert f"licences/{name}.txt" in readme


def test_composites_are_made_of_their_split_under_a_licence_that_allows_it():
    rows = {row.file: row for row in manifest.rows()}
    for row in manifest.rows("composite") + manifest.rows("mask"):
        sources = [rows[name] for name in row.source.split(" + ")]
        assert {source.split for source in sources} == {row.split}
        assert row.licence == "GPL-2.0-only"


def test_the_readme_counts_right():
    readme = (paths.IMAGES / "README.md").read_text()
    counts = {
        (kind, split): len(manifest.rows(kind, split))
        for kind in manifest.KINDS
        for split in manifest.SPLITS
    }
    assert f"| {len(manifest.rows('object'))} cut-outs" in readme
    assert f"`train` ({counts['object', 'train']} and {counts['background', 'train']})" in readme
    assert f"{counts['object', 'held-out']} and {counts['background', 'held-out']})" in readme


def test_files_are_small():
    sizes = [row.path.stat().st_size for row in manifest.rows()]
    assert max(sizes) < 1.5e6
    assert sum(sizes) < 9e6


def test_cut_outs_have_an_outline_and_backgrounds_room():
    for row in manifest.rows("object"):
        image = open_image(row.path)
        assert image.mode == "RGBA"
        assert max(image.size) <= 256
        opaque = np.asarray(image)[..., 3] >= 128
        assert 0.05 < opaque.mean() < 1, row.file
    for row in manifest.rows("background"):
        image = open_image(row.path)
        assert image.mode == "RGB"
        assert min(image.size) >= 128
        assert max(image.size) <= 640


def test_no_cut_out_is_there_twice():
    """Doubles would leak from one split into the other."""
    seen = {}
    for row in manifest.rows("object"):
        small = open_image(row.path).resize((16, 16)).convert("RGBA")
        pixels = np.asarray(small, float)
        for mirrored in (pixels, pixels[:, ::-1]):
            for name, other in seen.items():
                assert np.abs(mirrored - other).mean() > 8, (row.file, name)
        seen[row.file] = pixels


def test_data_check_passes_without_carvana(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(carvana.CarvanaSet.__init__, "__defaults__", (tmp_path, 0.1))
    assert cli.main(["data-check"]) == 0
    text = capsys.readouterr().out
    assert "composites: whole" in text
    assert "Carvana: not to be used yet" in text
    assert "train.zip" in text


def test_data_check_fails_where_the_committed_set_is_broken(copy, capsys):
    assert cli.main(["data-check"]) == 0
    (copy / "objects" / "zebra.png").unlink()
    (copy / "backgrounds" / "dune.jpg").write_bytes(b"other")
    (copy / "objects" / "mine.png").write_bytes(b"")
    assert cli.main(["data-check"]) == 1
    text = capsys.readouterr().out
    assert "objects/zebra.png is missing" in text
    assert "backgrounds/dune.jpg is not the file of the manifest" in text
    assert "objects/mine.png is not in the manifest" in text
    assert "git checkout" in text


def garble(change):
    """Return what changes the manifest's lines."""

    def spoil(folder):
        path = folder / manifest.NAME
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda folder: (folder / "objects" / "zebra.png").unlink(), "zebra.png is missing"),
        (lambda folder: (folder / manifest.NAME).unlink(), "manifest.csv is missing"),
        (garble(lambda _: b""), "manifest.csv is empty, or no table at all"),
        (garble(lambda _: b"\xff\xd8\xff\xe0"), "manifest.csv is empty, or no table at all"),
        (garble(lambda text: b"<<<<<<< HEAD\n" + text), "manifest.csv is garbled"),
        (garble(lambda text: text[:-90]), "manifest.csv is garbled: it is no table of file, kind"),
        (garble(lambda text: text.replace(b"train", b"trian")), "manifest.csv is garbled"),
        (garble(lambda text: text[: text.index(b"\n") + 1]), "manifest.csv is empty"),
        (garble(lambda text: text + b"a,b,c,d,e,f,g,h,i\n"), "manifest.csv is garbled"),
    ],
)
def test_what_is_not_whole_is_said_by_the_check_and_before_composites_are_made(spoil, fault, copy):
    spoil(copy)
    whole, text = check.report()
    assert not whole
    assert fault in text
    with pytest.raises((FileNotFoundError, ValueError), match=f"{fault}.*; `make data-check`"):
        CompositeSet("train", 1)


def test_a_manifest_without_backgrounds_is_said_before_composites_are_made(copy):
    manifest.write([row for row in manifest.rows() if row.kind != "background"])
    assert "backgrounds/dune.jpg is not in the manifest" in check.report()[1]
    with pytest.raises(ValueError, match="manifest.csv lists no background of the split train; `m"):
        CompositeSet("train", 1)
