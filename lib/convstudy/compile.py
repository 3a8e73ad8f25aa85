# SPDX-License-Identifier: MIT
"""From a .cu file to something that runs: on a GPU, on the CPU emulator, or as a CUBIN.

One text serves all three: the file with its local includes put in place, behind a preamble of
``#define`` lines that set its constants. Every file compiles alone with its defaults.
"""

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from convstudy import driver, emulator, paths
from convstudy.device import array_module, empty

# The oldest and the newest chips that the study's kernels must run on, and the one in between on
# which it was measured.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Whose instructions hopper.cuh wraps: no other chip has them, before or after.
_HOPPER = "sm_90a"

_OPTIONS = ("-std=c++17",)
# What a kernel does only if it is asked for it.
_ASKED_FOR = ("GAPS", "STATISTICS", "STREAM", "SUMMAND", "WINDOWS")
_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_STACK = re.compile(r"(\d+) bytes stack frame")


def kernels():
    """Return the ids of all kernels, sorted: the stems of the .cu files."""
    return tuple(sorted(path.stem for path in paths.KERNELS.glob("*.cu")))


@functools.cache
def source(kernel, defines=()):
    """Return the text that every compiler is given for `kernel`.

    Parameters
    ----------
    kernel : str
        The id: the file's stem, and the name of its entry point.
    defines : tuple of (str, int)
        Constants to set, in order.
    """
    path = paths.KERNELS / f"{kernel}.cu"
    if not path.is_file():
        raise ValueError(f"no kernel {kernel!r}; the kernels are {', '.join(kernels())}")
    preamble = "".join(f"#define {name} {value}\n" for name, value in defines)
    text = path.read_text()

    def included(match):
        # An error after the include is to name the line at which the file has it.
        following = text.count("\n", 0, match.end()) + 2
        return (
            f'#line 1 "{match[1]}"\n{(paths.KERNELS / match[1]).read_text()}'
            f'#line {following} "{path.name}"'
        )

    return f'{preamble}#line 1 "{path.name}"\n{_INCLUDE.sub(included, text)}'


def architectures(kernel):
    """Return those of the architectures for which `kernel` can be compiled."""
    return (_HOPPER,) if _is_for_hopper(kernel) else ARCHITECTURES


def _is_for_hopper(kernel):
    return _includes(kernel, "hopper.cuh")


@functools.cache
def _includes(kernel, file):
    return f'#line 1 "{file}"' in source(kernel)


def _overlaps(kernel, device):
    """Return whether `kernel` may begin before the one before it has ended."""
    return device.compute_capability >= (9, 0) and _includes(kernel, "overlap.cuh")


def source_sha256(kernel, defines=()):
    """Return the hash by which a record knows which text of a kernel it measured.

    Unless it is asked for, what a kernel does for statistics, say, is no part of it: no compiler
    sees that, and the kernel is the one that it was before it could do so. One that does nothing
    else asks for it itself.
    """
    text = source(kernel, defines)
    unknown = {f"#ifdef {name}" for name in _ASKED_FOR if f"#define {name} " not in text}
    return hashlib.sha256(_without(unknown, text).encode()).hexdigest()


def words(launches):
    """Return the line by which a record names all that is launched; `records.sources_sha256`.

    Kernels, each with what it was asked for: ``add_fprop_2_relu conv2d_fprop_10_wgmma+STREAM``.

    Parameters
    ----------
    launches : iterable of Launch or Sequence
    """
    found = {
        "+".join([part.kernel, *sorted({name for name, _ in part.defines} & set(_ASKED_FOR))])
        for launch in launches
        for part in launch.all_launches
    }
    return " ".join(sorted(found))


