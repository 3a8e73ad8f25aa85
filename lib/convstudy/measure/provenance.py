# SPDX-License-Identifier: MIT
"""Where numbers come from: the machine, its software, and the state of the source.

Nothing here names a host, a user or a folder.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess

from convstudy import paths
from convstudy.device import array_module, devices
from convstudy.source import tree_sha256

COMMIT_VARIABLE = "CONVSTUDY_COMMIT"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# The line of names above the rows begins with GPU0 too, but goes on with no way to anything.
_TOPOLOGY_ROW = re.compile(r"^GPU(\d+)\s+((?:X|NV|PIX|PXB|PHB|NODE|SYS).*)", re.MULTILINE)


def machine(slug):
    """Return the record's field `machine`."""
    return {
        "slug": slug,
        "cpu": {"model": cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "gpus": [_gpu(device) for device in devices()],
        "topology": _topology(),
    }


def cpu_model():
    """Return the CPU's name as the kernel gives it."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _gpu(device):
    nvml, handle = _nvml(device.index)

    def ask(name, *arguments):
        # What a driver does not tell is null, not a failure.
        with contextlib.suppress(Exception):
            return getattr(nvml, name)(handle, *arguments)
        return None

    ecc = ask("nvmlDeviceGetEccMode")
    power = ask("nvmlDeviceGetEnforcedPowerLimit")
    return {
        "index": device.index,
        "name": device.name,
        "compute_capability": "{}.{}".format(*device.compute_capability),
        "sm_count": device.sm_count,
        "memory_bytes": device.memory_bytes,
        "l2_bytes": device.l2_bytes,
        "shared_bytes_per_block": device.shared_bytes_per_block,
        "ecc": bool(ecc[0]) if ecc else None,
        "power_limit_w": power / 1000 if power else None,
        "clocks_mhz": {
            "sm_max": ask("nvmlDeviceGetMaxClockInfo", 1),
            "memory_max": ask("nvmlDeviceGetMaxClockInfo", 2),
        },
        "pcie": {
            # What it can do: an idle link steps down, so what it does is another from run to run.
            "generation": ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            "width": ask("nvmlDeviceGetMaxPcieLinkWidth"),
        },
        "driver": nvml.nvmlSystemGetDriverVersion() if nvml else "unknown",
    }


def _nvml(index):
    """Return NVIDIA's management library and its handle of a GPU; (None, None) without either."""
    try:
        import pynvml

        pynvml.nvmlInit()
        # CUDA and NVML number GPUs differently; the bus is where both find the same one.
        bus = array_module(devices()[index]).cuda.Device(index).pci_bus_id
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus)
    except Exception:
        return None, None


def gpu_state(index):
    """Return the field `gpu_state` of a result: the GPU's clock, temperature and limits now."""
    nvml, handle = _nvml(index)
    if nvml is None:
        return None
    try:
        return _state(nvml, handle)
    except nvml.NVMLError:  # a GPU that is shared may tell nothing of itself
        return None


def _state(nvml, handle):
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    names = {
        nvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
        nvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
        nvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat",
        nvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat, hardware",
    }
    return {
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttle": [name for bit, name in names.items() if reasons & bit],
    }


def _topology():
    """Return how each GPU reaches each other one, in ``nvidia-smi topo``'s words, or None."""
    if len(devices()) < 2:
        return None
    text = _ANSI.sub("", _output("nvidia-smi", "topo", "-m") or "")
    rows = {int(row[1]): row[2].split() for row in _TOPOLOGY_ROW.finditer(text)}
    # The tool tells of all GPUs, in NVML's order; CUDA may see some of them, in another.
    with contextlib.suppress(Exception):
        seen = [nvml.nvmlDeviceGetIndex(gpu) for nvml, gpu in map(_nvml, range(len(devices())))]
        return [[rows[one][other] for other in seen] for one in seen]
    return None


def software():
    """Return the record's field `software`: versions, null where something is not there."""
    from convstudy.conv.cpu import blas_description

    versions = {name: _version(name) for name in ("numpy", "numba", "pandas", "torch")}
    return {
        "python": platform.python_version(),
        **versions,
        "cupy": _version("cupy-cuda13x") or _version("cupy-cuda12x") or _version("cupy"),
        **_cuda(),
        "cudnn": _cudnn(),
        "compiler": (_output("g++", "--version") or "").split("\n")[0] or None,
        "blas": blas_description(),
    }


def _version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cuda():
    found = dict.fromkeys(("cuda_driver", "cuda_runtime", "nvrtc"))
    with contextlib.suppress(Exception):
        import cupy

        found["nvrtc"] = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
        found["cuda_runtime"] = _dotted(cupy.cuda.runtime.runtimeGetVersion())
        if devices():
            found["cuda_driver"] = _dotted(cupy.cuda.runtime.driverGetVersion())
    return found


def _dotted(version):
    return f"{version // 1000}.{version % 1000 // 10}"


def _cudnn():
    if not devices() or _version("torch") is None:
        return None
    import torch

    version = torch.backends.cudnn.version()
    return f"{version // 10000}.{version % 10000 // 100}.{version % 100}" if version else None


def _output(*command):
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=paths.ROOT, timeout=30
        )
        return done.stdout.strip()
    return None


def source():
    """Return the record's field `source`: the commit, whether files differ from it, and a hash.

    Raises
    ------
    RuntimeError
        Where there is neither a git checkout nor a commit in the environment.
    """
    named = os.environ.get(COMMIT_VARIABLE)
    commit = named or _output("git", "rev-parse", "HEAD")
    if not commit or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise RuntimeError(
            f"measure: the source's commit is unknown ({commit!r}); measure in a git checkout, or "
            f"set {COMMIT_VARIABLE} to the 40 hexadecimal digits of the commit"
        )
    status = "git", "status", "--porcelain"
    # A file of the library that is not tracked is measured too, and is in no commit. Where git
    # gives no answer, nothing is known to be clean.
    whats = "--untracked-files=no", str(paths.PACKAGE)
    clean = named or all(_output(*status, what) == "" for what in whats)
    # Who names the commit vouches for the files; the hash lets anyone check.
    return {"commit": commit, "dirty": not clean, "sha256": tree_sha256()}
