# SPDX-License-Identifier: MIT
"""What every kernel occupies on a chip, as its compiler says: registers, shared memory, spills."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from convstudy import compile, paths
from convstudy.conv.algorithm import ALGORITHMS
from convstudy.plots.save import Drawn

NAME = "tabS1_kernel_resources"
ARCHITECTURES = ("sm_80", "sm_90")
# With the defines that choose each; a kernel has the one or the other.
_DTYPES = {"float32": (), "bfloat16": (("BF16", 1),)}
_TOGETHER = 2
# What the assembler makes of a large kernel depends a little on where its process has its memory.
# So each is compiled by a process that has done nothing else; and where there may be more registers
# than this, by two or three: one text has been given 196, and once in a while 254.
_SURE = 168


def draw():
    """Compile every convolution kernel with its defaults, and return the table.

    Returns
    -------
    Drawn
        Columns kernel, dtype (of the arrays: float32, and bfloat16 where it takes them), arch,
        registers (of a thread), static_shared_bytes (of a block; what a launch asks for besides
        is in the kernel's header), spill_bytes.
    """
    kernels = [kernel for kernel in compile.kernels() if kernel.startswith("conv2d_")]
    cases = [
        (kernel, dtype, arch)
        for kernel, dtype, arch in itertools.product(kernels, _DTYPES, ARCHITECTURES)
        if (dtype == "float32" or _takes_bf16(kernel)) and _compiles(kernel, arch)
    ]
    return Drawn(NAME, pd.DataFrame(_compiled(cases)))


def _compiles(kernel, arch):
    # Instructions of one chip alone are asked for by its name and an "a".
    return any(each.startswith(arch) for each in compile.architectures(kernel))


def _takes_bf16(kernel):
    row = ALGORITHMS.get(kernel)
    return "bf16" in row.precisions if row else kernel == "conv2d_splits_1_sum"


def _compiled(cases):
    files = dict(zip(cases, map(_file, cases), strict=True))
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(_keep, *zip(*files.items(), strict=True)))
    return [json.loads(file.read_text()) for file in files.values()]


def _file(case):
    """Return where the row of a case is kept, as long as text and compiler stay the same."""
    kernel, dtype, arch = case
    text = "\0".join((compile.source(kernel, _DTYPES[dtype]), arch, compile.compiler_version()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return paths.BUILD / "resources" / f"{kernel}-{digest}.json"


def _keep(case, file):
    if file.exists():
        return
    said = [_occupied(case, 0)]
    if said[0]["registers"] > _SURE:
        said.append(_occupied(case, 1))
        if said[0] != said[1]:
            said.append(_occupied(case, 2))
    row = dict(zip(("kernel", "dtype", "arch"), case, strict=True)) | max(said, key=said.count)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as kept:
        json.dump(row, kept)
    Path(kept.name).rename(file)


def _occupied(case, attempt):
    """Return what the compiler says of a case: its row's numbers."""
    kernel, dtype, arch = case
    script = (
        f"from convstudy import compile\n"
        f"cubin = compile.cubin({kernel!r}, {arch!r}, {_DTYPES[dtype]!r})\n"
        f"print(cubin.registers, cubin.shared_bytes, cubin.spill_bytes)"
    )
    alone = subprocess.run(
        (sys.executable, "-c", script),
        env=os.environ | {"PYTHONHASHSEED": str(attempt)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    names = "registers", "static_shared_bytes", "spill_bytes"
    return dict(zip(names, map(int, alone.stdout.split()), strict=True))


def display(table):
    """Return one line a kernel and dtype."""
    keys = ["kernel", "dtype"]
    wide = table.pivot(index=keys, columns="arch", values="registers")
    wide = wide.map(lambda registers: "" if pd.isna(registers) else f"{registers:.0f}")
    wide.columns = [f"registers, {arch}" for arch in wide.columns]
    first = table.drop_duplicates(keys).set_index(keys)
    return wide.join(first[["static_shared_bytes", "spill_bytes"]])
