# SPDX-License-Identifier: MIT
"""A training from options: what they mean, and that being killed leaves no trace in it."""

import dataclasses
import errno
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

from convstudy import device
from convstudy import recipe as recipes
from convstudy.images import CompositeSet
from convstudy.models.unet import UNet
from convstudy.recipe import Recipe, train, trained
from convstudy.train.backend import CpuBackend
from convstudy.train.checkpoints import Checkpoints
from convstudy.train.weights import load_weights, save_weights

TINY = {
    "execution": "cpu",
    "size": "16x16",
    "width": "2",
    "composites": "64",
    "held_out": "4",
    "batch": "4",
    "steps": "60",
    "evaluate_every": "7",
    "save_every": "1",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a training that nothing came in between of."""
    return run(tmp_path_factory.mktemp("whole"))


def run(folder, **options):
    """Train to the end, and return (weights, all that a checkpoint has) but for the time."""
    network, history = train(Recipe.of(TINY | options), folder)
    step, arrays, _ = Checkpoints(folder).load()
    assert step == len(history.loss)
    return network.state_dict(), arrays


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_the_same_seed_gives_the_same_to_the_bit_and_another_does_not(whole, tmp_path):
    assert_same(run(tmp_path / "again"), whole)
    other, _ = run(tmp_path / "other", seed="1")
    assert not np.array_equal(other["outc.conv.weight"], whole[0]["outc.conv.weight"])


def test_killed_again_and_again_it_ends_as_if_it_never_was(whole, tmp_path):
    """SIGKILL, wherever it comes: at once, while a checkpoint is written, or between two."""
    folder = tmp_path / "killed"
    words = [f"{name}={value}" for name, value in TINY.items()]
    reached = []
    for delay in (0.0, 0.013, 0.041):
        process = subprocess.Popen(
            [sys.executable, "-m", "convstudy", "train", *words, f"folder={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        begun = Checkpoints(folder).steps()[-1:] or [0]
        deadline = time.monotonic() + 60
        # Into its work, and not further than a few steps.
        while (Checkpoints(folder).steps()[-1:] or [0])[0] < begun[0] + 8:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        reached.append(Checkpoints(folder).steps()[-1])
    assert reached == sorted(set(reached))
    assert reached[-1] < 60
    assert_same(run(folder), whole)


def stop(options, folder, step):
    """Train until the given step, and no further."""
    trainer = Recipe.of(TINY | options).trainer(folder)
    steps = iter(range(step))

    def interrupted(*batch):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return CpuBackend.step(trainer.backend, *batch)

    trainer.backend.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run(trainer.options["steps"])


def test_a_damaged_checkpoint_costs_a_step_and_changes_nothing(whole, tmp_path, capsys):
    folder = tmp_path / "damaged"
    stop({}, folder, 31)
    newest = Checkpoints(folder).path(31)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same(run(folder), whole)
    assert "going on from step 30 instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"optimizer": "original"}, {"optimizer": "sgd", "momentum": "0.9"}]
)
def test_every_optimiser_and_schedule_is_taken_up_again(options, tmp_path):
    options |= {"steps": "30", "evaluate_every": "2"}
    expected = run(tmp_path / "whole", **options)
    stop(options, tmp_path / "stopped", 17)
    assert_same(run(tmp_path / "stopped", **options), expected)


def test_a_finished_training_is_not_done_again(whole, tmp_path):
    run(tmp_path)
    before = (tmp_path / recipes.WEIGHTS).stat().st_size
    started = time.perf_counter()
    assert_same(run(tmp_path), whole)
    assert time.perf_counter() - started < 2
    assert (tmp_path / recipes.WEIGHTS).stat().st_size == before


def test_a_folder_of_another_training_is_refused(tmp_path):
    Recipe.of(TINY).trainer(tmp_path).run(2)
    with pytest.raises(
        ValueError,
        match=r"other options: rate=0.003 \(now 0.1\), seed=0 \(now 3\); .* anew \(anew=yes\)",
    ):
        Recipe.of(TINY | {"rate": "0.1", "seed": "3"}).trainer(tmp_path)
    # What does not change what is computed may be another.
    assert Recipe.of(TINY | {"save_every": "9"}).trainer(tmp_path).step == 2


@pytest.mark.parametrize("inside", ["", "x"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(inside, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="cannot be written: Not a directory; give another folder="):
        train(Recipe.of(TINY | {"data": "/not/looked/for"}), tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_refused(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match="folder=.* cannot be written: Read-only file system; give"):
        train(Recipe.of(TINY), tmp_path / "new")


def test_what_it_leaves(tmp_path):
    network, history = train(Recipe.of(TINY | {"steps": "10"}), tmp_path)
    found, metadata = load_weights(tmp_path / recipes.WEIGHTS)
    assert metadata["size"] == "16x16"
    assert metadata["held_out_dice"] == f"{history.scores[-1][1]:.4f}"
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], array)
    lines = (tmp_path / recipes.HISTORY).read_text().splitlines()
    assert lines[0] == "step,loss,held_out_dice"
    assert len(lines) == 11
    step, loss, score = lines[7].split(",")
    assert (int(step), float(loss)) == (7, history.loss[6])
    assert float(score) == history.scores[0][1]


def test_it_begins_with_given_weights(tmp_path):
    first = trained(Recipe.of(TINY | {"seed": "5"}).trainer())
    save_weights(tmp_path / "start.npz", first)
    begun = Recipe.of(TINY | {"start": str(tmp_path / "start.npz")}).trainer()
    for name, array in begun.backend.state_dict().items():
        np.testing.assert_array_equal(array, first.state_dict()[name])


@pytest.mark.parametrize("execution", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"width": 2**18}, "not even one image fits: take smaller ones, or a narrower network"),
        ({"size": (10**6, 10**6)}, "not even one image fits"),
        ({"batch": 10**10, "composites": 10**10}, r"batch=\d+ fits"),
    ],
)
def test_too_little_memory_is_said_before_any_is_taken(execution, options, way_out, monkeypatch):
    def taken(*_):
        raise AssertionError("memory was taken")

    for made, by in ((CompositeSet, "render"), (UNet, "initialise")):
        monkeypatch.setattr(made, by, taken)
    with pytest.raises(MemoryError, match=f"this machine has .* free; {way_out}"):
        Recipe(execution=execution, **options).trainer()


# ---- options


def test_words_become_values():
    chosen = Recipe.of({"size": "128x191", "flip": "no", "rate": "1e-4", "beta1": "0.8"})
    assert (chosen.size, chosen.flip, chosen.rate) == ((128, 191), False, 1e-4)
    assert chosen.rule == (("beta1", 0.8),)
    assert Recipe.of({}) == Recipe(execution=chosen.execution)
    original = Recipe.of({"optimizer": "original", "momentum": "0.9"})
    assert (original.optimizer, original.rate, original.schedule) == ("rmsprop", 1e-5, "plateau")
    assert original.clip == 1.0
    assert dict(Recipe.of({"optimizer": "original"}).rule)["momentum"] == 0.999
    assert dict(original.rule) == {"momentum": 0.9, "weight_decay": 1e-8}
    assert "momentum=0.9\n" in recipes.described(original) + "\n"
    assert "size=128x191\n" in recipes.described(chosen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepps": "9"}, "no option 'stepps'; there are execution, precision, data, size"),
        ({"precision": "bf16"}, "precision=bf16: execution=cpu takes fp32"),
        ({"momentum": "0.9"}, "no option 'momentum'.* the optimiser's: beta1, beta2"),
        ({"steps": "many"}, "steps=many: it has to be a whole number"),
        ({"size": "128"}, "size=128: it has to be height x width, such as 128x191"),
        ({"flip": "perhaps"}, "flip=perhaps: it has to be yes or no"),
        ({"rate": "fast"}, "rate=fast: it has to be a number"),
        ({"size": "0x0"}, "size: an image of 0 x 0 is too small .*; H and W must be at least 16"),
        ({"eps": "0"}, "AdamW: eps must be a number of at least 1e-37 and below inf, got 0.0"),
        ({"optimizer": "rmsprop", "eps": "1e-50"}, "RMSprop: eps must be .* at least 1e-37"),
        ({"beta1": "1"}, "AdamW: beta1 must be a number of at least 0 and below 1, got 1.0"),
        ({"rate": "0"}, "rate must be a number above 0"),
        ({"batch": "0"}, "batch must be at least 1, got 0"),
        ({"clip": "nan"}, "clip must be at least 0, got nan"),
        ({"optimizer": "adam"}, "optimizer=adam: take sgd, rmsprop, adamw or original"),
        ({"schedule": "step"}, "there is no schedule 'step'"),
        ({"execution": "tpu"}, "execution=tpu: take auto, cpu"),
    ],
)
def test_options_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Recipe.of(given)


def test_a_gpu_that_is_not_here_is_said(monkeypatch):
    monkeypatch.setattr(recipes, "devices", tuple)
    monkeypatch.setattr(device, "devices", tuple)
    with pytest.raises(RuntimeError, match="execution=gpu: "):
        Recipe.of({"execution": "gpu"})
    assert Recipe.of({"execution": "auto"}).execution == "cpu"


def test_your_own_folder_is_trained_on_with_as_many_classes_as_it_has(tmp_path, rng):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(9):
        levels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / "images" / f"{i}.png")
        mask = rng.choice(np.array([0, 100, 200], np.uint8), (20, 24))
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}_mask.png")
    own = {"data": str(tmp_path), "size": "16x24", "steps": "3"}
    trainer = Recipe.of(TINY | own).trainer()
    assert trainer.backend.network.n_classes == 3
    trainer.run(3)
    with pytest.raises(ValueError, match="there are 5 images to train on, fewer than a batch of 6"):
        Recipe.of(TINY | own | {"batch": "6"}).trainer()
    with pytest.raises(ValueError, match="of which 9 cannot be held out"):
        Recipe.of(TINY | own | {"held_out": "9"}).trainer()
    start = tmp_path / "start.npz"
    save_weights(start, trained(Recipe.of(TINY).trainer()))
    with pytest.raises(ValueError, match=r"start.npz is a UNet\(3, 2.* the masks 3 classes"):
        Recipe.of(TINY | own | {"start": str(start)}).trainer()


def test_the_recipe_is_kept_as_it_is_given():
    chosen = Recipe.of(TINY)
    assert dataclasses.replace(chosen, steps=9) == Recipe.of(TINY | {"steps": "9"})
