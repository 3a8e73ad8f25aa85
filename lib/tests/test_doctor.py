# SPDX-License-Identifier: MIT
"""The doctor tells of what is broken, and never breaks itself."""

import subprocess
import sys
from importlib import metadata

import pytest

from convstudy import device, doctor, paths


def lines(name):
    return [line for line in doctor.report().splitlines() if line[9:].startswith(f"{name} ")]


def test_a_whole_machine_is_healthy():
    assert doctor.healthy()
    for name in ("Python", "packages", "g++", "make", "CPU", "BLAS", "NVRTC", "MPI"):
        assert [line.split()[0] for line in lines(name)] == ["ok"]


def test_a_package_that_is_missing_or_other_is_named(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "numba":
            raise metadata.PackageNotFoundError(name)
        return "0.0" if name == "pandas" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "wrong  packages  numba not installed: make setup" in doctor.report()
    assert not doctor.healthy()


def test_a_package_of_another_version_is_no_fault(monkeypatch):
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0.0" if n == "pandas" else installed(n))
    (line,) = lines("packages")
    assert "unlike requirements.lock: pandas 0.0 (not " in line
    assert doctor.healthy()


@pytest.mark.parametrize("name", ["cupy", "cupy_backends", "numpy", "yaml", "packaging", "numba"])
def test_a_package_that_cannot_be_imported_is_a_line_not_a_traceback(name):
    broken = f"import sys; sys.modules[{name!r}] = None; from convstudy.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", broken, "doctor"], capture_output=True, text=True, check=True
    )
    assert said.stderr == ""
    assert "Drawn from the records of" in said.stdout


def test_a_broken_record_is_a_line_of_its_machine(monkeypatch, tmp_path):
    for machine in ("box", "moon"):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "20240102T030405Z-abababa-ladder.json").touch()
    monkeypatch.setattr(paths, "MEASUREMENTS", tmp_path)
    said = doctor.report().splitlines()[-2:]
    for line, machine in zip(said, ("box", "moon"), strict=True):
        assert line.startswith(f"  {machine:16}wrong: {machine}/20240102T030405Z")
        assert "make setup" not in line


def test_a_tool_that_is_missing_comes_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "wrong  g++       not found; it builds the CPU emulator: apt install g++" in (
        doctor.report()
    )


def test_without_a_gpu_it_says_why_and_what_a_gpu_needs(monkeypatch):
    monkeypatch.setattr(device, "devices", lambda: ())
    (line,) = lines("GPU")
    assert line.split()[0] == "absent"
    assert "driver" in line


@pytest.mark.parametrize(
    ("kernels", "flags", "leaves_some_unused"),
    [
        ("Haswell", "avx2 avx512f", True),
        ("SkylakeX", "avx2 avx512f", False),
        ("Zen", "avx2", False),
    ],
)
def test_a_blas_that_leaves_much_of_a_cpu_unused_is_told(
    monkeypatch, tmp_path, kernels, flags, leaves_some_unused
):
    (tmp_path / "cpuinfo").write_text(f"model name : A CPU\nflags : {flags}\n")
    path = doctor.Path
    monkeypatch.setattr(
        doctor, "Path", lambda name: tmp_path / "cpuinfo" if "cpuinfo" in str(name) else path(name)
    )
    monkeypatch.setattr(
        "convstudy.conv.cpu.blas_description", lambda: f"openblas 0.3 ({kernels}), 2 threads"
    )
    (line,) = lines("BLAS")
    assert ("OPENBLAS_CORETYPE=SkylakeX" in line) == leaves_some_unused