def _without(conditions, text):
    """Return `text` without what stands there if one of `conditions` holds, and their lines.

    A blank line behind goes with them.
    """
    kept, open_ones, is_behind = [], [], False
    for line in text.splitlines(keepends=True):
        word = line.rstrip()
        was_behind, is_behind = is_behind, False
        if word.startswith("#if"):
            open_ones.append("left out" if word in conditions else "")
        elif word == "#else" and open_ones[-1] == "left out":
            open_ones[-1] = "kept"
            continue
        elif word == "#endif" and open_ones.pop():
            is_behind = True
            continue
        if word in conditions or "left out" in open_ones or (was_behind and not word):
            continue
        kept.append(line)
    return "".join(kept)


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and what it occupies (`ptxas -v`)."""

    code: bytes
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


def _nvrtc():
    try:
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as error:
        raise RuntimeError(
            "compile.cubin needs CuPy and NVRTC; install the extra `cuda` (`make setup` does)"
        ) from error
    return nvrtc


def compiler_version():
    """Return NVRTC's version as text, such as ``13.0``; errors as of `cubin`."""
    return ".".join(map(str, _nvrtc().getVersion()))


@functools.cache
def cubin(kernel, arch, defines=()):
    """Compile `kernel` for `arch` (such as ``sm_90``) through NVRTC; no GPU is needed.

    Raises
    ------
    RuntimeError
        Where NVRTC is missing, or refuses the source: its log is the message.
    """
    nvrtc = _nvrtc()
    if arch == "sm_90" and _is_for_hopper(kernel):
        arch = _HOPPER
    program = nvrtc.createProgram(source(kernel, defines), f"{kernel}.cu", (), ())
    try:
        # CuPy flushes denormals in whatever it compiles; the CUBIN is to be the same code.
        options = [*_OPTIONS, "-ftz=true", f"-arch={arch}", "--ptxas-options=-v"]
        if nvrtc.getVersion() >= (12, 9):
            # What comes from NVRTC's cache on disk comes without a log.
            options.append("--no-cache")
        nvrtc.compileProgram(program, tuple(options))
        log = nvrtc.getProgramLog(program)
        code = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{kernel} for {arch}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
    # CuPy takes the ELF image for a C string and cuts its last byte, which is zero.
    shared = _SHARED.search(log)
    return Cubin(
        code + b"\0",
        int(_USED.search(log)[1]),
        int(shared[1]) if shared else 0,
        sum(map(int, _SPILLS.findall(log))),
        max(map(int, _STACK.findall(log)), default=0),
    )


@functools.cache
def _on_gpu(kernel, defines, device, shared_bytes):
    # One module for each GPU: a CUDA function belongs to the context that loaded it.
    cupy = array_module(device)
    options = (*_OPTIONS, f"-arch={_HOPPER}") if _is_for_hopper(kernel) else _OPTIONS
    with cupy.cuda.Device(device.index):
        function = cupy.RawModule(code=source(kernel, defines), options=options).get_function(
            kernel
        )
        if shared_bytes > 48 * 1024:
            function.max_dynamic_shared_size_bytes = shared_bytes
        if dict(defines).get("CLUSTER", 1) > 1:
            driver.allow_large_clusters(function.kernel.ptr)
        return function


