# SPDX-License-Identifier: MIT
"""The loop: what it does after which step, when it stops, and what it refuses before the first."""

import math
import time

import numpy as np
import pytest

from convstudy import device
from convstudy.images.pairs import Pairs
from convstudy.models.unet import UNet
from convstudy.train import schedules
from convstudy.train.backend import CpuBackend, Outcome
from convstudy.train.data import Batches
from convstudy.train.dice import decide
from convstudy.train.trainer import DivergedError, Trainer


class Squares(Pairs):
    """A bright square somewhere in noise; its mask is where it is."""

    def __init__(self, count, size=16, seed=0):
        self.count, self.size, self.seed = count, size, seed

    def __len__(self):
        return self.count

    def _pair(self, index):
        rng = np.random.default_rng((self.seed, index))
        top, left = rng.integers(0, self.size - 7, 2)
        mask = np.zeros((self.size, self.size), np.uint8)
        mask[top : top + 7, left : left + 7] = 1
        noise = rng.random((3, self.size, self.size), np.float32)
        return (noise * 0.5 + mask * np.float32(0.5)).astype(np.float32), mask


@pytest.fixture
def make(tmp_path):
    def make(pairs=None, backend=None, rate=1e-2, folder=tmp_path / "run", **options):
        network = UNet.initialised(0, width=2)
        return Trainer(
            backend or CpuBackend(network, clip=options.pop("clip", 1.0)),
            Batches(pairs or Squares(32), 4, seed=1),
            options.pop("schedule", schedules.Constant(rate)),
            Squares(8, seed=9),
            folder,
            **options,
        )

    return make


class Lazy:
    """A number that notes when it is read."""

    def __init__(self, value, read):
        self.value, self.read = value, read

    def __float__(self):
        self.read.append(self.value)
        return float(self.value)


class Script(CpuBackend):
    """Answers each step as told, and notes in which order things are asked of it."""

    def __init__(self, losses, lag=0, free=math.inf):
        super().__init__(UNet.initialised(0, width=1))
        self.losses, self.lag, self.free = losses, lag, free
        self.asked, self.read = [], []

    def step(self, images, masks, rate):
        count = sum(what == "step" for what, _ in self.asked)
        self.asked.append(("step", rate))
        loss = self.losses[count] if count < len(self.losses) else 1.0
        return Outcome(Lazy(loss, self.read), 0.5, 1.0)

    def predict(self, images):
        self.asked.append(("predict", len(self.read)))
        return super().predict(images)

    def free_bytes(self):
        return self.free


def test_it_learns(make):
    trainer = make()
    history = trainer.run(60)
    assert len(history.loss) == trainer.step == 60
    assert np.mean(history.loss[-10:]) < 0.6 * np.mean(history.loss[:5])
    assert [step for step, _ in history.scores] == [60]
    assert history.best > 0.8


def test_dice_and_checkpoints_are_taken_when_due_and_at_the_end(make):
    backend = Script([])
    trainer = make(backend=backend, evaluate_every=3, save_every=4)
    saved = []
    trainer.checkpoints.save = lambda step, *_: saved.append(step)
    history = trainer.run(10)
    assert [step for step, _ in history.scores] == [3, 6, 9, 10]
    assert saved == [4, 8, 10]


def test_the_schedule_gives_the_rates_and_is_told_the_dice(make):
    backend = Script([])
    schedule = schedules.WarmupCosine(1.0, 8, warmup=0.25)
    told = []
    schedule.observe = told.append
    history = make(backend=backend, schedule=schedule, evaluate_every=4).run(8)
    assert [rate for what, rate in backend.asked if what == "step"] == [
        schedule.rate(step) for step in range(8)
    ]
    assert told == [score for _, score in history.scores]


def test_losses_are_read_late_where_a_backend_likes_that(make):
    losses = [float(i) for i in range(10)]
    backend = Script(losses, lag=3)
    history = make(backend=backend, evaluate_every=8, save_every=100).run(10)
    assert history.loss == losses
    # Before the Dice is taken all is read; before that, all but three.
    assert [read for what, read in backend.asked if what == "predict"] == [8, 8, 10, 10]


