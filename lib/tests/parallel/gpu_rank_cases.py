# SPDX-License-Identifier: MIT
"""What a rank of GPUs that share layers does in the tests; as `rank_cases`.

On the emulator, or, where the environment's `WHERE` is "gpu", all on the first GPU: MPI then
carries what NCCL would, which needs a GPU for each rank.
"""

import dataclasses
import os
import tempfile

import numpy as np
from rank_cases import batch, main, raised
from taped import check_gradients, network_of, truth

from convstudy import tolerance
from convstudy.device import EMULATOR, devices
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel import launch, training
from convstudy.parallel.backend import RankedBackend
from convstudy.parallel.communicator import Alone, Communicator
from convstudy.parallel.gpu import RankedGpuBackend
from convstudy.parallel.grid import CUT_FROM, Grid
from convstudy.program.backend import GpuBackend
from convstudy.program.shares import IMAGES
from convstudy.program.training import SUMS
from convstudy.recipe import Recipe
from convstudy.train.checkpoints import Checkpoints
from convstudy.train.optimizers import OPTIMIZERS, clip_gradients

CASES = {}
WHERE = "CONVSTUDY_CASES_ON"
# Odd, so that what is enlarged has a frame; an image for each rank.
SIZE = 35, 34


def case(ranks, *given):
    """Register a function for so many ranks, with each of the arguments given."""

    def register(function):
        for arguments in given or [()]:
            name = " ".join(map(str, (f"{function.__name__} on {ranks}", *arguments)))
            CASES[name] = ranks, function, arguments
        return function

    return register


class Staged(Communicator):
    """Ranks that talk by way of the host, and so may share a GPU; not within a graph."""

    def __init__(self, words):
        self._talk, self.rank, self.size = words, words.rank, words.size

    def start_all_reduce(self, array, operation="sum"):
        self._put(self._talk.all_reduce(self._host(array), operation), array)
        return Alone().start_all_reduce(array)

    bare_all_reduce = Communicator.all_reduce

    def broadcast(self, array, root=0):
        return self._put(self._talk.broadcast(self._host(array), root), array)

    def all_gather(self, part, out):
        every = self._host(out)
        self._talk.all_gather(self._host(part), every)
        self._put(every, out)

    def reduce_scatter(self, parts, out):
        own = self._host(out)
        self._talk.reduce_scatter(self._host(parts), own)
        self._put(own, out)

    def split(self, color):
        return Staged(self._talk.split(color))

    def _no(self, *_):
        raise NotImplementedError

    send = receive = abort = _no

    def barrier(self):
        self._talk.barrier()

    def settle(self):
        pass

    @staticmethod
    def _host(array):
        return array.get() if hasattr(array, "get") else array.copy()

    @staticmethod
    def _put(host, array):
        if hasattr(array, "set"):
            array.set(host)
        else:
            array[...] = host
        return array


def device():
    return devices()[0] if os.environ.get(WHERE) == "gpu" else EMULATOR


def network_for(cut_from, precision="fp32", **options):
    """Return one as narrow as ranks of a row can share it in whole vectors."""
    least = 8 if cut_from == 0 else 4
    return network_of(16 if precision == "bf16" else least, **options)


def opened(network, grid, precision="fp32", rule="sgd", each=1, **options):
    """Return what trains, every buffer apart and full of NaN until it is written."""
    options = {"device": device(), "clip": 0.5, "bucket_bytes": 4096, "apart": True} | options
    gpus = Grid(Staged(grid.world), grid.row.size, min(grid.cut_from, CUT_FROM))
    shape = each * grid.world.size, 3, *SIZE
    backend = RankedGpuBackend(network, grid, gpus, shape, precision, rule, **options)
    backend.program.allocate(apart=True)
    backend._put_network(network.state_dict())
    backend._replay.run = lambda: backend.program.run(checked=False, reached=backend._reached)
    return backend


def whole_batch(ranks, seed=0, each=1):
    return batch(each * ranks.size, SIZE, seed)


