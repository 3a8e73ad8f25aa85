# SPDX-License-Identifier: MIT
"""Which processors are here, and what they are. The only place that asks CuPy."""

import functools
import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# fp32 units of one multiprocessor, by compute capability (CUDA C++ Programming Guide, table of
# arithmetic throughput).
_FP32_UNITS = {(7, 0): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128}
_FP32_UNITS_SINCE_HOPPER = 128
# Multiply-adds of TF32 that the tensor cores of one multiprocessor finish in a cycle: the data
# sheets' TFLOP/s without sparsity (A100 156, A40 37, L40S 183, H200 494) over units and clock.
_TF32_MACS = {(8, 0): 512, (8, 6): 128, (8, 9): 256, (9, 0): 1024}


@dataclass(frozen=True)
class Device:
    """A processor on which kernels run.

    Attributes
    ----------
    kind : str
        "gpu", "cpu" (NumPy and compiled loops), or "emulator" (the .cu files run on the CPU).
    index : int
        CUDA's number of the GPU; 0 for the others.
    compute_capability : (int, int)
    sm_count, shared_bytes_per_block, l2_bytes, memory_bytes : int
    clock_hz, memory_bandwidth : float
        Highest clock of a multiprocessor, Hz, and device memory's bytes/s as memory clock times
        bus width give it; 0 where it means nothing.
    """

    kind: str
    name: str
    index: int = 0
    compute_capability: tuple[int, int] = (0, 0)
    sm_count: int = 1
    shared_bytes_per_block: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    clock_hz: float = 0.0
    memory_bandwidth: float = 0.0

    @property
    def is_gpu(self):
        return self.kind == "gpu"

    @property
    def arch(self):
        """The name by which compilers know it, such as ``sm_90``."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    @property
    def peak_fp32_flops(self):
        """fp32 FLOP/s if every unit finishes one multiply-add in every cycle; 0 where unknown."""
        units = _FP32_UNITS.get(self.compute_capability, _FP32_UNITS_SINCE_HOPPER)
        return 2.0 * units * self.sm_count * self.clock_hz if self.is_gpu else 0.0

    @property
    def peak_tf32_flops(self):
        """TF32 FLOP/s of the tensor cores, likewise; 0 where there are none, or unknown."""
        macs = _TF32_MACS.get(self.compute_capability, 0)
        return 2.0 * macs * self.sm_count * self.clock_hz if self.is_gpu else 0.0

    @property
    def peak_bf16_flops(self):
        """bf16 FLOP/s of the tensor cores, with fp32 sums: on every chip twice those of TF32."""
        return 2.0 * self.peak_tf32_flops


CPU = Device("cpu", "this machine's CPU")

# What the emulator offers a kernel is Hopper's: the largest block of shared memory there is.
EMULATOR = Device(
    "emulator",
    "the CPU emulator",
    compute_capability=(9, 0),
    sm_count=132,
    shared_bytes_per_block=227 * 1024,
    l2_bytes=60 * 2**20,
)


def _cupy():
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy

    return cupy


@functools.cache
def devices():
    """Return the CUDA devices of this machine, in CUDA's order; an empty tuple without any."""
    cupy = _cupy()
    if cupy is None or not cupy.cuda.is_available():
        return ()
    return tuple(_read(cupy, i) for i in range(cupy.cuda.runtime.getDeviceCount()))


def _read(cupy, index):
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    attributes = cupy.cuda.Device(index).attributes
    # CUDA gives clocks in kHz, the bus in bits; memory moves data twice a clock.
    memory_hz = attributes["MemoryClockRate"] * 1e3
    return Device(
        "gpu",
        properties["name"].decode(),
        index,
        (properties["major"], properties["minor"]),
        properties["multiProcessorCount"],
        properties["sharedMemPerBlockOptin"],
        properties["l2CacheSize"],
        properties["totalGlobalMem"],
        attributes["ClockRate"] * 1e3,
        2 * memory_hz * properties["memoryBusWidth"] / 8,
    )


