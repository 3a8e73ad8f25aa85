# SPDX-License-Identifier: MIT
"""What this machine has, what is measured live on it, what comes from records, and how to get more.

Nothing but Python's own library is imported up here, and every check may fail by itself: where a
package is missing or broken, that is a line of the report.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from convstudy import paths

OK, ABSENT, WRONG = "ok", "absent", "wrong"

_OLDEST_PYTHON = (3, 11)


def report():
    """Return the report as text."""
    lines = ["What this machine has"]
    for name, check in _CHECKS.items():
        state, found = _tried(check)
        lines.append(f"  {state:7}{name:10}{found}")
    for title, part in (("Measured live here", live), ("Drawn from the records of", recorded)):
        lines += ["", title]
        try:
            lines += [f"  {line}" for line in part()]
        except Exception as error:
            lines.append(f"  {WRONG:7}{_told(error)}")
    return "\n".join(lines)


def healthy():
    """Return whether all that the study needs is here; a GPU and PyTorch are not needed."""
    return all(_tried(check)[0] != WRONG for check in _CHECKS.values())


def _tried(check):
    # Whatever is broken, the report goes on.
    try:
        return check()
    except Exception as error:
        return WRONG, _told(error)


def _told(error):
    return f"{type(error).__name__}: {error}; `make setup` may mend it".replace("\n", " ")


def _python():
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < _OLDEST_PYTHON:
        return WRONG, f"{found}; 3.11 or later is needed: make setup PYTHON=python3.12"
    return OK, found


def locked():
    """Return ``{package: version}`` of requirements.lock, as far as it concerns this machine."""
    from packaging.requirements import Requirement

    lines = (paths.ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in here}


def _packages():
    pins = locked()
    missing, other = [], []
    for name, version in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed != version:
            other.append(f"{name} {installed} (not {version})")
    if missing:
        return WRONG, f"{_few(missing)} not installed: make setup"
    if other:
        return OK, f"{len(pins)}, but unlike requirements.lock: {_few(other)}"
    return OK, f"{len(pins)}, as in requirements.lock"


def _few(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tool(name, package, why):
    def check():
        if shutil.which(name) is None:
            return WRONG, f"not found; {why}: apt install {package}"
        said = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
        return OK, said.stdout.splitlines()[0]

    return check


def _cpu():
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = model[1] if model else platform.machine()
    return OK, f"{name}, {cores} cores to use, {memory / 2**30:.0f} GiB of memory"


def _blas():
    from convstudy.conv.cpu import blas_description

    found = blas_description()
    if found is None:
        return OK, "NumPy's own loops: no library of which the threads can be told"
    flags = Path("/proc/cpuinfo").read_text()
    # OpenBLAS takes a processor that it does not know for an older one.
    if "avx512f" in flags and re.search(r"\((Haswell|Zen)\)", found):
        found += (
            "; this CPU has AVX-512, which these kernels leave unused: with "
            "OPENBLAS_CORETYPE=SkylakeX U-Net's convolutions took two thirds of the time on an EPYC"
        )
    return OK, found


def _gpu():
    from convstudy.device import devices, why_no_gpu

    found = devices()
    if found:
        names = "; ".join(f"{each.index}: {each.name} ({each.arch})" for each in found)
        return OK, f"{names}; {_driver() or 'driver of unknown version'}"
    why = why_no_gpu().replace(" (`make doctor` says what is missing)", "")
    return ABSENT, f"{why}; {_driver() or 'there is no NVIDIA driver'}"


def _driver():
    path = Path("/proc/driver/nvidia/version")
    version = re.search(r"\d+\.\d+[.\d]*", path.read_text()) if path.is_file() else None
    return f"driver {version[0]}" if version else None


def _nvrtc():
    from convstudy import compile

    kernel = compile.kernels()[0]
    for arch in compile.ARCHITECTURES:
        compile.cubin(kernel, arch)
    return OK, f"compiles for {', '.join(compile.ARCHITECTURES)}"


def _torch():
    try:
        return OK, metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ABSENT, "only compared with, never needed: make setup EXTRAS=torch"


def _mpi():
    from convstudy.parallel import launch

    launcher = launch.mpiexec()
    if launcher is None:
        return ABSENT, "several ranks need mpiexec: make setup"
    from mpi4py import __version__

    return OK, f"mpi4py {__version__} ({launcher})"


def _nccl():
    from convstudy.parallel.nccl import modules

    try:
        _, nccl = modules()
    except ImportError as error:
        return ABSENT, str(error)
    return OK, f"version {nccl.get_version()}"


_CHECKS = {
    "Python": _python,
    "packages": _packages,
    "g++": _tool("g++", "g++", "it builds the CPU emulator"),
    "make": _tool("make", "make", "it is how everything is started"),
    "CPU": _cpu,
    "BLAS": _blas,
    "GPU": _gpu,
    "NVRTC": _nvrtc,
    "MPI": _mpi,
    "NCCL": _nccl,
    "PyTorch": _torch,
}


def live():
    """Yield a line for each suite: that it can be measured here, or why not."""
    from convstudy.measure.suites import SUITES

    for suite in SUITES.values():
        reason = suite.why_not()
        yield f"{ABSENT if reason else OK:7}{suite.name:23}{reason or suite.title}"


def recorded():
    """Yield a line for each machine that there are records of."""
    from convstudy import records

    machines = records.machines()
    for machine in machines:
        files = sorted((paths.MEASUREMENTS / machine).glob("*.json"))
        try:
            newest = records.load(files[-1])
        except records.RecordError as error:
            yield f"{machine:16}{WRONG}: {error}"
            continue
        gpus = [gpu["name"] for gpu in newest["machine"]["gpus"]]
        hardware = " + ".join([newest["machine"]["cpu"]["model"], *gpus])
        suites = sorted({suite for file in files for suite in file.stem.split("-", 2)[2:]})
        yield f"{machine:16}{hardware}: {', '.join(suites)}"
    if not machines:
        yield "none yet: make measure"
