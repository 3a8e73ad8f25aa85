# SPDX-License-Identifier: MIT
"""pyproject.toml, environment.yml and requirements.lock say the same."""

import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from convstudy import paths

# What conda-forge calls differently.
CONDA_NAMES = {
    "cupy-cuda13x": "cupy",
    "fastjsonschema": "python-fastjsonschema",
    "matplotlib": "matplotlib-base",
    "ml-dtypes": "ml_dtypes",
    "nvidia-cuda-nvrtc": "cuda-nvrtc",
    "nvidia-cuda-runtime": "cuda-cudart",
}
# What pip takes from the system, or from the wheels themselves.
CONDA_ONLY = {"python", "cuda-version", "gxx", "make", "pip"}

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED_EXTRAS = [line for extra in ("cuda", "mpi", "test") for line in EXTRAS[extra]]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + LOCKED_EXTRAS]
LOCK = (paths.ROOT / "requirements.lock").read_text().splitlines()
LOCKED = [Requirement(line) for line in LOCK if line]


def conda():
    """Return {name: specifier} of environment.yml, and what it leaves to pip."""
    listed = yaml.safe_load((paths.ROOT / "environment.yml").read_text())["dependencies"]
    # conda's "=13.0.*" is pip's "==13.0.*"; "=13.0" stands for the same.
    packages = [
        Requirement(line.replace("=13.0.*", "==13.0.*").replace("n=13.0", "n==13.0"))
        for line in listed
        if isinstance(line, str)
    ]
    (pip,) = [each["pip"] for each in listed if isinstance(each, dict)]
    return {each.name: each.specifier for each in packages}, pip


def test_conda_gets_the_same_packages_with_the_same_bounds():
    packages, pip = conda()
    expected = {CONDA_NAMES.get(each.name, each.name): each.specifier for each in DIRECT}
    assert {k: v for k, v in packages.items() if k not in CONDA_ONLY} == expected
    assert str(packages["python"]) == PROJECT["requires-python"]
    assert pip == ["--editable ."]


def test_one_version_of_cuda_everywhere():
    packages, _ = conda()
    series = {str(packages[name]).rstrip(".*") for name in packages if name.startswith("cuda-")}
    assert series == {"==13.0"}


@pytest.mark.parametrize("required", DIRECT, ids=lambda each: each.name)
def test_the_lock_pins_every_direct_dependency_within_its_bounds(required):
    pins = [each for each in LOCKED if each.name == required.name]
    assert pins, "run `make lock`"
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert required.specifier.contains(version.version)


def test_the_lock_holds_names_and_versions_alone():
    for line, pin in zip(LOCK, LOCKED, strict=True):
        assert pin.url is None
        assert not pin.extras
        assert "--" not in line
        assert len(pin.specifier) == 1


def test_pytorch_is_never_required():
    assert "torch" not in {each.name for each in LOCKED}
    assert "torch" not in {each.name for each in DIRECT}
