# SPDX-License-Identifier: MIT
"""What a rank of two GPUs does in the tests: sums in a window, at once and in a graph.

All ranks get the sums, or a part each, which they gather then.
"""

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

    def by_parts(part):
        every = part.reshape(ranks.size, -1)
        ranks.start_reduce_scatter(part).wait()
        ranks.start_all_gather(every[ranks.rank], every).wait()

    for add_up in (ranks.all_reduce, by_parts):
        for _ in range(3):
            expected = refill()
            add_up(part)
            agree(expected)
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            for half in (part[: part.size // 2], part[part.size // 2 :]):
                add_up(half)
            graph = stream.end_capture()
        for _ in range(20):
            expected = refill()
            words.barrier()
            graph.launch(cupy.cuda.get_current_stream())
            agree(expected)
    refill()
    before = part.get().reshape(ranks.size, -1)
    ranks.start_reduce_scatter(part).wait()
    ranks.settle()
    # The other's part stays as it was: zeros between parameters have to.
    after = part.get().reshape(ranks.size, -1)
    np.testing.assert_array_equal(after[1 - ranks.rank], before[1 - ranks.rank])


if __name__ == "__main__":
    launch.run(check)
