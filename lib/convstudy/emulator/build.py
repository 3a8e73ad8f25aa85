# SPDX-License-Identifier: MIT
"""From the text of a .cu file to a shared object, through g++ and a cache on disk."""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from convstudy import paths
from convstudy.emulator.errors import EmulatorError

HERE = Path(__file__).resolve().parent
_HEADER = "cuda_cpu.h"
CACHE = paths.BUILD / "emulator"

_RUNTIME = (
    *("runtime.cpp", "checker.cpp", "requests.cpp", "fiber.cpp", "async.cpp", "tensor.cpp"),
    *("phases.cpp", "tma.cpp", "wgmma.cpp", "handover.cpp"),
)
# Lines alone, in DWARF 4: of DWARF 5's table of files, older addr2lines take the wrong entry.
_COMMON = ("-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-g1", "-gdwarf-4", "-march=native")

# Both modes must round alike: no contraction (a kernel says fmaf where it means it).
_KERNEL = (
    *_COMMON,
    "-w",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    # With it g++ 12 left out stores: those of batchnorm_dgrad_3_apply, in bf16 with pooling.
    "-fno-delete-null-pointer-checks",
    "-fno-exceptions",
    "-fdiagnostics-color=never",
    "-fno-diagnostics-show-caret",
)
_FAST = ("-O2",)
# No access is moved to where the source would not make it, and none is copied, so that each place
# of the source keeps one address. Jumps through tables, functions in two parts and calls at the end
# of a function that become jumps would hide the loops.
_CHECKED = (
    "-O2",
    "-fsanitize=thread,bounds",
    "-fsanitize-coverage=trace-pc",
    "-fno-tree-loop-im",
    "-fno-thread-jumps",
    "-fno-reorder-blocks-and-partition",
    "-fno-jump-tables",
    "-fno-optimize-sibling-calls",
)

_COMMENT_OR_STRING = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL
)
_DYNAMIC_SHARED = re.compile(r"\bextern\s+__shared__[^;{}]*?(\w+)\s*\[\s*\]\s*;")
_ASM = re.compile(r'\b(?:asm|__asm__)\b[^;"]*((?:"(?:[^"\\]|\\.)*"\s*)+)')
# PTX may pass for what this processor's assembler knows.
_NO_ASSEMBLY = "#pragma GCC poison asm __asm__"
_NO_INSTRUCTION = re.compile(r'["{}]|\\[nt]|@!?%?\w+')
_SHARED_SYMBOL = re.compile(r":\s+([0-9a-f]+)\s+(\w+)\s+TLS\s.*?(\w+)$")
_LINE_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"')


def compiler():
    """Return the command that compiles C++: the variable CXX, or g++."""
    given = os.environ.get("CXX", "")
    try:
        return shlex.split(given) or ["g++"]
    except ValueError as error:
        raise EmulatorError(
            f"the variable CXX is {given!r}, which is no command ({error}); name one, such as g++"
        ) from None


@functools.cache
def _version(command):
    return _run(command, "--version").stdout


@functools.cache
def _processor():
    # -march=native: what was built for one processor may not run on another.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.machine() + features


def _run(command, *arguments):
    environment = os.environ | {"LC_ALL": "C"}
    try:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, check=False
        )
    except OSError as error:
        raise EmulatorError(
            f"the emulator compiles kernels, and {command[0]!r} cannot be run ({error.strerror}); "
            "install g++ (Debian, Ubuntu: apt install g++), or name another in the variable CXX"
        ) from error


def _cached(name, make, *inputs, suffix=".so"):
    """Return the file `name`-<hash of `inputs`>, calling `make(path)` where it is missing.

    It appears under its name only when it is complete. Of processes that need it at the same time,
    as ranks do, one builds it, and the others wait.
    """
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:24]
    path = CACHE / f"{name}-{digest}{suffix}"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with lock.open("w") as held, tempfile.TemporaryDirectory(dir=CACHE) as folder:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            built = Path(folder) / path.name
            make(built)
            if not built.exists():
                raise EmulatorError(
                    f"{shlex.join(compiler())!r} has written nothing, without a word; name a "
                    "compiler of C++, such as g++, in the variable CXX, or unset it"
                )
            built.rename(path)
        lock.unlink(missing_ok=True)
    return path


def _toolchain():
    command = tuple(compiler())
    return command, "\0".join((*command, _version(command), _processor()))


def runtime():
    """Return the path of the compiled scheduler and checker, which every kernel links with."""
    command, toolchain = _toolchain()
    options = (*_COMMON, "-O3", "-shared", "-pthread")

    def make(built):
        sources = [str(HERE / name) for name in _RUNTIME]
        result = _run(
            command, *options, f"-Wl,-soname,{built.name}", *sources, "-o", str(built), "-ldl"
        )
        if result.returncode:
            raise EmulatorError(f"the emulator's runtime does not compile:\n{result.stderr}")

    return _cached("runtime", make, toolchain, *options, *_texts())


@functools.cache
def _texts():
    return [path.read_text() for path in sorted(HERE.glob("*.[hc]*")) if path.suffix != ".py"]


