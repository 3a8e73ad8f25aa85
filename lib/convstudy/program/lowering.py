# SPDX-License-Identifier: MIT
"""From fused operations to launches: what inference and training share."""

import numpy as np

from convstudy.conv.algorithm import choose, plan
from convstudy.conv.epilogue import Epilogue
from convstudy.problem import BFLOAT16, ConvProblem
from convstudy.program import fuse
from convstudy.program.program import Builder
from convstudy.program.trace import trace

PRECISIONS = ("fp32", "tf32", "bf16")


class Lowering:
    """A network's operations for one batch, where their values lie, and a builder for launches.

    Parameters
    ----------
    network : UNet
    shape : (N, C, H, W)
        Of the images.
    precision : {"fp32", "tf32", "bf16"}
        How exact products are at least. bf16: values between layers are bf16, too.
    device : Device
        A GPU, or the emulator.
    """

    def __init__(self, network, shape, precision, device):
        if precision not in PRECISIONS:
            raise ValueError(
                f"no precision {precision!r}; choose {' or '.join(map(repr, PRECISIONS))}"
            )
        self.precision, self.device = precision, device
        self.dtype = BFLOAT16 if precision == "bf16" else np.dtype(np.float32)
        self.trace = trace(network, shape)
        self.operations = fuse.fuse(self.trace)
        self.builder = Builder(device)
        self.lies = fuse.homes(self.operations, self.trace, self.builder, self.dtype)

    def problem(self, x_shape, k, taps, **options):
        """Return the `ConvProblem` of an NHWC tensor and `k` filters of `taps`."""
        n, h, w, c = x_shape
        return ConvProblem(
            *(n, c, h, w, k, *taps),
            dtype=self.dtype.name,
            layout="NHWC",
            precision=self.precision,
            **options,
        )

    def convolve(self, which, problem, *arrays, epilogue=None):
        """Launch a pass of a convolution by the algorithm that suits it best."""
        epilogue = epilogue or Epilogue()
        name = choose(problem, self.device, which, epilogue)
        self.builder.run(plan(name, problem, self.device, epilogue), *arrays)
