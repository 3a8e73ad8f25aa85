# SPDX-License-Identifier: MIT
"""Runs the cases under each tool of NVIDIA's compute-sanitizer, in a process of its own.

Behind one without any tool, which compiles what CuPy's cache does not have.
"""

import os
import shutil
import subprocess
import sys
import time

from convstudy import compile, device
from convstudy.sanitize.cases import cases

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_PROGRAM = "compute-sanitizer"
# Where NVIDIA's installers put it, beside what is on the PATH.
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
_FAILED, _MOST_S = 86, 150


def run_bare():
    """Run all cases on the first GPU, in this process; return 0, or 1 where one was wrong."""
    (gpu,) = device.require_gpu("sanitize")
    # In a pool, what lies behind an array is another's memory and no fault to read.
    device.allocate_plainly()
    wrong, count = 0, 0
    for case in cases(gpu):
        print(case.name, flush=True)
        count += 1
        try:
            case.run()
        except AssertionError as error:
            wrong += 1
            print(f"{case.name}: {error}", flush=True)
    print(f"{count} cases, {wrong} of them wrong", flush=True)
    return int(wrong > 0)


def program():
    """Return the path of compute-sanitizer.

    Raises
    ------
    RuntimeError
        Where there is none; the message says where it comes from.
    """
    found = shutil.which(_PROGRAM, path=os.pathsep.join((os.environ.get("PATH", ""), *_FOLDERS)))
    if found is None:
        raise RuntimeError(
            f"sanitize: {_PROGRAM} is not on the PATH nor in {_FOLDERS[0]}; it comes with NVIDIA's "
            f"CUDA toolkit, of a version as the driver's or older"
        )
    return found


def check(tools=TOOLS, say=print):
    """Run all cases under each of `tools`, and say what they found.

    Parameters
    ----------
    tools : sequence of str
        Of `TOOLS`.
    say : callable
        Takes one line at a time.

    Returns
    -------
    int
        0, or 1 where a tool found something or a result was wrong.

    Raises
    ------
    ValueError
        Where there is no such tool.
    RuntimeError
        Where there is no GPU, or no compute-sanitizer.
    """
    for tool in tools:
        if tool not in TOOLS:
            raise ValueError(f"sanitize: no tool {tool!r}; choose of {', '.join(TOOLS)}")
    (gpu,) = device.require_gpu("sanitize")
    sanitizer = program()
    compile.prepare((launch for case in cases(gpu) for launch in case.launches), gpu)
    bare = [sys.executable, "-m", "convstudy", "sanitize", "--bare"]
    status = _run("no tool", bare, say)
    if status:
        return status
    for tool in tools:
        # What CuPy asks the driver in vain is no fault of a kernel's.
        options = ["--tool", tool, "--error-exitcode", str(_FAILED), "--print-limit", "20"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        status |= _run(tool, [sanitizer, *options, *bare], say)
    return status


def _run(name, command, say):
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_MOST_S
        )
        output, status = done.stdout, done.returncode
        verdict = "clean" if status == 0 else "FAULTS" if status == _FAILED else f"exit {status}"
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(errors="replace"), 1
        verdict = f"not finished after {_MOST_S} s"
    lines = output.splitlines()
    last = next((line for line in reversed(lines) if " cases, " in line), "no case finished")
    say(f"{name}: {verdict}; {last} ({time.perf_counter() - began:.0f} s)")
    if status:
        for line in lines[-100:]:
            say(f"  {line}")
    return int(status != 0)
