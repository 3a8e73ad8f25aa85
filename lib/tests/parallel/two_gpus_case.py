# SPDX-License-Identifier: MIT
"""What a rank of two GPUs does in the tests: sums in a window, at once and in a graph."""

import numpy as np

from convstudy.device import array_module, devices
from convstudy.parallel import launch
from convstudy.parallel.nccl import Nccl, own_gpu

COUNT = 2**22


def check(words):
    ranks = Nccl(words, own_gpu(words, devices()))
    cupy = array_module(ranks.device)
    room = ranks.room(COUNT)
    assert room is not None, "NCCL has no windows here"
    part = room[COUNT // 4 :][: COUNT // 2]
    rng = np.random.default_rng(words.rank)

    def refill():
        given = cupy.asarray(rng.standard_normal(part.size, dtype=np.float32))
        part[...] = given
        ranks.bare_all_reduce(given)  # outside of the window
        ranks.settle()
        return given

    def agree(expected):
        ranks.settle()
        np.testing.assert_array_equal(part.get(), expected.get())
        assert not room[: COUNT // 4].any()

    for _ in range(3):
        expected = refill()
        ranks.all_reduce(part)
        agree(expected)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for half in (part[: part.size // 2], part[part.size // 2 :]):
            ranks.all_reduce(half)
        graph = stream.end_capture()
    for _ in range(20):
        expected = refill()
        words.barrier()
        graph.launch(cupy.cuda.get_current_stream())
        agree(expected)


if __name__ == "__main__":
    launch.run(check)
