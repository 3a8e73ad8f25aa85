# SPDX-License-Identifier: MIT
"""How a matrix times a few vectors is cut: filters of 1 x 1 on so few pixels, as linear layers."""

import math
from typing import NamedTuple

from convstudy.compile import Launch
from convstudy.conv import gemm
from convstudy.conv.epilogue import PLAIN, Epilogue

# Beyond, multiply-adds take longer than the weights that they use.
_MOST_PIXELS = 8
_VECTOR_BYTES = 16
# That a lane has on their way at once, and threads of a multiprocessor.
_UNDER_WAY, _THREADS = 8, 1536


class Choice(NamedTuple):
    """Filters of a block, and its warps."""

    filters: int
    warps: int


# There is no `cost`: the estimate tells choices apart alone. They are taken where tuning finds them
# fastest, and where no other kernel says what it costs.


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16: it does."""
    return True


def _pixels(problem):
    return problem.n * problem.p * problem.q


def supports(kernel, problem, device):
    """Return (ok, reason) for the kernel of few pixels."""
    p = problem
    if (p.r, p.s, p.stride, p.padding) != (1, 1, (1, 1), (0, 0)):
        return False, "it takes filters of 1 x 1 at a stride of 1 without padding"
    if _pixels(p) > _MOST_PIXELS:
        return False, f"it takes at most {_MOST_PIXELS} pixels; N P Q={_pixels(p)}"
    if max(p.c, p.k) >= 2**31:
        return False, "channels or filters are 2^31 or more; cut the layer"
    if p.dtype == "bfloat16" and device.compute_capability < (8, 0):
        return False, f"it needs sm_80 or later for bfloat16; {device.name} is older"
    return True, ""


def choices(kernel, problem, device):
    """Return all `Choice` worth a try."""
    return [Choice(filters, warps) for filters in (1, 2, 4) for warps in (4, 8)]


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice, to tell which to try.

    A multiprocessor's part of device memory's bandwidth is some 18 bytes a cycle. What takes off
    that is read from timings on an H200, of linear layers of VGG and ResNet for one image: blocks
    of 2 filters and of 8 warps are best, and it counts for little whether rounds of blocks are
    whole, and whether lanes have no vector left and wait for those that do.
    """
    p = problem
    blocks = math.ceil(p.k / choice.filters)
    slots = device.sm_count * (_THREADS // (32 * choice.warps))
    rounds = math.ceil(blocks / slots) * slots / blocks
    vectors = math.ceil(p.c * p.itemsize / _VECTOR_BYTES)
    once = 32 * choice.warps * (_UNDER_WAY // choice.filters)
    full = math.ceil(vectors / once) * once / vectors
    more = 1 + 0.06 * (choice.filters != 2) + 0.07 * (choice.warps == 4)
    reading = p.k * p.c * p.itemsize / (18 * device.sm_count)
    return 3000 + reading * more * (rounds * full) ** 0.15


best = gemm.cheapest(choices, estimate)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: with a ReLU, in an array of its own."""
    return epilogue in (PLAIN, Epilogue(relu=True))


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launch of the kernel; `choice` is one of `choices`, or the `best`."""
    p = problem
    filters, warps = choice or best(kernel, problem, device)
    vector = _VECTOR_BYTES // p.itemsize
    defines = (
        ("PIXELS", _pixels(p)),
        ("FILTERS", filters),
        ("DEEP", _UNDER_WAY // filters),
        ("WARPS", warps),
        ("BF16", int(p.dtype == "bfloat16")),
        ("VECTOR", 1 if p.c % vector else vector),
        *epilogue.constants,
    )
    return Launch(kernel, (math.ceil(p.k / filters),), (32 * warps,), (p.c, p.k), defines)
