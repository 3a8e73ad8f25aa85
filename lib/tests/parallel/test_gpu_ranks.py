# SPDX-License-Identifier: MIT
"""Ranks that are GPUs: what NCCL does, and that the captured step is that of one GPU."""

import csv
import functools
import json
import math
import os
from pathlib import Path

import gpu_rank_cases
import numpy as np
import pytest

from convstudy.device import EMULATOR, array_module, devices
from convstudy.models.unet import UNet
from convstudy.parallel import launch
from convstudy.parallel.communicator import Alone
from convstudy.parallel.gpu import RankedGpuBackend
from convstudy.parallel.grid import Grid
from convstudy.parallel.mpi import PATIENCE_VARIABLE
from convstudy.parallel.nccl import Nccl, own_gpu
from convstudy.program.backend import GpuBackend

SHAPE = (2, 3, 35, 34)


@pytest.fixture
def one():
    """NCCL of one GPU: it does all that it does for several, and changes nothing."""
    try:
        return Nccl(Alone(), devices()[0])
    except ImportError as error:
        pytest.skip(str(error))


def test_a_rank_for_which_there_is_no_gpu_is_told():
    with pytest.raises(ValueError, match="1 ranks were started on a machine with 0 GPUs"):
        own_gpu(Alone(), ())


def test_numpy_is_for_mpi():
    from convstudy.parallel.nccl import _pointer

    with pytest.raises(TypeError, match="NumPy's are for Mpi"):
        _pointer([1.0])


@pytest.mark.parametrize("case", gpu_rank_cases.CASES)
def test_emulated_gpus_share_layers(case):
    check(case, "emulator")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [name for name in gpu_rank_cases.CASES if "those_of_one" in name])
def test_ranks_on_one_gpu_share_layers(case):
    check(case, "gpu")


def check(case, where):
    fault = outcomes(gpu_rank_cases.CASES[case][0], where)[case]
    assert fault is None, fault


@functools.cache
def outcomes(ranks, where):
    """Return what went wrong in each case for so many ranks: to start them takes the longest."""
    names = [
        name
        for name, (count, *_) in gpu_rank_cases.CASES.items()
        if count == ranks and (where == "emulator" or "those_of_one" in name)
    ]
    program = Path(gpu_rank_cases.__file__)
    found = [str(program.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        PATIENCE_VARIABLE: "120",
        "PYTHONPATH": os.pathsep.join(filter(None, found)),
        gpu_rank_cases.WHERE: where,
    }
    done = launch.run_ranks(ranks, str(program), *names, timeout_s=600, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Landlord(Alone):
    """Ranks that have memory together."""

    def __init__(self):
        self.lent, self.returned = [], []

    def room(self, count):
        self.lent.append(np.zeros(count, np.float32))
        return self.lent[-1]

    def give_back(self, room):
        self.returned.append(room)


def test_gradients_lie_where_ranks_add_them_up_fastest():
    ranks, network = Landlord(), UNet.initialised(0, width=4)
    backend = RankedGpuBackend(
        *(network, Grid(Alone()), Grid(ranks), SHAPE, "fp32"), device=EMULATOR
    )
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (SHAPE[0], *SHAPE[2:])).astype(np.int32)
    backend.step(rng.random(SHAPE, np.float32), masks, 1e-3)
    (room,) = ranks.lent
    squares = (np.square(each, dtype=np.float64).sum() for each in backend.gradients().values())
    norm = np.linalg.norm(room.astype(np.float64))
    assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)
    assert np.linalg.norm(room) > 0
    backend.close()
    (returned,) = ranks.returned
    assert returned is room


class Mirrored(Alone):
    """One of two ranks, of which the other says the same; it takes down what they do together."""

    size = 2

    def __init__(self):
        self.done = []

    def start_all_reduce(self, array, operation="sum"):
        self.done.append(("all-reduce", array.dtype.name))
        array *= 2 if operation == "sum" else 1
        return super().start_all_reduce(array)

    def start_reduce_scatter(self, array):
        self.done.append(("beside", array.dtype.name))
        return super().start_reduce_scatter(array)

    def all_gather(self, part, out):
        self.done.append(("all-gather", part.dtype.name))
        out[...] = part.copy()

    def reduce_scatter(self, parts, out):
        self.done.append(("reduce-scatter", out.dtype.name))
        np.multiply(parts[0], 2, out=out)