def test_batches_made_ahead_are_trained_on_in_their_order(make):
    states = []
    for ahead in (1, 5):
        trainer = make(folder=None)
        trainer.backend.ahead, asked = ahead, []
        at = trainer.batches.at
        # The earlier a batch is asked for, the longer it takes.
        trainer.batches.at = lambda step, at=at, asked=asked: (
            asked.append(step),
            time.sleep(0.02 * (step % 5 == 0)),
            at(step),
        )[-1]
        trainer.run(3)
        assert set(asked) == {0, 1, 2}
        trainer.run(12)
        assert sorted(asked) == list(range(12))
        states.append(trainer.backend.state())
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array, err_msg=name)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_it_in_words(loss, make):
    trainer = make(backend=Script([0.5, 0.4, loss]), save_every=1)
    with pytest.raises(DivergedError) as caught:
        trainer.run(10)
    words = str(caught.value)
    assert words.startswith("training stopped at step 2: the loss is ")
    for part in ("it was 0.4", "learning rate 0.01", "try a lower rate", "of step 2 is whole"):
        assert part in words


def test_real_divergence_is_found_and_what_was_saved_stays_good(make):
    trainer = make(rate=1e20, clip=None, save_every=1)
    with pytest.raises(DivergedError, match="the loss is"):
        trainer.run(20)
    assert trainer.checkpoints.load() is not None


def test_without_a_folder_nothing_is_kept(make, tmp_path):
    make(folder=None).run(2)
    assert list(tmp_path.iterdir()) == []


def test_it_is_silent_where_nobody_looks(make, capsys):
    make().run(2)
    assert capsys.readouterr() == ("", "")
    make(progress=True, folder=None).run(2)
    said = capsys.readouterr().err
    for part in ("training: 100%", "8/8", "images/s", "loss 0.", "Dice 0.", "held-out"):
        assert part in said


# ---- what is refused


class Spoilt(Squares):
    def __init__(self, spoil):
        super().__init__(32)
        self.spoil = spoil

    def _pair(self, index):
        return self.spoil(*super()._pair(index))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, m: (x[:1], m), "x has 1 channels and the network takes 3"),
        (lambda x, m: (x[:, :12], m[:12]), "12 x 16 is too small"),
        (lambda x, m: (x * np.float32(np.nan), m), "x holds NaN or infinity"),
        (lambda x, m: (x, m * 255), "classes from 0 to 255, and the network knows 0 to 1"),
        (lambda x, m: (x, m[:, :9]), r"of shape \(4, 16, 16\).*got uint8 of shape \(4, 16, 9\)"),
        (lambda x, m: (x, m.astype(np.float32)), "masks must be integers .*got float32"),
    ],
)
def test_images_that_are_refused_before_the_first_step(spoil, message, make):
    with pytest.raises(ValueError, match=message):
        make(pairs=Spoilt(spoil))


def test_an_image_that_is_bad_later_stops_it_with_its_step(make):
    def spoil(x, m):
        return x, np.where(x[0, 0, 0] == last, 7, m)

    last = Squares(32)[int(Batches(Squares(32), 4, seed=1)._drawn(0)[0][21])][0][0, 0, 0]
    with pytest.raises(ValueError, match="step 5: masks hold classes from 0 to 7"):
        make(pairs=Spoilt(spoil), backend=None).run(8)


def test_too_little_memory_is_said_with_the_batch_that_fits(make):
    needs = Script([]).needs_bytes
    with pytest.raises(MemoryError, match=r"training on 4 images .* batch=2 fits"):
        make(backend=Script([], free=needs(3, 16, 16) - 1))
    with pytest.raises(MemoryError, match="not even one image fits"):
        make(backend=Script([], free=1000))


