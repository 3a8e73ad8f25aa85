# SPDX-License-Identifier: MIT
"""The contest of whole networks: who takes part, and that what is wrong is not timed."""

import types

import numpy as np
import pytest

from convstudy.device import EMULATOR
from convstudy.measure import pytorch_unet
from convstudy.measure.suites import against_pytorch as contest
from convstudy.models.unet import UNet
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.records import validate_result
from convstudy.train.losses import cross_entropy_dice

SHAPE = (2, 3, 35, 34)
OPTIONS = contest.SUITE.options | {"repeats": 2, "compiled": ""}


class FakeRunner:
    """The network in float64, where PyTorch would be."""

    def __init__(self, network, images, masks, precision, channels_last):
        self.scores, self._gradients = truth(network, images, masks)

    def gradients(self):
        return self._gradients

    def inference(self, way):
        return lambda: self.scores

    def training(self, way):
        return lambda: 1.0


def truth(network, images, masks):
    scores = network.forward(images, ReferenceOps())
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    _, dlogits, _ = cross_entropy_dice(network.apply(images.astype(float), tape), masks)
    return scores, tape.backward(dlogits)


@pytest.fixture
def emulated(monkeypatch):
    network = UNet.initialised(0, width=4)
    network.randomise_statistics(1)
    rng = np.random.default_rng(0)
    images, masks = rng.random(SHAPE, np.float32), rng.integers(0, 2, (2, 35, 34), np.int32)
    for name, replacement in {
        "unet": lambda: network,
        "images": lambda n: images,
        "masks": lambda n: masks,
        "_truth": lambda n: pytorch_unet.truth(network, images, masks),
        "devices": lambda: (EMULATOR,),
        "alternating": lambda replays, calls, where, repeats: {
            side: [1e-3] * repeats for side in replays
        },
    }.items():
        monkeypatch.setattr(contest, name, replacement)
    monkeypatch.setattr(pytorch_unet, "Runner", FakeRunner)
    monkeypatch.setattr(pytorch_unet, "truth", truth)
    monkeypatch.setattr(pytorch_unet, "with_peak", lambda begin, once_more: (begin(), 1000))
    return types.SimpleNamespace(network=network, images=images)


@pytest.mark.parametrize("what", ["inference", "training"])
def test_each_way_takes_part_and_ours_is_checked(what, emulated):
    labels = {"what": what, "precision": "fp32", "n": 2}
    rows = contest.Contest(f"{what}/fp32/n2", labels, OPTIONS).run()
    sides = [f"{row['labels']['side']}/{row['labels']['layout']}" for row in rows]
    ways = [f"pytorch-{way}/{layout}" for way in ("eager", "graph") for layout in ("NCHW", "NHWC")]
    assert sides == ["ours/NHWC", *ways]
    assert all(row["check"]["passed"] for row in rows if row["labels"]["side"] == "pytorch-eager")
    for row in rows:
        validate_result(row, row["case"])
        assert len(row["samples_s"]) == OPTIONS["repeats"]
    ours = rows[0]
    assert ours["check"]["passed"]
    assert ours["values"]["peak_bytes"] >= ours["values"]["predicted_bytes"] > 0


def test_wrong_gradients_are_not_timed(emulated, monkeypatch):
    def wrong(*given):
        scores, gradients = truth(*given)
        return scores, {name: -each for name, each in gradients.items()}

    monkeypatch.setattr(pytorch_unet, "truth", wrong)
    labels = {"what": "training", "precision": "fp32", "n": 2}
    with pytest.raises(RuntimeError, match="the gradients are wrong"):
        contest.Contest("training/fp32/n2", labels, OPTIONS).run()


def test_cases_are_those_asked_for():
    cases = list(contest.cases(OPTIONS | {"n": "1,16", "precisions": "bf16"}))
    assert [case.name for case in cases] == [
        *("inference/bf16/n1", "inference/bf16/n16", "training/bf16/n1", "training/bf16/n16")
    ]


def test_all_that_is_compiled_is_asked_for_at_first(emulated, monkeypatch):
    asked = []
    monkeypatch.setattr(contest, "_compile_ahead", lambda make, jobs: asked.append(jobs))
    options = OPTIONS | {"compiled": "inference/tf32,training/bf16", "n": "1,2"}
    sides = {}
    for precision in ("fp32", "tf32"):
        labels = {"what": "inference", "precision": precision, "n": 2}
        rows = contest.Contest(precision, labels, options).run()
        sides[precision] = {row["labels"]["side"] for row in rows}
    assert sides["tf32"] - sides["fp32"] == {"pytorch-compile"}
    assert asked == [
        (
            *(("inference", "tf32", 1), ("inference", "tf32", 2)),
            *(("training", "bf16", 1), ("training", "bf16", 2)),
        )
    ]
    with pytest.raises(ValueError, match="no 'inference/fp64'; there are inference/fp32"):
        contest.compiled(options | {"compiled": "inference/fp64"})
