# SPDX-License-Identifier: MIT
"""The CPU emulator's answers beside the GPU's, kernel by kernel, bit by bit."""

import numpy as np

from convstudy import tolerance
from convstudy.conv.algorithm import plan
from convstudy.device import EMULATOR, array_module, devices
from convstudy.measure.suite import Case, Suite, result
from convstudy.measure.suites.network import KERNELS, no_gpu
from convstudy.problem import ConvProblem

_PROBLEMS = {
    "odd width": ConvProblem(2, 5, 13, 19, 9, 3, 3, padding=(1, 1)),
    "deep": ConvProblem(1, 40, 8, 11, 24, 3, 3, padding=(1, 1)),
    "7x7, stride 2": ConvProblem(1, 3, 21, 23, 4, 7, 7, stride=(2, 2), padding=(3, 3)),
    "1x1": ConvProblem(2, 7, 5, 6, 10, 1, 1),
}


def cases(options):
    """Yield a case for each convolution kernel and problem."""
    for kernel in KERNELS:
        for title, problem in _PROBLEMS.items():
            labels = {"kernel_id": kernel, "problem_title": title}
            name = f"{kernel}/{title}"
            yield Case(
                name,
                lambda name=name, labels=labels, p=problem: [_compare(name, labels, p)],
                labels,
                no_gpu(),
            )


def _compare(name, labels, problem):
    device = devices()[0]
    xp = array_module(device)
    rng = np.random.default_rng()
    shapes = problem.x_shape, problem.w_shape, (problem.k,)
    host = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    launch = plan(labels["kernel_id"], problem, device)
    on_gpu = xp.full(problem.y_shape, np.nan, np.float32)
    launch.run(device, (*map(xp.asarray, host), on_gpu))
    emulated = np.full(problem.y_shape, np.nan, np.float32)
    counts = launch.run(EMULATOR, (*host, emulated))
    return result(
        name,
        labels,
        problem=problem,
        launch=launch,
        values={
            "max_relative_difference": tolerance.relative_error(emulated, on_gpu.get()),
            "bit_identical": bool(np.array_equal(emulated, on_gpu.get())),
            "global_loads": counts.global_loads,
            "shared_loads": counts.shared_loads,
            "barriers": counts.barriers,
        },
        device=device,
    )


SUITE = Suite("emulator", "The emulator's answers and the GPU's", cases, gpus=1)
