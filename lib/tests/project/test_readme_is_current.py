# SPDX-License-Identifier: MIT
"""README.md's generated parts are what would be generated now."""

import re

import pytest

from convstudy import paths
from convstudy.study import readme

TEXT = readme.README.read_text()


def test_every_part_is_there_and_current():
    assert set(re.findall(r"<!-- begin: (\w+) -->", TEXT)) == set(readme.BLOCKS)
    assert readme.rewrite(TEXT) == TEXT, "run `make readme`"


def test_its_links_and_its_folders_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (paths.ROOT / target).exists(), target


def test_every_module_of_the_library_says_in_one_line_what_it_is():
    for line in readme.tree().splitlines()[1:-1]:
        name, _, says = line.strip().partition("  ")
        assert says.strip(), f"{name} has no docstring"


def test_every_command_that_it_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (paths.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets


def test_what_is_typed_between_markers_is_overwritten():
    typed = TEXT.replace("<!-- end: commands -->", "| typed |\n<!-- end: commands -->")
    assert typed != TEXT
    assert readme.rewrite(typed) == readme.rewrite(TEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin: nothing -->\n<!-- end: nothing -->", "nothing makes 'nothing'; there are"),
        ("<!-- begin: claims -->\n", "begin: claims --> has no partner"),
        ("<!-- begin: claims -->\n<!-- end: tree -->", "has no partner"),
    ],
)
def test_a_broken_marker_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        readme.rewrite(text)


def test_it_says_how_ours_does_against_pytorch(monkeypatch, tmp_path):
    monkeypatch.setattr(readme.paths, "FIGURES", tmp_path)
    assert readme.beyond() == readme._NOT_YET
    (tmp_path / "tabS3_goals.csv").write_text(
        "machine,pass,precision,n,ratio,goal,stale\n"
        "h200,dgrad,bf16,1,1.234,1.4,False\nh200,dgrad,bf16,64,,1.0,False\n"
    )
    (tmp_path / "figS2_unet_vs_pytorch.csv").write_text(
        "machine,what,precision,n,ratio_to_best,stale\nh200,training,tf32,16,1.5,True\n"
    )
    assert readme.beyond().splitlines() == [
        "| On one h200 | Precision | N = 1 | N = 16 |",
        "| --- | --- | --- | --- |",
        "| their inputs' gradients | bf16 | 1.23× |  |",
        "| U-Net, training | tf32 |  | 1.50× † |",
        "",
        "† measured before its kernel was last changed",
    ]


def test_it_says_how_two_gpus_do_against_one_and_against_pytorch(monkeypatch, tmp_path):
    monkeypatch.setattr(readme.paths, "FIGURES", tmp_path)
    assert readme.together() == readme._NOT_YET
    (tmp_path / "figS3_scaling.csv").write_text(
        "machine,what,precision,gpus,images_per_gpu,cut,processor,scaling,ddp_images_per_s,"
        "ratio_to_ddp\n"
        "x2,training,tf32,2,1,data,gpu,1.704,600,1.94\n"
        "x2,training,tf32,2,8,data,gpu,1.9,600,1.7\n"
        "x2,inference,bf16,2,8,data,gpu,2,600,2.5\n"
        # One alone, layers that are shared, what PyTorch does not do, another machine, and cores.
        "x2,training,tf32,1,1,data,gpu,1,600,1.94\n"
        "x2,training,tf32,2,1,2 model (level 4),gpu,9,600,9\n"
        "x2,inference from the host,tf32,2,1,data,gpu,9,,\n"
        "x4,training,tf32,2,1,data,gpu,9,600,9\n"
        "epyc,training,fp32,2,1,data,cpu,9,600,9\n"
    )
    assert readme.together().splitlines() == [
        "| On x2 | Precision | N = 1 each | N = 8 each |",
        "| --- | --- | --- | --- |",
        "| U-Net, training | tf32 | 1.70× / 1.94× | 1.90× / 1.70× |",
        "| U-Net, inference | bf16 |  | 2.00× / 2.50× |",
    ]