def _precompiled(options):
    """Return what g++ makes of the header that every kernel includes: a third of most builds."""
    command, toolchain = _toolchain()

    def make(built):
        header = str(HERE / _HEADER)
        result = _run(command, *options, "-x", "c++-header", header, "-o", str(built))
        if result.returncode:
            raise EmulatorError(f"the emulator's header does not compile:\n{result.stderr}")

    return _cached(_HEADER, make, toolchain, *options, *_texts(), suffix=".gch")


def kernel(source, entry, filename, checked):
    """Return the path of the shared object that holds the kernel `entry` of `source`."""
    bare = _COMMENT_OR_STRING.sub(_blank, source)
    if not re.search(rf"\b{re.escape(entry)}\s*\(", bare):
        raise EmulatorError(f'{filename} has no kernel {entry!r}; declare it extern "C" __global__')
    command, toolchain = _toolchain()
    library = runtime()
    text = _translation_unit(source, entry, filename, _DYNAMIC_SHARED.findall(bare))
    options = (*_KERNEL, *(_CHECKED if checked else _FAST), f"-I{HERE}")

    def make(built):
        unit = built.with_suffix(".cpp")
        unit.write_text(text)
        # Looked for beside whatever includes the header, and then as it is.
        (built.parent / f"{_HEADER}.gch").symlink_to(_precompiled(options))
        object_file = str(built.with_suffix(".o"))
        result = _run(command, *options, "-c", str(unit), "-o", object_file)
        if result.returncode:
            unit.write_text(text.replace(_NO_ASSEMBLY, ""))
            _refuse_assembly(command, options, unit, filename)
            raise EmulatorError(f"{filename} does not compile:\n{result.stderr.strip()}")
        # Linked without -fsanitize: the runtime answers what the compiler's callbacks say.
        link = ("-shared", "-Wl,-z,defs", "-Wl,-rpath,$ORIGIN", object_file, str(library))
        result = _run(command, *link, "-o", str(built), "-lm")
        if result.returncode:
            raise EmulatorError(f"{filename} does not link:\n{result.stderr.strip()}")

    return _cached(entry, make, toolchain, library.name, *options, text)


def _blank(match):
    # Keeps lines and the places of strings: what is looked for never crosses them.
    return '""' if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0])


def _translation_unit(source, entry, filename, dynamic):
    names = tuple(dict.fromkeys(dynamic))
    labels = " ".join(f'EMU_LABEL("{name}")' for name in (*names, "emu_dynamic"))
    define = f"EMU_DYNAMIC_SHARED({labels})\nextern thread_local char emu_dynamic[];"
    return f"""#include "{_HEADER}"
{_NO_ASSEMBLY}
#line 1 "{filename}"
{source}
#line 1 "(the emulator's call of {entry})"
{define if names else ""}
extern "C" {{
EMU_API void emu_call(void* const* arguments) {{ emu::call({entry}, arguments); }}
EMU_API int emu_parameters(const emu::Parameter** all) {{ return emu::describe({entry}, all); }}
EMU_API void* emu_dynamic_shared() {{ return {"emu_dynamic" if names else "nullptr"}; }}
}}
"""


def _refuse_assembly(command, options, unit, filename):
    # Only what the preprocessor leaves counts: a kernel may keep PTX for GPUs behind an #ifdef.
    result = _run(command, *options, "-E", str(unit))
    if result.returncode:
        return  # the compiler will say it better
    line, here = 0, ""
    own, numbers = [], []
    for text in result.stdout.splitlines():
        if marker := _LINE_MARKER.match(text):
            line, here = int(marker[1]), marker[2]
            continue
        if here == filename:
            own.append(text)
            numbers.append(line)
        line += 1
    kept = "\n".join(own)
    if found := _ASM.search(kept):
        number = numbers[kept.count("\n", 0, found.start())]
        words = _NO_INSTRUCTION.sub(" ", found[1]).split()
        name = words[0].rstrip(";") if words else "asm"
        raise EmulatorError(
            f"{filename}:{number}: the instruction {name} (inline PTX) is not emulated; "
            "keep it behind #ifndef CONVSTUDY_EMULATOR, with a plain CUDA C++ form beside it"
        )


@functools.cache
def open_library(path):
    """Load a shared object; it stays loaded."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EmulatorError(
            f"the emulator has built a file that cannot be loaded ({error}); "
            "`make clean` removes it, and it is built again"
        ) from None


def disassemble(path):
    """Return the machine code of a shared object as text."""
    return _run(("objdump",), "-d", "--no-show-raw-insn", str(path)).stdout


def shared_arrays(path):
    """Return (offset, bytes, name) of the kernel's shared arrays; bytes is 0 for a dynamic one."""
    table = _run(("readelf",), "-sWC", str(path)).stdout
    found = (_SHARED_SYMBOL.search(line) for line in table.splitlines())
    arrays = {(int(m[1], 16), int(m[2], 0), m[3]) for m in found if m}
    return sorted(array for array in arrays if array[2] != "emu_dynamic")


def find_line(path, offset, filename):
    """Return the line of `filename` at the return address `offset` of a shared object, or None."""
    # A return address points behind its call. The innermost frame may lie in the emulator's header
    # (a float4's copy, __ldg): the kernel's own line is what called it.
    result = _run(("addr2line",), "-i", "-e", str(path), hex(offset - 1))
    for frame in result.stdout.splitlines():
        name, _, line = frame.split(" ")[0].rpartition(":")
        if Path(name).name == Path(filename).name and line.isdigit():
            return int(line)
    return None
