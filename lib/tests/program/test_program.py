# SPDX-License-Identifier: MIT
"""Launches on named arrays: memory shared and apart, parts of arrays, marks."""

import itertools

import numpy as np
import pytest

from convstudy.compile import Launch
from convstudy.device import EMULATOR
from convstudy.emulator.errors import EmulatorError
from convstudy.nn.cuda import launch_max_pool2d, launch_relu
from convstudy.program.program import Builder


def relu_chain(count, size):
    """Return a program that applies ReLU `count` times, from buffer to buffer."""
    builder = Builder(EMULATOR)
    buffers = [builder.buffer(size, kept=True), *(builder.buffer(size) for _ in range(count - 1))]
    buffers.append(builder.buffer(size, kept=True))
    for before, after in itertools.pairwise(buffers):
        builder.run(launch_relu(size), before, after)
    return builder.finish(), buffers


@pytest.mark.parametrize("apart", [True, False])
def test_memory_is_shared_by_what_lives_at_other_times(apart, rng):
    program, buffers = relu_chain(5, 100)
    program.allocate(apart)
    x = rng.standard_normal(100).astype(np.float32)
    program.array(buffers[0])[...] = x
    program.run()
    np.testing.assert_array_equal(program.array(buffers[-1]), np.maximum(x, 0))
    # Of four arrays in a chain two live at a time.
    assert program.arena_bytes == program.least_bytes == 2 * 512
    assert program.kept_bytes == 2 * 400


def test_apart_a_launch_beyond_its_array_is_caught():
    builder = Builder(EMULATOR)
    small, large = builder.buffer(60), builder.buffer(100)
    builder.run(launch_relu(100), large, small)
    program = builder.finish()
    program.allocate(apart=True)
    with pytest.raises(EmulatorError):
        program.run()


def test_parts_of_a_tensor(rng):
    builder = Builder(EMULATOR)
    whole = builder.tensor((2, 4, 5, 6), kept=True)
    part = whole.part((2, 3), 1, 2, (3, 2))
    assert (part.shape, part.pitch, part.pixels) == ((2, 3, 2, 3), 6, 12)
    assert whole.is_whole
    assert not part.is_whole
    target = builder.buffer(8, kept=True)
    builder.run(launch_relu(8), part, target)
    program = builder.finish()
    x = rng.standard_normal(240).astype(np.float32)
    program.array(whole)[...] = x
    program.run()
    start = x.reshape(2, 4, 5, 6)[0, 1, 2, 2:]
    np.testing.assert_array_equal(program.array(target)[:4], np.maximum(start, 0))


def test_marks_are_reached_between_launches():
    builder = Builder(EMULATOR)
    a, b = builder.buffer(8, kept=True), builder.buffer(8, kept=True)
    builder.mark("start")
    builder.run(launch_relu(8), a, b)
    builder.mark("middle")
    builder.run(launch_max_pool2d((1, 1, 2, 4)), b, a)
    builder.mark("end")
    program = builder.finish()
    program.allocate()
    program.array(a)[...] = np.arange(8)
    seen = []
    program.run(reached=lambda name: seen.append((name, float(program.array(b)[7]))))
    assert seen == [("start", 0), ("middle", 7), ("end", 7)]
    assert all(isinstance(launch, Launch) for launch, _ in program.steps)


@pytest.mark.parametrize("told", [True, False])
def test_what_a_mark_reads_and_writes_lies_apart(told):
    """From what it reads to what it writes: without a word, both may have the same place."""
    builder = Builder(EMULATOR)
    ends = builder.buffer(8, kept=True), builder.buffer(8, kept=True)
    read, written = builder.buffer(8), builder.buffer(8)
    builder.run(launch_relu(8), ends[0], read)
    builder.mark("exchange", *((read, written) if told else ()))
    builder.run(launch_relu(8), written, ends[1])
    program = builder.finish()
    program.allocate()
    assert np.shares_memory(program.array(read), program.array(written)) == (not told)
    program.array(ends[0])[...] = np.arange(8)
    program.run(reached=lambda name: np.copyto(program.array(written), -program.array(read) + 9))
    if told:
        np.testing.assert_array_equal(program.array(ends[1]), 9 - np.arange(8))