def own_batch(grid, seed=0, each=1):
    images, masks = whole_batch(grid.world, seed, each)
    own = grid.share(len(images))
    return images[own], masks[own].astype(np.int32)


def bits(state):
    return b"".join(state[name].tobytes() for name in sorted(state))


def part_of_rank(backend):
    """Return [(run, own), ...] of the parameters of which each rank changes its own part."""
    runs, own = backend._step.runs, backend._shares.own
    return [(run, own(group, run)) for group, run in runs if group == IMAGES]


@case(2, (2, 4, "fp32", False), (2, 2, "fp32", False), (2, 3, "fp32", True))
@case(2, (2, 0, "fp32", False), (2, 3, "tf32", False), (2, 2, "bf16", False))
@case(2, (1, 4, "fp32", False), (1, 4, "bf16", True))
@case(3, (1, 4, "fp32", False))
@case(4, (2, 0, "fp32", False), (4, 3, "fp32", False), (1, 4, "tf32", False))
def gradients_are_those_of_one(ranks, model, cut_from, precision, bilinear):
    """Of the whole batch, in float64; the loss and the norm that clips, too."""
    grid = Grid(ranks, model, cut_from)
    network = network_for(cut_from, precision, bilinear=bilinear)
    backend = opened(network, grid, precision)
    assert bool(part_of_rank(backend)) == (model == 1)
    outcome = backend.step(*own_batch(grid), 0.0)
    loss, expected = truth(network, *whole_batch(ranks))
    gradients = backend.gradients()
    check_gradients(network, gradients, expected, precision)
    rel = 0.02 if precision == "bf16" else 1e-5
    assert abs(outcome.loss - loss) < rel * loss, (outcome.loss, loss)
    norm = np.sqrt(sum(np.square(each, dtype=np.float64).sum() for each in gradients.values()))
    assert abs(outcome.gradient_norm - norm) < 1e-4 * norm, (outcome.gradient_norm, norm)
    assert len(set(ranks.exchange((outcome, bits(gradients))))) == 1


@case(2, (2, 0), (1, 4))
@case(3, (1, 4))
@case(4, (2, 3), (1, 4))
def a_few_steps_are_those_of_one_gpu(ranks, model, cut_from):
    """What is trained, running statistics, predictions; and again, to the bit."""
    grid, network = Grid(ranks, model, cut_from), network_for(cut_from)
    backend, again = (opened(network, grid) for _ in range(2))
    ours = [backend.step(*own_batch(grid), 0.01)]
    assert again.step(*own_batch(grid), 0.01) == ours[0]
    assert bits(again.state()) == bits(backend.state())
    ours.append(backend.step(*own_batch(grid, 1), 0.01))
    state = backend.state()
    assert len(set(ranks.exchange((*ours, bits(state))))) == 1
    logits = backend.predict(whole_batch(ranks)[0][:1])
    now = UNet.from_state_dict(backend.state_dict())
    if ranks.rank > 0:
        return  # one says what is right
    expected = now.forward(whole_batch(ranks)[0][:1], ReferenceOps())
    tolerance.assert_close(logits, expected, *network.terms())
    alone = GpuBackend(network, (ranks.size, 3, *SIZE), "fp32", "sgd", clip=0.5, device=device())
    for seed, outcome in enumerate(ours):
        images, masks = whole_batch(ranks, seed)
        expected = alone.step(images, masks.astype(np.int32), 0.01)
        for got, want in zip(outcome, expected, strict=True):
            assert abs(got - want) < 1e-4 * abs(want), (got, want)
    for name, array in alone.state().items():
        assert (state[name].shape, state[name].dtype) == (array.shape, array.dtype), name
        scale = np.abs(array).max() + 1e-3
        assert np.abs(state[name] - array).max() < 1e-4 * scale, name