@functools.cache
def _on_emulator(kernel, defines, checked):
    return emulator.load(source(kernel, defines), kernel, f"{kernel}.cu", checked)


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel: all that is decided before the arrays are known.

    Attributes
    ----------
    kernel : str
        The kernel's id.
    grid, block : tuple of int
        Up to three numbers each: blocks, and threads of a block, along x, y and z.
    scalars : tuple
        What follows the pointers in the argument list: int becomes int32, float becomes float32.
    defines : tuple of (str, int)
    shared_bytes : int
        Dynamic shared memory of a block.
    maps : tuple of TensorMap
        By which the kernel sees the first arrays, in place of pointers.
    """

    kernel: str
    grid: tuple
    block: tuple
    scalars: tuple = ()
    defines: tuple = ()
    shared_bytes: int = 0
    maps: tuple = ()

    @property
    def all_launches(self):
        """All launches that this is, in order: itself."""
        return (self,)

    @property
    def main_launch(self):
        """The launch that does the work: itself."""
        return self

    @property
    def threads(self):
        """Threads of one block."""
        return int(np.prod(self.block))

    def prepare(self, device):
        """Compile for `device` now, so that the first `run` does not."""
        if device.is_gpu:
            return _on_gpu(self.kernel, self.defines, device, self.shared_bytes)
        return _on_emulator(self.kernel, self.defines, True)

    def run(self, device, arrays, checked=True, may_overlap=True):
        """Launch on `device`, on CuPy's current stream where it is a GPU.

        Parameters
        ----------
        device : Device
            A GPU, or `device.EMULATOR`.
        arrays : sequence
            C-contiguous arrays on `device`, passed as pointers; None is a null pointer.
        checked : bool
            On the emulator, count and check every access.
        may_overlap : bool
            Whether it may begin while what was launched before it still ends.

        Returns
        -------
        emulator.Counts or None
            What the emulator counted; None on a GPU, where the call does not wait.
        """
        arguments = [map.of(array, device) for map, array in zip(self.maps, arrays, strict=False)]
        pointers = arrays[len(self.maps) :]
        arguments += [np.uint64(0) if array is None else array for array in pointers]
        arguments += [_scalar(value) for value in self.scalars]
        if device.is_gpu:
            function = _on_gpu(self.kernel, self.defines, device, self.shared_bytes)
            cuda = array_module(device).cuda
            with cuda.Device(device.index):
                if may_overlap and _overlaps(self.kernel, device):
                    stream = cuda.get_current_stream().ptr
                    geometry = self.grid, self.block, self.shared_bytes, stream
                    return driver.launch_overlapping(function.kernel.ptr, *geometry, arguments)
                return function(self.grid, self.block, arguments, shared_mem=self.shared_bytes)
        function = _on_emulator(self.kernel, self.defines, checked)
        return function(self.grid, self.block, arguments, shared_bytes=self.shared_bytes)


@dataclass(frozen=True)
class Sequence:
    """Launches one after the other, one of which does the work.

    Attributes
    ----------
    steps : tuple of (Launch, tuple)
        Each with the places of its arrays among those given and, behind them, the temporaries;
        None for a null pointer.
    temporaries : tuple of tuple of int
        Shapes of float32 arrays that hold what one launch leaves for another. They are allocated
        by each run, on CuPy's current stream.
    main : int
        Which step does the work: the sequence has its attributes.
    zeros : tuple of int
        Which of the temporaries hold zeros before, and do again when all has been done: memory
        that is kept need be cleared but once.
    """

    steps: tuple
    temporaries: tuple
    main: int
    zeros: tuple = ()

    @property
    def all_launches(self):
        """All launches that this is, in order."""
        return tuple(launch for launch, _ in self.steps)

    @property
    def main_launch(self):
        """The launch that does the work."""
        return self.steps[self.main][0]

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.main_launch, name)

    def prepare(self, device):
        """Compile all of it for `device` now."""
        for launch, _ in self.steps:
            launch.prepare(device)

    def run(self, device, arrays, checked=True):
        """Launch all; return the emulator's counts of the main step, or None on a GPU."""
        given = len(arrays)
        arrays = [*arrays, *(empty(shape, device) for shape in self.temporaries)]
        for i in self.zeros:
            arrays[given + i].fill(0)
        counts = [
            launch.run(device, [None if i is None else arrays[i] for i in places], checked)
            for launch, places in self.steps
        ]
        return counts[self.main]


def prepare(launches, device):
    """Compile all of `launches` for `device` now, on all processors at once.

    Parameters
    ----------
    launches : iterable of Launch or Sequence
    device : Device
    """
    parts = {
        (part.kernel, part.defines, part.shared_bytes): part
        for launch in launches
        for part in launch.all_launches
    }

    def begin():
        # A thread that leaves a device goes back to the one it began on, and sets that up.
        if device.is_gpu:
            array_module(device).cuda.Device(device.index).use()

    # Threads are enough: neither NVRTC nor g++ holds Python's lock while it compiles.
    with ThreadPoolExecutor(os.cpu_count(), initializer=begin) as pool:
        list(pool.map(lambda part: part.prepare(device), parts.values()))


def _scalar(value):
    # CuPy passes a Python int as 8 bytes and a float as a double; the kernels take 4 bytes of each.
    if isinstance(value, np.generic):
        return value
    return np.float32(value) if isinstance(value, float) else np.int32(value)