def recorded(gpu):
    """Return the GPU that a record's field `gpus` tells of, as far as it does: to plan by.

    Memory's bandwidth is no part of it.
    """
    return Device(
        "gpu",
        gpu["name"],
        gpu["index"],
        tuple(map(int, gpu["compute_capability"].split("."))),
        gpu["sm_count"],
        gpu["shared_bytes_per_block"],
        gpu["l2_bytes"],
        gpu["memory_bytes"],
        1e6 * (gpu["clocks_mhz"]["sm_max"] or 0),
    )


def why_no_gpu():
    """Return one sentence that says why there is no GPU here, and how to get one seen."""
    if _cupy() is None:
        return "CuPy is not installed; install the extra `cuda` (`make setup` does)"
    return (
        "CuPy finds no CUDA device here; a GPU needs NVIDIA's driver 580 or later "
        "(`make doctor` says what is missing)"
    )


def why_no_blas():
    """Return why CuPy cannot multiply matrices here, and how it can; None where it can."""
    try:
        from cupy_backends.cuda.libs import cublas  # noqa: F401
    except ImportError:
        return "CuPy finds no cuBLAS; `make setup EXTRAS=torch` brings it"
    return None


def require_gpu(who, count=1):
    """Return the first `count` GPUs, or raise RuntimeError naming who asked and what to do."""
    found = devices()
    if not found:
        raise RuntimeError(f"{who} needs a GPU: {why_no_gpu()}")
    if len(found) < count:
        raise RuntimeError(
            f"{who} needs {count} GPUs and this machine has {len(found)}; "
            f"ask for at most {len(found)}"
        )
    return found[:count]


def get_device(index=0, who="convstudy"):
    """Return GPU `index`.

    Raises
    ------
    RuntimeError
        Where there is no such GPU.
    """
    require_gpu(who)
    found = devices()
    if not 0 <= index < len(found):
        raise RuntimeError(
            f"{who}: no GPU {index}; this machine's GPUs are numbered 0 to {len(found) - 1}"
        )
    return found[index]


def check_device(who, device):
    """Return `device`, or raise TypeError unless it is a `Device`."""
    if not isinstance(device, Device):
        raise TypeError(
            f"{who}: device must be a Device, such as get_device(0) or device.EMULATOR, "
            f"got {device!r}"
        )
    return device


def array_module(device):
    """Return the module whose arrays live on `device`: CuPy for a GPU, NumPy otherwise."""
    return _cupy() if device.is_gpu else np


def empty(shape, device, dtype=np.float32):
    """Return an array on `device`, not yet written."""
    if not device.is_gpu:
        return np.empty(shape, dtype)
    cupy = _cupy()
    with cupy.cuda.Device(device.index):
        return cupy.empty(shape, dtype)


def allocate_plainly():
    """Let CuPy ask CUDA for every array from here on, and keep no memory for later ones."""
    _cupy().cuda.set_allocator(None)


def release_memory(device, share=0.25):
    """Give back to a GPU what CuPy keeps for later arrays, where that is more than a share of it.

    Nothing that was captured as a graph may still be replayed: its temporaries lie there.
    """
    pool = _cupy().get_default_memory_pool()
    if pool.total_bytes() > share * device.memory_bytes:
        pool.free_all_blocks()


def is_array(value):
    """Return whether `value` is a NumPy array, or one of CuPy's."""
    cupy = sys.modules.get("cupy")
    return isinstance(value, np.ndarray) or (cupy is not None and isinstance(value, cupy.ndarray))


def pointer(array):
    """Return the address at which a NumPy or CuPy array begins."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def device_of(array):
    """Return the device on which `array` lies: a GPU for a CuPy array, else the CPU."""
    if hasattr(array, "__cuda_array_interface__"):
        return devices()[array.device.id]
    return CPU


def free_bytes():
    """Return how many bytes can still be taken on the host; infinity where nothing tells."""
    return min(_of_the_machine(), _of_the_container())


def _of_the_machine():
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return math.inf


def _of_the_container(group=Path("/sys/fs/cgroup")):
    try:
        limit, used = (int((group / f"memory.{each}").read_text()) for each in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        fields = dict(line.split() for line in lines)
        # Files that are kept in memory count as used, and make way.
        return max(0, limit - used + int(fields["inactive_file"]))
    except (OSError, ValueError, KeyError):  # the word "max" is no limit
        return math.inf