def test_ranks_have_done_before_a_capture_all_that_they_do_in_it():
    ranks, network = Mirrored(), UNet.initialised(0, width=16)
    given = network, Grid(ranks), Grid(ranks), SHAPE, "bf16"
    backend = RankedGpuBackend(*given, bucket_bytes=2**16, device=EMULATOR)
    backend._warm_up()
    before = set(ranks.done)
    ranks.done.clear()
    masks = np.zeros((1, *SHAPE[2:]), np.int32)
    backend.step(np.zeros((1, *SHAPE[1:]), np.float32), masks, 0.0)
    assert set(ranks.done) == before
    assert before >= {
        *(("all-reduce", "float32"), ("beside", "float32")),
        *(("all-gather", "float32"), ("all-gather", "bfloat16")),
    }
    # Their parts of squares are told at once, and parameters bucket by bucket, at the end.
    ((_, buckets),) = backend._buckets
    scattered = sum(buckets.are_scattered)
    assert ranks.done.count(("beside", "float32")) == scattered > 1
    assert ranks.done[-1 - scattered :] == [
        ("all-gather", "float32"),
        *[("all-gather", "bfloat16")] * scattered,
    ]


@pytest.mark.gpu
def test_nccl_of_one_changes_nothing(one):
    cupy = array_module(one.device)
    numbers = cupy.arange(1000, dtype=np.float32)
    for operation in ("sum", "mean"):
        np.testing.assert_array_equal(one.all_reduce(numbers, operation).get(), np.arange(1000))
    out = cupy.zeros((1, 1000), np.float32)
    one.all_gather(numbers, out)
    one.reduce_scatter(out * 2, numbers)
    one.broadcast(numbers)
    one.barrier()
    np.testing.assert_array_equal(numbers.get(), 2 * np.arange(1000))


@pytest.mark.gpu
@pytest.mark.parametrize("batch_norm", ["synchronised", "local"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_captured_step_on_one_rank_has_the_bits_of_one_gpu(one, precision, batch_norm):
    rng = np.random.default_rng(0)
    images = rng.random(SHAPE, np.float32)
    masks = rng.integers(0, 2, (SHAPE[0], *SHAPE[2:]))
    network = UNet.initialised(0, width=16)
    alone = GpuBackend(network, SHAPE, precision, clip=0.5)
    ranked = RankedGpuBackend(
        *(network, Grid(Alone()), Grid(one), SHAPE, precision),
        clip=0.5,
        batch_norm=batch_norm,
        bucket_bytes=2**16,
    )
    for _ in range(3):
        assert ranked.step(images, masks, 1e-3) == alone.step(images, masks, 1e-3)
    for name, array in alone.state().items():
        np.testing.assert_array_equal(ranked.state()[name], array, err_msg=name)
    events = ranked.timeline(images, masks, 1e-3)
    assert [event["what"] for event in events][:4] == ["forward", "backward", "wait", "update"]
    assert all(event["stop_s"] > event["start_s"] for event in events if event["what"] != "wait")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("count", "sharing"),
    [
        (2, ()),
        (2, ("model=2",)),
        (2, ("model=2", "cut_from=2")),
        (2, ("model=2", "cut_from=0")),
        (4, ("model=2", "cut_from=3")),
    ],
)
def test_several_gpus_train_as_one_does(count, sharing, tmp_path):
    if len(devices()) < count:
        pytest.skip(f"it needs {count} GPUs")
    losses = []
    for ranks in (1, count):
        folder = tmp_path / str(ranks)
        words = ("size=32x48", "width=16", "composites=16", "held_out=4", "batch=8", "steps=6")
        words += sharing if ranks > 1 else ()
        done = launch.run_ranks(
            ranks, "-m", "convstudy", "train", f"folder={folder}", "execution=gpu", *words
        )
        assert done.returncode == 0, done.stderr
        with (folder / "history.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.gpu
def test_what_lies_in_a_window_is_added_up_alike():
    if len(devices()) < 2:
        pytest.skip("it needs 2 GPUs")
    program = Path(gpu_rank_cases.__file__).with_name("two_gpus_case.py")
    done = launch.run_ranks(2, str(program), environment={PATIENCE_VARIABLE: "60"}, timeout_s=120)
    assert done.returncode == 0, done.stderr
