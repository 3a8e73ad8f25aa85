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


def beside(size=128):
    """Return a program that does something beside others, its buffers, and those others'."""
    builder = Builder(EMULATOR)
    given, found = (builder.buffer(size, kept=True) for _ in range(2))
    early, inner, result = (builder.buffer(size) for _ in range(3))
    others = [builder.buffer(size) for _ in range(3)]
    builder.run(launch_relu(size), given, early)
    with builder.beside():
        builder.run(launch_relu(size), early, inner)
        builder.run(launch_relu(size), inner, result)
        builder.mark("beside")
    for before, after in itertools.pairwise([given, *others]):
        builder.run(launch_relu(size), before, after)
    builder.mark("not beside")
    builder.join()
    builder.mark("joined")
    builder.run(launch_relu(size), result, found)
    return builder.finish(), given, found, (early, inner, result), others


@pytest.mark.parametrize("late", [False, True])
def test_what_runs_beside_others_is_done_when_they_join(late, rng):
    program, given, found, *_ = beside()
    program.allocate()
    x = rng.standard_normal(128).astype(np.float32)
    program.array(given)[...] = x
    seen = []
    program.run(reached=seen.append, late=late)
    names = ["beside", "not beside"]
    assert seen == [*(names[::-1] if late else names), "joined"]
    np.testing.assert_array_equal(program.array(found), np.maximum(x, 0))


def test_what_runs_beside_others_has_its_memory_until_they_join():
    program, _, _, own, others = beside()
    program.allocate()
    for each, other in itertools.product(own, others):
        assert not np.shares_memory(program.array(each), program.array(other))
    # Two of the others live at a time, as they would alone.
    assert program.arena_bytes == (3 + 2) * 512


def test_only_some_steps_are_launched_in_their_order():
    program, given, found, (_, _, result), _ = beside()
    program.allocate()
    program.array(given)[...] = 1
    program.array(result)[...] = 2
    program.run(only={len(program.steps) - 1})
    np.testing.assert_array_equal(program.array(found), np.full(128, 2))


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
