# SPDX-License-Identifier: MIT
"""The suite of VGG and ResNet: each way of executing them, on narrow networks and small images."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from convstudy.device import EMULATOR
from convstudy.measure import pytorch, pytorch_classifiers, pytorch_ops, pytorch_unet
from convstudy.measure.suites import against_pytorch, fusion, networks
from convstudy.measure.suites import network as shared
from convstudy.models.resnet import ResNet
from convstudy.models.unet import UNet
from convstudy.models.vgg import VGG16
from convstudy.nn.ops import FUNCTIONS
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.plots.palette import ENVIRONMENTS
from convstudy.program.backend import GpuBackend
from convstudy.program.inference import Inference
from convstudy.records import validate_result
from convstudy.train.losses import cross_entropy

OPTIONS = networks.SUITE.options | {"size": 33, "repeats": 2}
PAIR = EMULATOR, replace(EMULATOR, index=1)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The same networks, of few channels."""
    made = {
        "vgg16": lambda: VGG16.initialised(1, num_classes=5, width=1),
        "resnet18": lambda: ResNet.initialised(1, 18, num_classes=5, width=2),
        "resnet50": lambda: ResNet.initialised(1, 50, num_classes=5, width=1),
    }
    monkeypatch.setattr(networks, "NETWORKS", made)
    for cached in (networks.network, networks._truth):
        cached.cache_clear()
    yield
    for cached in (networks.network, networks._truth):
        cached.cache_clear()


@pytest.fixture
def emulated(monkeypatch):
    """A machine of two GPUs, both of which are the emulator."""
    for module in (networks, shared):
        monkeypatch.setattr(module, "devices", lambda: PAIR)
    monkeypatch.setattr(networks, "no_gpu", lambda count=1: None)


def cases(**options):
    return {case.name: case for case in networks.SUITE.cases(OPTIONS | options)}


def run(case):
    rows = case.run()
    for row in rows:
        assert row["case"].startswith(case.name)
        validate_result(row, case.name)
    assert len({row["case"] for row in rows}) == len(rows)
    return {row["labels"]["function"]: row for row in rows}


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
def test_a_cpu_is_timed_by_function(name):
    for case in cases(network=name, n="1").values():
        if case.skip is None and case.labels["execution"] in ("cpu-plain", "cpu-blas"):
            rows = run(case)
            expected = {"convolution", "ReLU", "pooling", "linear", "network"}
            if name != "vgg16":
                expected |= {"batch norm", "residual sum"}
            assert set(rows) == expected
            assert all(row["labels"]["network"] == name for row in rows.values())
            assert rows["network"]["check"]["passed"]
            whole = rows["network"]["samples_s"][0]
            parts = sum(rows[f]["samples_s"][0] for f in expected - {"network"})
            assert 0 < parts <= whole


def test_names_are_unique_and_what_a_machine_lacks_is_said():
    found = list(networks.SUITE.cases(OPTIONS | {"n": "1,16"}))
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    for name, n in itertools.product(("vgg16", "resnet18", "resnet50"), (1, 16)):
        assert f"{name}/n{n}/resident/conv2d_fprop_3_tiled" in names
        assert f"{name}/n{n}/contest/inference/bf16" in names
    assert "vgg16/n16/cpu-plain" not in names
    skipped = [case for case in found if case.skip]
    assert all("GPU" in case.skip or "PyTorch" in case.skip for case in skipped)


def test_environments_are_called_as_figures_call_them():
    environments = {case.labels["environment"] for case in cases(n="1").values()} - {""}
    assert environments == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_gpus_are_timed_by_function(name, emulated):
    found = cases(network=name, n="1", size=32)
    for kind in (
        "offload/conv2d_fprop_3_tiled/cpu-blas",
        "offload/conv2d_fprop_3_tiled/cpu-blas/2 GPUs",
        "resident/conv2d_fprop_3_tiled",
    ):
        rows = run(found[f"{name}/n1/{kind}"])
        assert {"convolution", "linear", "network"} <= set(rows)
        assert set(rows) <= {*FUNCTIONS.values(), "network"}
        assert rows["network"]["check"]["passed"]
    assert rows["convolution"]["kernel"] == "conv2d_fprop_3_tiled"