@case(2, ("fp32",), ("bf16",))
@case(4, ("bf16",))
def products_read_what_all_ranks_have_changed(ranks, precision):
    """Before anybody asks for it: what the rule makes of all gradients, as the CPU has it."""
    grid, network = Grid(ranks), network_for(4, precision)
    backend, again = (opened(network, grid, precision, "adamw", clip=0.1) for _ in range(2))
    layout, outcomes = backend._step.layout, []
    expected = {name: network.state_dict()[name].copy() for name in network.trained}
    rule = OPTIMIZERS["adamw"](expected)
    for seed in range(3):
        outcomes.append(backend.step(*own_batch(grid, seed), 1e-3))
        assert again.step(*own_batch(grid, seed), 1e-3) == outcomes[-1]
        gradients = {name: array.copy() for name, array in backend.gradients().items()}
        norm = clip_gradients(gradients, 0.1)
        assert 0.1 < norm < 1.0001 * outcomes[-1].gradient_norm
        rule.step(expected, gradients, 1e-3)
    read = backend._get(backend._step.operands)
    state = backend.state()
    assert len(set(ranks.exchange((*outcomes, read.tobytes(), bits(state))))) == 1
    assert bits(again.state()) == bits(state)
    weights = layout.pack({name: state[f"network.{name}"] for name in layout.slots})
    np.testing.assert_array_equal(read, weights.astype(read.dtype))
    for name, array in expected.items():
        # Of a step of 1e-3 each.
        np.testing.assert_allclose(state[f"network.{name}"], array, rtol=1e-6, atol=1e-6)
        for slot in rule.slots:
            wanted = rule.state[f"{slot}.{name}"]
            scale = np.abs(wanted).max()
            assert np.abs(state[f"optimizer.{slot}.{name}"] - wanted).max() < 1e-4 * scale


@case(2, ("adamw",))
@case(3, ("sgd",))
def one_ranks_gradient_that_is_not_finite_stops_all(ranks, rule):
    """It is in a part that one rank alone has; the step after it is done."""
    grid, network = Grid(ranks), network_for(4)
    backend = opened(network, grid, rule=rule)
    run, gradients = backend._replay.run, backend.program.array(backend._step.gradients)

    def reached(name):
        backend._reached(name)
        if name == SUMS and ranks.rank == ranks.size - 1:
            *_, (_, own) = part_of_rank(backend)
            gradients[own.start] = np.inf

    before = backend.state()
    trained = [f"network.{name}" for name in network.trained]
    trained += [name for name in before if name.startswith("optimizer")]
    backend._replay.run = lambda: backend.program.run(checked=False, reached=reached)
    outcome = backend.step(*own_batch(grid), 0.01)
    assert not np.isfinite(outcome.gradient_norm)
    after = backend.state()
    for name in trained:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert list(backend._get(backend._step.steps)) == [0, 1]
    backend._replay.run = run
    assert np.isfinite(backend.step(*own_batch(grid), 0.01).gradient_norm)
    after = backend.state()
    assert all((after[f"network.{n}"] != before[f"network.{n}"]).any() for n in network.trained)
    assert len(set(ranks.exchange(bits(after)))) == 1


@case(2, (2, 3), (1, 4))
@case(3, (1, 4))
def a_state_goes_from_one_gpu_to_several_and_back(ranks, model, cut_from):
    grid, network = Grid(ranks, model, cut_from), network_for(cut_from)
    alone = GpuBackend(network, (ranks.size, 3, *SIZE), "fp32", "adamw", device=EMULATOR)
    images, masks = whole_batch(ranks)
    alone.step(images, masks.astype(np.int32), 0.01)
    kept = {name: array.copy() for name, array in alone.state().items()}
    backend = opened(UNet.initialised(5, width=4), grid, rule="adamw", clip=None)
    backend.load_state(kept)
    state = backend.state()
    for name, array in kept.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    again = alone.step(images, masks.astype(np.int32), 0.01)
    ours = backend.step(*own_batch(grid), 0.01)
    assert abs(ours.loss - again.loss) < 1e-4 * again.loss
    kept, expected = backend.state(), alone.state()
    for name in (name for name in kept if name.startswith("optimizer")):
        scale = np.abs(expected[name]).max() + 1e-9
        assert np.abs(kept[name] - expected[name]).max() < 1e-3 * scale, name
    alone.load_state(kept)
    again = alone.step(images, masks.astype(np.int32), 0.01)
    ours = backend.step(*own_batch(grid), 0.01)
    assert abs(ours.loss - again.loss) < 1e-4 * again.loss