def test_memory_is_looked_at_before_images_are_made_where_their_size_is_known(make):
    class Unmade(Squares):
        shape = (3, 16, 16)

        def _pair(self, index):
            raise AssertionError("it was made")

    with pytest.raises(MemoryError):
        make(pairs=Unmade(32), backend=Script([], free=1000))


def test_the_memory_predicted_is_what_is_taken():
    import tracemalloc

    network = UNet.initialised(0, width=8)
    backend = CpuBackend(network)
    x = np.zeros((4, 3, 64, 96), np.float32)
    backend.step(x, np.zeros((4, 64, 96), np.uint8), 1e-3)
    tracemalloc.start()
    backend.step(x, np.zeros((4, 64, 96), np.uint8), 1e-3)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # What lies there from step to step came before the count was begun.
    predicted = backend.needs_bytes(4, 64, 96) - 12 * network.parameter_count
    assert 0.7 * predicted < taken < 1.1 * predicted
    assert 0 < backend.free_bytes() < math.inf


def test_what_a_container_is_granted_counts(tmp_path):
    assert device._of_the_container(tmp_path) == math.inf
    for name, text in (
        ("max", "1000\n"),
        ("current", "900\n"),
        ("stat", "anon 500\ninactive_file 300\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert device._of_the_container(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert device._of_the_container(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "no optimiser 'adam'; take sgd or rmsprop or adamw"),
        ({"clip": 0.0}, "clip must be a number above 0, or None"),
        ({"options": {"beta3": 1}}, "AdamW: no option 'beta3'"),
    ],
)
def test_backends_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CpuBackend(UNet.initialised(0, width=1), **options)


# ---- the CPU's backend


def test_prediction_is_the_network_s_at_inference(make, rng):
    from convstudy import tolerance
    from convstudy.nn.reference import ReferenceOps

    trainer = make(folder=None)
    trainer.run(5)
    backend = trainer.backend
    x, before = rng.random((2, 3, 17, 20), np.float32), backend.state_dict()
    result = backend.predict(x)
    trained = UNet.from_state_dict(before)
    tolerance.assert_close(result, trained.forward(x, ReferenceOps()), *trained.terms())
    for name, array in backend.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert int(before["inc.double_conv.1.num_batches_tracked"]) == 5
    assert decide(result).shape == (2, 17, 20)


def test_a_state_of_another_network_or_optimiser_is_refused(make):
    backend = CpuBackend(UNet.initialised(0, width=2))
    state = {name: array.copy() for name, array in backend.state().items()}
    for other in (CpuBackend(UNet.initialised(0, width=3)), CpuBackend(backend.network, "sgd")):
        with pytest.raises(ValueError, match="not of this network and optimiser: .* faults more"):
            other.load_state(state)


# ---- PyTorch


@pytest.fixture
def torch():
    torch = pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait busily for each other where cores are shared
    yield torch
    torch.set_num_threads(before)


def test_pytorch_s_loss_falls_along_the_same_curve(make, torch):
    """Both round, and no more: the largest difference seen in twenty steps was 2e-7."""
    from originals import torch_unet

    trainer = make(folder=None, schedule=schedules.WarmupCosine(1e-2, 20))
    theirs = torch_unet(torch, width=2).train()
    state = trainer.backend.state_dict()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    optimizer = torch.optim.AdamW(theirs.parameters(), weight_decay=0.01)
    expected = []
    for step in range(20):
        images, masks = trainer.batches.at(step)
        logits, target = theirs(torch.from_numpy(images)), torch.from_numpy(masks).long()
        p = logits.softmax(dim=1)
        one_hot = torch.nn.functional.one_hot(target, 2).permute(0, 3, 1, 2).float()
        dice = (2 * (p * one_hot).sum() + 1e-6) / (p.sum() + one_hot.sum() + 1e-6)
        loss = torch.nn.functional.cross_entropy(logits, target) + 1 - dice
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = trainer.schedule.rate(step)
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(trainer.run(20).loss, expected, rtol=1e-5)
    ours = trainer.backend.state_dict()
    for name, array in theirs.state_dict().items():
        np.testing.assert_allclose(ours[name], array.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)