def test_two_gpus_share_a_batch(emulated):
    rows = run(
        cases(network="resnet18", n="3", size=20)[
            "resnet18/n3/resident/conv2d_fprop_3_tiled/2 GPUs"
        ]
    )
    assert set(rows) == {"network"}
    assert rows["network"]["labels"]["environment"] == "2 GPUs, tiled + data parallel"


def test_a_batch_is_made_of_few_images_and_its_result_of_theirs():
    work = networks.work("resnet18", 5, 33)
    np.testing.assert_array_equal(work.images[0], work.images[4])
    assert not np.array_equal(work.images[0], work.images[1])
    truth = work.network.forward(work.images, ReferenceOps())
    np.testing.assert_allclose(work.expected(), truth, rtol=1e-9)
    with pytest.raises(RuntimeError, match="the result is wrong"):
        work.checked(np.roll(truth, 1, axis=0))


def test_a_network_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="there is no 'alexnet'; there are vgg16, resnet18"):
        cases(network="vgg16, alexnet")


# ---- PyTorch

needs_pytorch = pytest.mark.skipif(
    pytorch.why_not() is not None, reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
)


@needs_pytorch
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["vgg16", "resnet18", "resnet50", "unet", "bilinear"])
def test_pytorch_runs_every_network(kind, channels_last, rng):
    if kind in ("unet", "bilinear"):
        network = UNet.initialised(1, bilinear=kind == "bilinear", width=4)
    else:
        network = networks.network(kind)
    network.randomise_statistics(2)
    x = rng.standard_normal((2, 3, 33, 40), dtype=np.float32)
    truth = network.forward(x, ReferenceOps())
    for precision in ("fp32", "bf16"):
        ops = pytorch_ops.TorchOps("cpu", precision, channels_last)
        given = network, x, np.zeros(2), precision, channels_last, "cpu"
        classifier = pytorch_classifiers.Runner(*given).inference("eager")
        for y in (network.forward(x, ops), ops.to_host(classifier())):
            terms = network.terms()
            assert shared.checked(y, truth, *terms, precision=precision)["passed"]


@needs_pytorch
@pytest.mark.parametrize("kind", ["vgg16", "resnet18", "resnet50"])
def test_pytorch_s_gradients_are_the_tapes(kind, rng):
    network = networks.network(kind)
    x, labels = rng.standard_normal((2, 3, 33, 40), dtype=np.float32), np.array([3, 1])
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    scores = network.apply(x.astype(float), tape)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = tape.backward((shares - np.eye(5)[labels]) / 2)
    _, found = pytorch_classifiers.truth(network, x, labels, "cpu")
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-6, atol=1e-9, err_msg=name)


@needs_pytorch
def test_pytorch_s_functions_are_timed():
    for layout in ("NCHW", "NHWC"):
        rows = run(cases(network="resnet18", n="1")[f"resnet18/n1/pytorch-cpu/{layout}"])
        assert {"convolution", "residual sum", "network"} <= set(rows)
        assert rows["network"]["labels"]["layout"] == layout


class FakeRunner:
    """The network in float64, where PyTorch would be."""

    def __init__(self, network, images, targets, precision, channels_last):
        self.given = network, images, targets
        self.scores = network.forward(images, ReferenceOps()).astype(np.float32)

    def inference(self, way):
        return lambda: self.scores

    def training(self, way):
        return lambda: 1.0

    def gradients(self):
        return gradients(*self.given)


def gradients(network, images, labels):
    tape = TapeOps(ReferenceOps())
    network.place(tape)
    _, dlogits = cross_entropy(network.apply(images.astype(float), tape), labels)
    return tape.backward(dlogits)


