# SPDX-License-Identifier: MIT
"""What every kernel occupies on a chip, as its compiler says: registers, shared memory, spills."""

import pandas as pd

from convstudy import compile
from convstudy.plots.save import Drawn

NAME = "tabS1_kernel_resources"
ARCHITECTURES = ("sm_80", "sm_90")


def draw():
    """Compile every convolution kernel with its defaults, and return the table.

    Returns
    -------
    Drawn
        Columns kernel, arch, registers (of a thread), static_shared_bytes (of a block; what a
        launch asks for besides is in the kernel's header), spill_bytes.
    """
    rows = [
        {
            "kernel": kernel,
            "arch": arch,
            "registers": cubin.registers,
            "static_shared_bytes": cubin.shared_bytes,
            "spill_bytes": cubin.spill_bytes,
        }
        for kernel in compile.kernels()
        if kernel.startswith("conv2d_")
        for arch in ARCHITECTURES
        for cubin in (compile.cubin(kernel, arch),)
    ]
    return Drawn(NAME, pd.DataFrame(rows))


def display(table):
    """Return one line a kernel."""
    wide = table.pivot(index="kernel", columns="arch", values="registers")
    wide.columns = [f"registers, {arch}" for arch in wide.columns]
    first = table.drop_duplicates("kernel").set_index("kernel")
    return wide.join(first[["static_shared_bytes", "spill_bytes"]])
