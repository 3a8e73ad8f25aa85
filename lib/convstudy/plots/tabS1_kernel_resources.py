# SPDX-License-Identifier: MIT
"""What every kernel occupies on a chip, as its compiler says: registers, shared memory, spills."""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pandas as pd

from convstudy import compile
from convstudy.plots.save import Drawn

NAME = "tabS1_kernel_resources"
ARCHITECTURES = ("sm_80", "sm_90")
_TOGETHER = 2


def draw():
    """Compile every convolution kernel with its defaults, and return the table.

    Returns
    -------
    Drawn
        Columns kernel, arch, registers (of a thread), static_shared_bytes (of a block; what a
        launch asks for besides is in the kernel's header), spill_bytes.
    """
    kernels = [kernel for kernel in compile.kernels() if kernel.startswith("conv2d_")]
    return Drawn(NAME, pd.DataFrame(_compiled(list(itertools.product(kernels, ARCHITECTURES)))))


def _compiled(cases):
    # A process each: what the assembler makes of a large kernel depends a little on what the same
    # process compiled before.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_TOGETHER, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(_row, cases))


def _row(case):
    cubin = compile.cubin(*case)
    return {
        "kernel": case[0],
        "arch": case[1],
        "registers": cubin.registers,
        "static_shared_bytes": cubin.shared_bytes,
        "spill_bytes": cubin.spill_bytes,
    }


def display(table):
    """Return one line a kernel."""
    wide = table.pivot(index="kernel", columns="arch", values="registers")
    wide.columns = [f"registers, {arch}" for arch in wide.columns]
    first = table.drop_duplicates("kernel").set_index("kernel")
    return wide.join(first[["static_shared_bytes", "spill_bytes"]])