@pytest.fixture
def sides(emulated, monkeypatch):
    """PyTorch's sides without PyTorch, and no clock."""
    for module in (against_pytorch, fusion):
        monkeypatch.setattr(module, "alternating", lambda runs, *_: {name: [1e-3] for name in runs})
    monkeypatch.setattr(against_pytorch, "devices", lambda: PAIR)
    monkeypatch.setattr(pytorch_classifiers, "Runner", FakeRunner)
    monkeypatch.setattr(pytorch_unet, "with_peak", lambda begin, once_more: (begin(), 1000))
    monkeypatch.setattr(pytorch, "release", lambda: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sides_take_turns(precision, sides):
    name = f"resnet18/n1/contest/inference/{precision}"
    rows = cases(network="resnet18", n="1", size=33)[name].run()
    whole = [row["labels"] for row in rows if row["labels"]["function"] == "network"]
    sides = [f"{labels['execution']}/{labels['layout']}" for labels in whole]
    ways = [f"pytorch-{way}/{layout}" for way in ("eager", "graph") for layout in ("NCHW", "NHWC")]
    assert sides == ["program/NHWC", *ways]
    parts = functions_of(rows)
    assert parts == {"network", "convolution", "residual sum", "pooling", "linear", "images"}
    for row in rows:
        validate_result(row, "contest")
        assert row["clock"] == "event"
        if row["labels"]["function"] == "network":
            assert row["check"]["passed"]
            assert row["values"]["peak_bytes"] > 0
        is_ours = row["labels"]["execution"] == "program"
        assert ("kernels" in row["values"]) == (row["source_sha256"] is not None) == is_ours


def functions_of(rows):
    return {row["labels"]["function"] for row in rows if row["labels"]["execution"] == "program"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_judged_by_gradients(precision, sides, monkeypatch):
    monkeypatch.setattr(pytorch_classifiers, "truth", lambda *given: (None, gradients(*given)))
    networks._gradients.cache_clear()
    name = f"resnet18/n2/contest/training/{precision}"
    found = cases(network="resnet18", n="2", size=33, parts="contest")[name]
    rows = found.run()
    ours = rows[0]
    assert ours["labels"]["execution"] == "program"
    assert ours["check"]["passed"]
    assert functions_of(rows) >= {"network", "convolution", "batch norm", "loss", "optimiser"}


def test_wrong_gradients_of_a_classifier_are_not_timed(sides, monkeypatch):
    right = gradients
    monkeypatch.setattr(pytorch_classifiers, "truth", lambda *given: (None, right(*given)))
    monkeypatch.setattr(FakeRunner, "gradients", lambda self: right(*self.given))
    ours = GpuBackend.gradients
    monkeypatch.setattr(
        GpuBackend, "gradients", lambda self: {name: -g for name, g in ours(self).items()}
    )
    networks._gradients.cache_clear()
    found = cases(network="resnet18", n="2", size=33, parts="contest")
    with pytest.raises(RuntimeError, match="the gradients are wrong"):
        found["resnet18/n2/contest/training/fp32"].run()


def test_what_is_launched_is_known_ahead(sides, monkeypatch):
    options = OPTIONS | {"network": "resnet18", "n": "2", "precisions": "bf16"}
    ahead = {(each.kernel, each.defines) for each in networks.launches(options)}
    kernels = {kernel for kernel, _ in ahead}
    assert {"add_fprop_2_relu", "loss_dgrad_2_classes", "adamw_step_1_flat"} <= kernels
    program = Inference(networks.network("resnet18"), (2, 3, 33, 33), "bf16", EMULATOR).program
    steps = *program.beforehand, *program.steps
    assert {(launch.kernel, launch.defines) for launch, _ in steps} <= ahead
    assert networks.launches(options | {"parts": "cpu"}) == []


def test_parts_are_those_asked_for():
    found = cases(network="resnet18", n="1,64", parts="contest", whats="training")
    assert list(found) == [
        f"resnet18/n{n}/contest/training/{precision}"
        for n in (1, 64)
        for precision in ("fp32", "tf32", "bf16")
    ]
    with pytest.raises(ValueError, match="there is no 'gpu'; there are cpu, offload"):
        cases(parts="gpu")
