# SPDX-License-Identifier: MIT
"""GPUs that need not be here: kernels are planned and compiled for them, and asked of them."""

import dataclasses

from convstudy.device import EMULATOR, Device

H200 = Device("gpu", "an H200", 0, (9, 0), 132, 227 * 1024, 60 * 2**20, 141 * 2**30)
A30 = Device("gpu", "an A30", 0, (8, 0), 56, 163 * 1024, 24 * 2**20, 24 * 2**30)
# The emulator, where a block takes tile after tile: on its own 132 multiprocessors, it takes one.
ONE_SM = dataclasses.replace(EMULATOR, sm_count=1, name="one multiprocessor")
