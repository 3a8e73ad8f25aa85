# SPDX-License-Identifier: MIT
"""What a rank does in the tests of ranks: ``mpiexec -n 4 python rank_cases.py`` runs every case.

Rank 0 prints one JSON object, {case: null, or what went wrong on which rank}.
"""

import json
import sys
import traceback

import numpy as np

from convstudy.device import EMULATOR
from convstudy.models.unet import UNet
from convstudy.nn.tape import TapeOps
from convstudy.parallel import launch
from convstudy.parallel.backend import RankedBackend
from convstudy.parallel.buckets import Buckets, Reduction
from convstudy.parallel.channels import gather, scatter_sum
from convstudy.parallel.communicator import RanksError, described
from convstudy.parallel.gpu import RankedGpuBackend
from convstudy.parallel.grid import Grid
from convstudy.problem import BFLOAT16
from convstudy.program.backend import GpuBackend
from convstudy.tolerance import assert_close
from convstudy.train.backend import CpuBackend
from convstudy.train.losses import cross_entropy_dice

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def batch(n, size=(32, 48), seed=0):
    rng = np.random.default_rng(seed)
    masks = (rng.random((n, *size)) < 0.3).astype(np.uint8)
    return rng.random((n, 3, *size), np.float32), masks


# ---- what they say to each other


@case
def numbers_are_added_up(ranks):
    array = np.arange(5.0) * (ranks.rank + 1)
    assert ranks.all_reduce(array) is array
    total = sum(range(1, ranks.size + 1))
    np.testing.assert_array_equal(array, np.arange(5.0) * total)
    mean = ranks.all_reduce(np.full(3, ranks.rank, np.float32), "mean")
    np.testing.assert_array_equal(mean, np.full(3, (ranks.size - 1) / 2))


@case
def sums_are_begun_and_awaited_in_any_order(ranks):
    arrays = [np.full(100_000, float(i), np.float32) for i in range(4)]
    begun = [ranks.start_all_reduce(array) for array in arrays]
    for request in reversed(begun):
        request.wait()
    for i, array in enumerate(arrays):
        assert (array == i * ranks.size).all()


@case
def all_ranks_get_the_same_bits_every_time(ranks):
    rng = np.random.default_rng(ranks.rank)
    numbers = rng.standard_normal(50_001).astype(np.float32)
    sums = [ranks.all_reduce(numbers.copy()) for _ in range(3)]
    for every in zip(*[ranks.exchange(each.tobytes()) for each in sums], strict=True):
        assert len(set(every)) == 1
    assert len(set(ranks.exchange(sums[0].tobytes()))) == 1


@case
def arrays_are_handed_round(ranks):
    assert ranks.broadcast(np.array([ranks.rank + 7]), root=ranks.size - 1)[0] == ranks.size + 6
    every = np.empty((ranks.size, 2), np.int64)
    ranks.all_gather(np.array([ranks.rank, -ranks.rank]), every)
    assert every.tolist() == [[i, -i] for i in range(ranks.size)]
    parts = np.arange(ranks.size * 3, dtype=np.float32).reshape(ranks.size, 3)
    own = np.empty(3, np.float32)
    ranks.reduce_scatter(parts, own)
    np.testing.assert_array_equal(own, parts[ranks.rank] * ranks.size)
    for dtype in (np.float32, BFLOAT16):  # in place, as GPUs do
        row = np.zeros((ranks.size, 3), dtype)
        row[ranks.rank] = ranks.rank + 1
        ranks.all_gather(row[ranks.rank], row)
        assert row.astype(int).tolist() == [[i + 1] * 3 for i in range(ranks.size)]
    flat = np.arange(ranks.size * 3, dtype=np.float32)
    ranks.start_reduce_scatter(flat).wait()
    parts[ranks.rank] *= ranks.size
    np.testing.assert_array_equal(flat, parts.ravel())
    right, left = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
    got = np.empty(2, np.float32)
    for turn in (0, 1):
        if ranks.rank % 2 == turn:
            ranks.send(np.full(2, ranks.rank, np.float32), right)
        else:
            ranks.receive(got, left)
    assert (got == left).all()
    ranks.barrier()


@case
def words_are_exchanged_and_told(ranks):
    assert ranks.exchange("x" * ranks.rank) == ["x" * i for i in range(ranks.size)]
    told = ranks.tell({"a": np.arange(3)} if ranks.rank == 1 else None, root=1)
    assert told["a"].tolist() == [0, 1, 2]