@case(4, (2, 4), (2, 0))
def norms_of_their_own_are_those_of_cores(ranks, model, cut_from):
    """Of a rank's images where layers are whole, and of its row's where they are cut."""
    grid, network = Grid(ranks, model, cut_from), network_for(cut_from)
    # Of one image alone, the deepest level would have statistics of four pixels.
    backend = opened(network, grid, batch_norm="local", each=2)
    # Of this batch no value is so near zero that another BLAS makes ReLU take it for another.
    images, masks = own_batch(grid, seed=1, each=2)
    backend.step(images, masks, 0.0)
    cores = RankedBackend(network, grid, 2 * ranks.size, "sgd", batch_norm="local", clip=0.5)
    cores.step(images, masks, 0.0)
    state = backend.state()
    for name, array in cores.state().items():
        scale = np.abs(array).max() + 1e-3
        assert np.abs(state[name] - array).max() < 1e-4 * scale, name
    assert len(set(ranks.exchange(bits(state)))) == 1


@case(2, (2, 3), (1, 4))
def a_timeline_is_of_all_that_is_added_up(ranks, model, cut_from):
    """Layers that are whole in a row of all ranks are on their way, and those cut are not."""
    grid = Grid(ranks, model, cut_from)
    backend = opened(network_for(cut_from), grid)
    whats = [event["what"] for event in backend.timeline(*own_batch(grid), 0.01)]
    assert whats[:4] == ["forward", "backward", "wait", "update"]
    groups = [group for group, buckets in backend._buckets for _ in buckets.parts]
    assert set(groups) == ({"images", "column"} if model > 1 else {"images"})
    assert whats[4:] == ["all-reduce"] * groups.count("images")


@case(2, (2, 3), (1, 4))
def a_training_is_that_of_cores(ranks, model, cut_from):
    """By the recipe, with checkpoints of whole parameters."""
    recipe = Recipe(size=(32, 32), width=8, composites=8, held_out=2, batch=4, steps=2)
    sharing = training.Sharing(model=model, cut_from=cut_from)
    ranks.device, training._gpus = EMULATOR, lambda world: world
    found = {}
    for execution in ("cpu", "gpu"):
        with tempfile.TemporaryDirectory() as folder:
            own = dataclasses.replace(recipe, execution=execution)
            network, history = training.train(own, sharing, ranks, folder, progress=False)
            kept = Checkpoints(folder).load() if ranks.rank == 0 else None
        found[execution] = np.array(history.loss), network.state_dict(), kept
    np.testing.assert_allclose(found["gpu"][0], found["cpu"][0], rtol=1e-3)
    shapes = [{n: a.shape for n, a in state.items()} for _, state, _ in found.values()]
    assert shapes[0] == shapes[1]
    if ranks.rank == 0:
        ours, theirs = (kept[1] for *_, kept in found.values())
        assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}


@case(2)
def what_gpus_cannot_share_is_refused(ranks):
    for fault, grid, width, n, precision in (
        ("cannot be shared evenly by 2 GPUs; take a multiple of 2", (2, 4), 8, 3, "fp32"),
        ("which 2 ranks cannot share evenly", (2, 0), 1, 2, "fp32"),
        ("up4.up.weight has 4 output channels, 2 for each of 2 GPUs", (2, 0), 4, 2, "fp32"),
        ("multiples of 8 in bf16; take cut_from=1", (2, 0), 8, 2, "bf16"),
    ):
        grid, network = Grid(ranks, *grid), UNet(width=width)
        shape = n, 3, 32, 32

        def wrong(network=network, grid=grid, shape=shape, precision=precision):
            RankedGpuBackend(network, grid, grid, shape, precision, device=EMULATOR)

        assert fault in raised(wrong, ValueError)


if __name__ == "__main__":
    runs = {
        name: lambda world, work=work, given=given: work(world, *given)
        for name, (_, work, given) in CASES.items()
    }
    launch.run(lambda world: main(world, runs))
