# SPDX-License-Identifier: MIT
"""Figures come out the same, byte for byte, and only where they are asked for."""

import matplotlib as mpl
import pandas as pd
import pytest

from convstudy import paths
from convstudy.plots.palette import look
from convstudy.plots.save import NOTHING, Drawn, footer, save, show
from convstudy.plots.style import figure, style


@style()
def draw(label="time, µs", height=2.0):
    drawing, axes = figure(width=3.4)
    axes.bar([0, 1], [1.0, height], **look("cudnn").bar)
    axes.set_ylabel(label)
    footer(drawing, "a machine · commit 0123456")
    table = pd.DataFrame({"what": ["a", "b"], "seconds": [1 / 3, height]})
    return Drawn("fig9_test", table, drawing, ("20260101T000000Z-0123456-test",))


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.delenv(paths.FIGURES_VARIABLE, raising=False)


def test_two_runs_write_the_same_bytes(tmp_path):
    for folder in ("one", "other"):
        save(draw(), tmp_path / folder)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"fig9_test.csv", "fig9_test.svg", "fig9_test.png"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_drawing_again_moves_nothing():
    drawn = draw()
    # What stands outside the axes is what constrained layout needs more than one look at.
    drawn.figure.axes[0].text(1.01, 0.5, "beside", transform=drawn.figure.axes[0].transAxes)
    drawn.figure.set_size_inches(7.0, 2.0)
    first = drawn.png()
    assert drawn.svg() != first
    assert drawn.png() == first


def test_another_number_gives_other_bytes():
    one, other = draw(), draw(height=2.01)
    assert one.csv() != other.csv()
    assert one.png() != other.png()
    assert one.svg() != other.svg()


def test_the_files_name_their_records_and_nothing_that_changes_by_itself():
    drawn = draw()
    for content in (drawn.png(), drawn.svg()):
        assert b"20260101T000000Z-0123456-test" in content
        assert mpl.__version__.encode() not in content
        assert b"dc:date" not in content


def test_the_table_has_six_digits_and_plain_line_ends():
    assert draw().csv() == "what,seconds\na,0.333333\nb,2\n"


def test_a_users_own_settings_change_nothing():
    expected = draw().png()
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 30}):
        assert draw().png() == expected


def test_a_character_without_a_glyph_is_an_error(tmp_path):
    with pytest.raises(UserWarning, match="Glyph"):
        save(draw(label="\U0001f9ff"), tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_a_notebook_shows_the_bytes_of_the_file(tmp_path, monkeypatch):
    drawn = draw()
    assert show(drawn).data == drawn.png()
    monkeypatch.setenv(paths.FIGURES_VARIABLE, str(tmp_path))
    image = show(drawn)
    assert (tmp_path / "fig9_test.png").read_bytes() == image.data


@pytest.mark.usefixtures("nowhere")
def test_a_table_alone_is_shown_and_saved_as_a_table(tmp_path, monkeypatch):
    table = pd.DataFrame({"id": ["P1"]})
    monkeypatch.setenv(paths.FIGURES_VARIABLE, str(tmp_path))
    assert show(Drawn("claims", table)) is table
    assert [path.name for path in tmp_path.iterdir()] == ["claims.csv"]


@pytest.mark.usefixtures("nowhere")
def test_where_nothing_was_measured_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.FIGURES_VARIABLE, str(tmp_path))
    assert show(Drawn("fig9_test", pd.DataFrame(columns=["n"]))).data == f"*{NOTHING}*"
    assert (tmp_path / "fig9_test.csv").read_text() == "n\n"
