# SPDX-License-Identifier: MIT
"""What every kernel occupies on a chip, as its compiler says: registers, shared memory, spills."""

import hashlib
import itertools
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
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
# Rarely, the assembler gives a kernel that may have more registers than this others than it does as
# a rule, of the same text (254 for 196): two of three tell what it gives.
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
    missing = [case for case, file in files.items() if not file.exists()]
    # A process each: what the assembler makes of a large kernel depends a little on what the same
    # process compiled before. They come from one that has imported all of this, and compiled none.
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(_TOGETHER, mp_context=fresh, max_tasks_per_child=1) as pool:
        said = {case: [row] for case, row in zip(missing, pool.map(_row, missing), strict=True)}
        unsure = [case for case in missing if said[case][0]["registers"] > _SURE]
        for _ in range(2):
            for case, row in zip(unsure, pool.map(_row, unsure), strict=True):
                said[case].append(row)
    for case, rows in said.items():
        _keep(files[case], max(rows, key=rows.count))
    return [json.loads(file.read_text()) for file in files.values()]


def _file(case):
    """Return where the row of a case is kept, as long as text and compiler stay the same."""
    kernel, dtype, arch = case
    text = "\0".join((compile.source(kernel, _DTYPES[dtype]), arch, compile.compiler_version()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return paths.BUILD / "resources" / f"{kernel}-{digest}.json"


def _row(case):
    kernel, dtype, arch = case
    cubin = compile.cubin(kernel, arch, _DTYPES[dtype])
    return {
        "kernel": kernel,
        "dtype": dtype,
        "arch": arch,
        "registers": cubin.registers,
        "static_shared_bytes": cubin.shared_bytes,
        "spill_bytes": cubin.spill_bytes,
    }


def _keep(file, row):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as kept:
        json.dump(row, kept)
    Path(kept.name).rename(file)


def display(table):
    """Return one line a kernel and dtype."""
    keys = ["kernel", "dtype"]
    wide = table.pivot(index=keys, columns="arch", values="registers")
    wide = wide.map(lambda registers: "" if pd.isna(registers) else f"{registers:.0f}")
    wide.columns = [f"registers, {arch}" for arch in wide.columns]
    first = table.drop_duplicates(keys).set_index(keys)
    return wide.join(first[["static_shared_bytes", "spill_bytes"]])