@case
def ranks_split_into_groups(ranks):
    half = ranks.split(ranks.rank // 2)
    assert (half.rank, half.size) == (ranks.rank % 2, 2)
    assert half.exchange(ranks.rank) == [ranks.rank // 2 * 2, ranks.rank // 2 * 2 + 1]


@case
def a_fault_of_one_is_known_to_all(ranks):
    def fail():
        if ranks.rank == 1:
            raise ValueError("no such file")
        return ranks.rank

    assert ranks.together(lambda: ranks.rank) == ranks.rank
    assert raised(lambda: ranks.together(fail)) == "rank 1: no such file"
    ranks.agree({"width": 8, "code": "abc"})
    words = raised(lambda: ranks.agree({"width": 8, "steps": 5 + (ranks.rank == 0)}))
    assert words.startswith(f"the {ranks.size} ranks are not of one mind: steps: rank 0: 6; rank")
    assert ": 5. Start the same code with the same options on all of them" in words
    assert "width" not in words


@case
def what_mpi_cannot_carry_is_refused(ranks):
    for fault, wrong in (
        ("it takes C-contiguous NumPy arrays, got list", lambda: ranks.all_reduce([1.0])),
        ("C-contiguous", lambda: ranks.all_reduce(np.zeros((4, 4))[:, ::2])),
        ("no operation 'max'", lambda: ranks.all_reduce(np.zeros(2), "max")),
        ("parts are float64", lambda: ranks.all_gather(np.zeros(2), np.zeros((9, 2)))),
    ):
        assert fault in raised(wrong, (TypeError, ValueError))


def raised(work, kinds=RanksError):
    try:
        work()
    except kinds as error:
        return str(error)
    raise AssertionError("nothing was raised")


# ---- gradients in buckets


@case
def buckets_are_added_up_as_they_become_whole(ranks):
    shapes = {"d": (3, 5), "c": (7,), "b": (2, 2, 2), "a": (4,)}
    buckets = Buckets.of(shapes, most=64, last=32)
    flat = np.zeros(buckets.size, np.float32)
    views = {name: flat[buckets.places[name]].reshape(s) for name, s in shapes.items()}
    for _ in range(2):
        reduction = Reduction(buckets, flat, ranks)
        for i, name in enumerate(("c", "d", "b", "a")):  # not quite in order
            views[name][...] = i + 10 * ranks.rank
            reduction.ready(name)
        reduction.finish()
        ten = 10 * sum(range(ranks.size))
        for i, name in enumerate(("c", "d", "b", "a")):
            assert (views[name] == i * ranks.size + ten).all()


@case
def parts_of_any_length_are_gathered_and_their_sums_scattered(ranks):
    counts = [2] + [1] * (ranks.size - 1)
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((3, sum(counts), 2)).astype(np.float32)
    start = sum(counts[: ranks.rank])
    own = whole[:, start : start + counts[ranks.rank]]
    np.testing.assert_array_equal(gather(ranks, own, 1, counts), whole)
    scattered = scatter_sum(ranks, whole * (ranks.rank + 1), 1, counts)
    np.testing.assert_allclose(scattered, own * sum(range(1, ranks.size + 1)), rtol=1e-6)


# ---- training


def grids(ranks):
    for model, cut_from in ((1, 3), (2, 4), (2, 2), (2, 0), (ranks.size, 3), (ranks.size, 0)):
        yield Grid(ranks, model, cut_from)


def opened(grid, n, make=RankedBackend, width=4, bilinear=False, **options):
    network = UNet.initialised(3, width=width, bilinear=bilinear)
    return make(network, grid, n, "sgd", **options)


@case
def gradients_are_those_of_one_rank(ranks):
    """Of the whole batch: what each sum adds up bounds the error."""
    images, masks = batch(5)
    network = UNet.initialised(3, width=4)
    tape = TapeOps()
    logits = network.apply(images, tape)
    loss, dlogits, _ = cross_entropy_dice(logits, masks)
    reference = tape.backward(dlogits)
    for grid in grids(ranks):
        backend = opened(grid, 5, bucket_bytes=4096)
        own = grid.share(5)
        backend._begin(5)
        backend._tape.training = backend._tape.recording = True
        found = backend.network.apply(images[own], backend._tape)
        ours, dfound, _ = cross_entropy_dice(found, masks[own], backend._total)
        assert abs(ours - loss) < 1e-6 * loss, (ours, loss)
        gradients, _ = backend._gradients(dfound)
        for name, expected in reference.items():
            part = backend._part(f"network.{name}", expected)
            # Each gradient is a sum over all pixels of sums over a layer's terms, all the way.
            assert_close(gradients[name], part, images.size, *network.terms())


@case
def a_few_steps_are_those_of_one_rank(ranks):
    images, masks = batch(6)
    for bilinear in (False, True):
        alone = CpuBackend(UNet.initialised(3, width=4, bilinear=bilinear), "sgd", clip=0.5)
        expected = [alone.step(images, masks, 0.01) for _ in range(3)]
        logits = alone.predict(images[:3])
        for grid in grids(ranks):
            backend = opened(grid, 6, bilinear=bilinear, clip=0.5)
            own = grid.share(6)
            for one in expected:
                ours = backend.step(images[own], masks[own], 0.01)
                for got, want in zip(ours, one, strict=True):
                    assert abs(got - want) < 1e-5 * abs(want), (got, want)
            state = backend.state()
            for name, array in alone.state().items():
                scale = np.abs(array).max() + 1e-3
                assert np.abs(state[name] - array).max() < 1e-5 * scale, name
            # Fewer images than ranks, too.
            np.testing.assert_allclose(backend.predict(images[:3]), logits, rtol=0, atol=1e-5)
            np.testing.assert_allclose(backend.predict(images[:1]), logits[:1], rtol=0, atol=1e-5)


@case
def every_rank_and_every_run_comes_to_the_same_bits(ranks):
    images, masks = batch(6)
    for model in (1, 2):
        states = []
        for _ in range(2):
            backend = opened(Grid(ranks, model), 6, bucket_bytes=4096)
            own = backend.grid.share(6)
            losses = [backend.step(images[own], masks[own], 0.01).loss for _ in range(3)]
            state = backend.state()
            states.append((losses, b"".join(state[name].tobytes() for name in sorted(state))))
        assert states[0] == states[1]
        assert len(set(ranks.exchange(states[0][1]))) == 1


@case
def local_batch_norm_is_each_ranks_own(ranks):
    """Of a rank's images alone, as one rank trains on them; and the statistics are the mean."""
    images, masks = batch(2 * ranks.size)
    grid = Grid(ranks)
    own = grid.share(len(images))
    backend = opened(grid, len(images), batch_norm="local")
    backend.step(images[own], masks[own], 0.01)
    alone = CpuBackend(UNet.initialised(3, width=4), "sgd")
    alone.step(images[own], masks[own], 0.01)
    names = [name for name in alone.state() if "running_" in name]
    means = {n: np.mean(ranks.exchange(alone.state()[n]), axis=0) for n in names}
    state = backend.state()
    for name in names:
        np.testing.assert_allclose(state[name], means[name], rtol=1e-5, atol=1e-7)
    # Cut or not, what ranks hold is the same.
    for model in (1, 2):
        backend = opened(Grid(ranks, model), len(images), batch_norm="local")
        own = backend.grid.share(len(images))
        backend.step(images[own], masks[own], 0.01)
        content = b"".join(array.tobytes() for array in backend.state().values())
        assert len(set(ranks.exchange(content))) == 1


@case
def a_state_goes_from_any_ranks_to_any_others(ranks):
    images, masks = batch(4)
    before = CpuBackend(UNet.initialised(5, width=4), "adamw")
    before.step(images, masks, 0.01)
    state = {name: array.copy() for name, array in before.state().items()}
    for grid in grids(ranks):
        network = UNet.initialised(3, width=4)
        backend = RankedBackend(network, grid, 4, "adamw")
        backend.load_state(state)
        for name, array in backend.state().items():
            np.testing.assert_array_equal(array, state[name])
        backend.step(images[grid.share(4)], masks[grid.share(4)], 0.01)


# ---- the GPU's step, on the emulator


def emulated(ranks, n, batch_norm, width=4, **options):
    network, grid = UNet.initialised(3, width=width), Grid(ranks)
    return RankedGpuBackend(
        *(network, grid, grid, (n, 3, 32, 32), "fp32", "sgd"),
        **{"batch_norm": batch_norm, "device": EMULATOR, "clip": 0.5} | options,
    )


@case
def a_gpus_step_on_ranks_is_that_of_one(ranks):
    """The loss, what is trained and the running statistics; and every rank has the same bits."""
    if ranks.size > 2:
        return  # every rank runs on the emulator, which fills a core
    images, masks = batch(4, (32, 32))
    alone = GpuBackend(
        *(UNet.initialised(3, width=4), (4, 3, 32, 32), "fp32", "sgd"), clip=0.5, device=EMULATOR
    )
    backend = emulated(ranks, 4, "synchronised", bucket_bytes=4096)
    own = backend.grid.share(4)
    expected = alone.step(images, masks.astype(np.int32), 0.01)
    ours = backend.step(images[own], masks[own].astype(np.int32), 0.01)
    for got, want in zip(ours, expected, strict=True):
        assert abs(got - want) < 1e-4 * abs(want), (got, want)
    state, content = backend.state(), b""
    for name, array in alone.state().items():
        scale = np.abs(array).max() + 1e-3
        assert np.abs(state[name] - array).max() < 1e-4 * scale, name
        content += state[name].tobytes()
    assert len(set(ranks.exchange(content))) == 1
    logits = backend.predict(images[:3])
    assert_close(logits, alone.predict(images[:3]), *[100 * t for t in backend.network.terms()])
    events = backend.timeline(images[own], masks[own].astype(np.int32), 0.01)
    whats = [event["what"] for event in events]
    assert whats[:4] == ["forward", "backward", "wait", "update"]
    assert whats[4:] == ["all-reduce"] * len(backend._buckets[0][1].parts)
    assert all(0 <= event["start_s"] <= event["stop_s"] for event in events)


@case
def a_gpus_norms_can_be_each_ranks_own(ranks):
    """Gradients are then the sums of what each image's own statistics give; runs repeat."""
    if ranks.size > 2:
        return
    images, masks = batch(4, (32, 32))
    contents = []
    for _ in range(2):
        backend = emulated(ranks, 4, "local", bucket_bytes=4096)
        own = backend.grid.share(4)
        backend.step(images[own], masks[own].astype(np.int32), 0.0)
        contents.append(b"".join(each.tobytes() for each in backend.gradients().values()))
    assert contents[0] == contents[1]
    assert len(set(ranks.exchange(contents[0]))) == 1
    cpu = opened(Grid(ranks), 4, batch_norm="local")
    cpu._tape.training = cpu._tape.recording = True
    found = cpu.network.apply(images[own], cpu._tape)
    _, dfound, _ = cross_entropy_dice(found, masks[own], cpu._total)
    expected, _ = cpu._gradients(dfound)
    ours = backend.gradients()
    sizes = [np.linalg.norm(each) for each in expected.values()]
    errors = [np.linalg.norm(ours[name] - each) for name, each in expected.items()]
    assert np.linalg.norm(errors) < 1e-4 * np.linalg.norm(sizes)


@case
def what_ranks_cannot_share_is_refused(ranks):
    for fault, wrong in (
        ("ranks cannot share layers by 3", lambda: Grid(ranks, 3)),
        ("levels are numbered 0 to 4", lambda: Grid(ranks, 2, 5)),
        ("each needs an image", lambda: opened(Grid(ranks), ranks.size - 1)),
        ("cannot share evenly", lambda: opened(Grid(ranks, 2, 0), 4, width=1)),
        ("shared evenly", lambda: emulated(ranks, ranks.size + 1, "local")),
        ("batch_norm=none", lambda: opened(Grid(ranks), 4, batch_norm="none")),
        ("pass those of grid.share", lambda: opened(Grid(ranks), 8).step(*batch(8), 0.1)),
    ):
        assert fault in raised(wrong, ValueError)


def main(ranks, cases=CASES):
    chosen = sys.argv[1:] or list(cases)
    outcome = {}
    for name in chosen:
        try:
            cases[name](ranks)
            fault = None
        except Exception:
            fault = traceback.format_exc()
        faults = ranks.exchange(fault)
        outcome[name] = described(faults) if any(faults) else None
    if ranks.rank == 0:
        print(json.dumps(outcome))


if __name__ == "__main__":
    launch.run(main)
