# SPDX-License-Identifier: MIT
"""Every folder's path; nothing else in the project knows one."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parents[1]

KERNELS = PACKAGE / "kernels"
TESTS = ROOT / "lib" / "tests"
NOTEBOOKS = ROOT / "notebooks"

DATA = ROOT / "data"
PAPER = DATA / "paper"
IMAGES = DATA / "images"
MEASUREMENTS = DATA / "measurements"
LOCAL_MEASUREMENTS = MEASUREMENTS / "local"

FIGURES = ROOT / "figures"
LOCAL_FIGURES = FIGURES / "local"
# Where a notebook writes what it shows; unset, it writes nothing.
FIGURES_VARIABLE = "CONVSTUDY_FIGURES"

BUILD = ROOT / "build"
