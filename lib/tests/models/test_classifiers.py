# SPDX-License-Identifier: MIT
"""VGG-16 and ResNet-18 and 50: structure, parameters, results, gradients, and what they refuse."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from chips import A30, H200
from originals import torch_resnet, torch_vgg16

from convstudy import tolerance
from convstudy.conv.algorithm import choose, kernels_for, plan
from convstudy.device import EMULATOR, devices
from convstudy.models.network import Network
from convstudy.models.resnet import ResNet
from convstudy.models.vgg import VGG16
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import OffloadOps, ResidentOps, linear_problem
from convstudy.nn.ops import FUNCTIONS
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.parallel.offload import DataParallelOps
from convstudy.problem import ConvProblem
from convstudy.train.losses import cross_entropy
from convstudy.train.optimizers import AdamW

TWIN = ReferenceOps()
MAKE = {
    "vgg16": VGG16,
    "vgg16_bn": lambda **sizes: VGG16(batch_norm=True, **sizes),
    "resnet18": lambda **sizes: ResNet(18, **sizes),
    "resnet50": lambda **sizes: ResNet(50, **sizes),
}
OPTIONS = {
    "vgg16": (VGG16, {}),
    "vgg16_bn": (VGG16, {"batch_norm": True}),
    "resnet18": (ResNet, {"depth": 18}),
    "resnet50": (ResNet, {"depth": 50}),
}
# Trained numbers; multiply-adds of the convolutions at 224 x 224; how many convolutions; and the
# digest of what torchvision 0.28 has as names and shapes, in its order.
KNOWN = {
    "vgg16": (
        *(138_357_544, 15_346_630_656, 13),
        "35c4623e0cd4a39d764245620458692bdde46e98a422e65f0794d679138ab391",
    ),
    "vgg16_bn": (
        *(138_365_992, 15_346_630_656, 13),
        "347371586a8ea365f60486dc7572a8600dedd099dda98501d6fe20654e8f6bb2",
    ),
    "resnet18": (
        *(11_689_512, 1_813_561_344, 20),
        "84fb10d9c6905a1cbb020b284537dc97c4f4ec55fb2a780a41152a23a2dd0e9d",
    ),
    "resnet50": (
        *(25_557_032, 4_087_136_256, 53),
        "d7e4f8bb0a5363446a59c81c3887ccf66900a11651a0ae2dec96d1bb1eb6ea81",
    ),
}


def small(name, width=4, num_classes=7):
    """Return a narrow network in which every parameter does something."""
    kind, options = OPTIONS[name]
    network = kind.initialised(seed=1, num_classes=num_classes, width=width, **options)
    network.randomise_statistics(seed=2)
    # Of a fresh VGG every bias is 0.
    rng, state = np.random.default_rng(3), network.state_dict()
    for key, array in state.items():
        if not array.any() and key.endswith("bias"):
            state[key] = rng.uniform(-0.3, 0.3, array.shape).astype(np.float32)
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module", params=MAKE)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return small(name)


def images(rng, n=1, c=3, h=35, w=41):
    return rng.standard_normal((n, c, h, w), dtype=np.float32)


# ---- structure


def test_it_is_torchvision_s(name):
    network = MAKE[name]()
    count, macs, convolutions, digest = KNOWN[name]
    layers = network.layers(224, 224)
    assert network.parameter_count == count
    assert len(layers) == len(dict(layers)) == convolutions
    assert sum(problem.macs for _, problem in layers) == macs
    lines = "\n".join(f"{key} {shape}" for key, shape in network.shapes.items())
    assert hashlib.sha256(lines.encode()).hexdigest() == digest, lines


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            VGG16(),
            {
                "features.0.weight": (64, 3, 3, 3),
                "features.28.bias": (512,),
                "classifier.0.weight": (4096, 25088),
                "classifier.3.weight": (4096, 4096),
                "classifier.6.bias": (1000,),
            },
        ),
        (
            VGG16(10, batch_norm=True),
            {
                "features.40.weight": (512, 512, 3, 3),
                "features.41.running_var": (512,),
                "features.41.num_batches_tracked": (),
                "classifier.6.weight": (10, 4096),
            },
        ),
        (
            ResNet(18),
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_mean": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer2.0.downsample.0.weight": (128, 64, 1, 1),
                "layer4.1.bn2.weight": (512,),
                "fc.weight": (1000, 512),
            },
        ),
        (
            ResNet(50, 5),
            {
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer3.5.conv2.weight": (256, 256, 3, 3),
                "layer4.2.conv3.weight": (2048, 512, 1, 1),
                "fc.weight": (5, 2048),
            },
        ),
    ],
    ids=repr,
)
def test_names_and_shapes(made, expected):
    assert expected == {key: made.shapes.get(key) for key in expected}


def test_layers_at_torchvision_s_size():
    vgg, resnet = dict(VGG16().layers(224, 224)), dict(ResNet(50).layers(224, 224, 16))
    assert vgg["features.0"].y_shape == (1, 64, 224, 224)
    assert vgg["features.28"].x_shape == (1, 512, 14, 14)
    assert resnet["conv1"].y_shape == (16, 64, 112, 112)
    assert resnet["layer1.0.conv1"].x_shape == (16, 64, 56, 56)
    # The stride stands at the 3 x 3 convolution.
    assert resnet["layer3.0.conv1"].stride == (1, 1)
    assert resnet["layer3.0.conv2"].stride == (2, 2)
    assert resnet["layer3.0.downsample.0"].y_shape == (16, 1024, 14, 14)
    assert resnet["layer4.2.conv3"].y_shape == (16, 2048, 7, 7)


class Recorder(BlasOps):
    """Notes the convolutions that it is asked for, and how often every function is called."""

    def __init__(self):
        super().__init__()
        self.problems, self.calls = [], dict.fromkeys(FUNCTIONS, 0)
        for method in FUNCTIONS:
            setattr(self, method, self._counted(method, getattr(self, method)))

    def _counted(self, method, function):
        def call(*arguments, **options):
            self.calls[method] += 1
            return function(*arguments, **options)

        return call

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        y = super().conv2d(x, w, padding, stride, bias)
        self.problems.append((x.shape, w.shape, y.shape, padding, stride))
        return y


@pytest.mark.parametrize(("h", "w"), [(35, 41), (64, 96)])
def test_layers_and_result_are_those_that_run(network, h, w, rng):
    recorder, x = Recorder(), images(rng, 2, h=h, w=w)
    y = network.forward(x, recorder)
    assert y.shape == network.check(x) == (2, 7)
    assert recorder.problems == [
        (p.x_shape, p.w_shape, p.y_shape, p.padding, p.stride) for _, p in network.layers(h, w, n=2)
    ]


CALLS = {
    "vgg16": {"conv2d": 13, "relu": 15, "max_pool2d": 5, "linear": 3},
    "vgg16_bn": {"conv2d": 13, "batch_norm": 13, "relu": 15, "max_pool2d": 5, "linear": 3},
    "resnet18": {"conv2d": 20, "batch_norm": 20, "relu": 17, "add": 8, "max_pool2d": 1},
    "resnet50": {"conv2d": 53, "batch_norm": 53, "relu": 49, "add": 16, "max_pool2d": 1},
}


def test_every_function_is_called_as_often_as_the_network_has_it(name, network, rng):
    recorder = Recorder()
    network.forward(images(rng, h=224, w=224), recorder)
    expected = CALLS[name]
    if name.startswith("resnet"):
        expected = expected | {"average_pool2d": 1, "linear": 1}
    # At 224 x 224 a VGG's images come out at 7 x 7, and there is nothing to average.
    assert {method: n for method, n in recorder.calls.items() if n} == expected


# ---- results


def written_out(name, state, x):
    """Return the network's result with every step spelt out, in float64."""
    state = {key: array.astype(float) for key, array in state.items()}

    def norm(x, prefix):
        weight, bias, mean, var = (
            state[f"{prefix}.{kind}"][:, None, None]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def windows(x, size, stride, padding, fill):
        around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        found = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, around, constant_values=fill), (size, size), (2, 3)
        )
        return found[:, :, ::stride, ::stride]

    def conv(x, prefix, stride=1, padding=0):
        w = state[f"{prefix}.weight"]
        y = np.einsum("nchwrs,kcrs->nkhw", windows(x, w.shape[2], stride, padding, 0), w)
        return y + state.get(f"{prefix}.bias", np.zeros(len(w)))[:, None, None]

    def pool(x, size, stride, padding=0):
        return windows(x, size, stride, padding, -np.inf).max((4, 5))

    def linear(x, prefix):
        return np.einsum("nf,kf->nk", x, state[f"{prefix}.weight"]) + state[f"{prefix}.bias"]

    x = x.astype(float)
    if name.startswith("vgg"):
        place, batch_norm = 0, name.endswith("bn")
        for count in (2, 2, 3, 3, 3):
            for _ in range(count):
                x = conv(x, f"features.{place}", 1, 1)
                if batch_norm:
                    x = norm(x, f"features.{place + 1}")
                x, place = np.maximum(x, 0), place + (3 if batch_norm else 2)
            x, place = pool(x, 2, 2), place + 1
        h, w = x.shape[2:]
        averaged = np.empty((*x.shape[:2], 7, 7))
        for i, j in itertools.product(range(7), range(7)):
            rows = slice(i * h // 7, -(-(i + 1) * h // 7))
            columns = slice(j * w // 7, -(-(j + 1) * w // 7))
            averaged[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
        x = np.maximum(linear(averaged.reshape(len(x), -1), "classifier.0"), 0)
        return linear(np.maximum(linear(x, "classifier.3"), 0), "classifier.6")
    x = pool(np.maximum(norm(conv(x, "conv1", 2, 3), "bn1"), 0), 3, 2, 1)
    for stage, count in enumerate((2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3), start=1):
        for i in range(count):
            prefix, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            steps = ((stride, 1), (1, 1)) if name == "resnet18" else ((1, 0), (stride, 1), (1, 0))
            y = x
            for j, step in enumerate(steps, start=1):
                y = norm(conv(y, f"{prefix}.conv{j}", *step), f"{prefix}.bn{j}")
                y = np.maximum(y, 0) if j < len(steps) else y
            if f"{prefix}.downsample.0.weight" in state:
                x = norm(conv(x, f"{prefix}.downsample.0", stride), f"{prefix}.downsample.1")
            x = np.maximum(y + x, 0)
    return linear(x.mean((2, 3)), "fc")


@pytest.mark.parametrize(("h", "w"), [(224, 224), (67, 97)])
def test_the_network_written_out_gives_the_same(name, network, h, w, rng):
    x = images(rng, h=h, w=w)
    expected = written_out(name, network.state_dict(), x)
    assert tolerance.relative_error(network.forward(x, TWIN), expected) < 1e-12


@pytest.mark.parametrize(("n", "h", "w"), [(1, 32, 32), (3, 33, 50), (1, 224, 224), (2, 100, 71)])
def test_executions_agree_with_float64(network, n, h, w, rng):
    x = images(rng, n, h=h, w=w)
    truth = network.forward(x, TWIN)
    for ops in (PlainOps(), BlasOps(), TapeOps(training=False), ReferenceOps(np.float32)):
        output = network.forward(x, ops)
        assert output.dtype == np.float32
        tolerance.assert_close(output, truth, *network.terms())


@pytest.mark.parametrize("size", [1, 2, 7, 31])
def test_a_resnet_takes_images_of_any_size(size, rng):
    network, x = small("resnet18"), images(rng, h=size, w=size + 1)
    expected = written_out("resnet18", network.state_dict(), x)
    assert tolerance.relative_error(network.forward(x, TWIN), expected) < 1e-12
    tolerance.assert_close(network.forward(x, BlasOps()), expected, *network.terms())


def test_every_parameter_reaches_the_result(name, rng):
    network, x, ops = small(name, width=2), images(rng, h=32, w=32), BlasOps()
    truth = network.forward(x, ops)
    limit = tolerance.tolerance(np.float32, *network.terms())
    for key, array in network.place(ops).items():
        kept = array.copy()
        array *= 2
        error = tolerance.relative_error(network.apply(x, ops), truth)
        array[...] = kept
        assert error > limit, key


def test_forward_changes_neither_image_nor_parameters(network, rng):
    x, ops = images(rng), BlasOps()
    before, state = x.copy(), network.state_dict()
    first = network.forward(x, ops)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(network.forward(x, ops), first)
    for key, array in network.state_dict().items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)


# On the emulator every multiply-add is a call, so networks are as narrow as they can be.
@pytest.mark.parametrize("kind", ["vgg16", "vgg16_bn", "resnet18", "resnet50"])
def test_kernels_on_the_emulator_agree_with_float64(kind, rng):
    network = small(kind, width=1, num_classes=3)
    x = images(rng, 2, h=32, w=39) if kind.startswith("vgg") else images(rng, 2, h=21, w=18)
    truth = network.forward(x, TWIN)
    for ops in (
        ResidentOps("conv2d_fprop_3_tiled", EMULATOR),
        ResidentOps("conv2d_fprop_1_naive", EMULATOR),
        ResidentOps(device=EMULATOR),
    ):
        tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


@pytest.mark.parametrize("kind", ["vgg16", "resnet18"])
def test_convolutions_elsewhere_agree_with_float64(kind, rng):
    network = small(kind, width=1, num_classes=3)
    x = images(rng, h=33, w=34)
    truth = network.forward(x, TWIN)
    for ops in (
        OffloadOps("conv2d_fprop_3_tiled", EMULATOR, BlasOps()),
        OffloadOps(device=EMULATOR, cpu=BlasOps(), weights="once", memory="pinned"),
        # One image: by rows, with their halo, at every stride.
        DataParallelOps([EMULATOR], 2, 3, "conv2d_fprop_3_tiled", BlasOps()),
    ):
        tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "h", "w"), [(1, 224, 224), (3, 97, 131)])
def test_kernels_on_the_gpu_agree_with_float64(name, n, h, w, rng):
    network = small(name, width=16, num_classes=10)
    x = images(rng, n, h=h, w=w)
    truth = network.forward(x, TWIN)
    for ops in (
        *(ResidentOps(rung) for rung in kernels_for(ConvProblem(1, 64, 8, 8, 64, 3, 3))),
        OffloadOps(cpu=BlasOps(), weights="once", memory="pinned"),
        DataParallelOps(devices(), 2, 4, cpu=BlasOps()),
    ):
        tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


# ---- the registry

GPUS = A30, H200, EMULATOR
PRECISIONS = (("fp32", "float32"), ("tf32", "float32"), ("bf16", "bfloat16"))


@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.name)
@pytest.mark.parametrize("n", [1, 64])
def test_every_layer_has_an_algorithm_for_every_pass_and_precision(name, device, n):
    network = MAKE[name]()
    linear = [
        linear_problem(n, features, k)
        for k, features in (s for s in network.shapes.values() if len(s) == 2)
    ]
    for _, problem in network.layers(224, 224, n):
        for rung in kernels_for(problem, device):
            assert plan(rung, problem, device)
        assert "conv2d_fprop_3_tiled" in kernels_for(problem, device)
    problems = [replace(problem, layout="NHWC") for _, problem in network.layers(224, 224, n)]
    for problem in (*problems, *linear):
        for which, (precision, dtype) in itertools.product(("fprop", "dgrad", "wgrad"), PRECISIONS):
            asked = replace(problem, precision=precision, dtype=dtype)
            assert plan(choose(asked, device, which), asked, device)


# ---- gradients


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_every_parameter_has_the_slope_as_its_gradient(name, training, rng):
    network = small(name, width=2, num_classes=3)
    x, dy = images(rng, 3, h=33, w=36), rng.standard_normal((3, 3))
    # Running statistics that never move, so that the function stays the same.
    tape = TapeOps(ReferenceOps(), training, momentum=0.0)

    def value():
        return float((network.apply(x.astype(float), tape) * dy).sum())

    value()
    found = tape.backward(dy)
    assert sorted(found) == sorted(network.trained)
    for key, gradient in found.items():
        # Along one random direction: every element takes part.
        direction = rng.standard_normal(gradient.shape)
        parameter = tape.parameters[key]
        kept, values = parameter.copy(), []
        for step in (1e-8, -1e-8):
            parameter[...] = kept + step * direction
            values.append(value())
            tape.forget()
        parameter[...] = kept
        slope = (values[0] - values[1]) / 2e-8
        # So small a step that hardly a ReLU or a maximum tips over between the two.
        size = np.linalg.norm(gradient) + 1e-4 * abs(values[0])
        assert abs(np.vdot(gradient, direction) - slope) < 1e-3 * size, key


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_gradients_in_float32_agree_with_float64(network, training, rng):
    x, dy = images(rng, 4, h=64, w=70), rng.standard_normal((4, 7))
    results = []
    for ops in (None, TWIN):
        tape = TapeOps(ops, training)
        y = network.apply(tape.to_device(x), tape)
        results.append(tape.backward(dy.astype(y.dtype)))
    mine, truth = results
    whole = np.linalg.norm([np.linalg.norm(gradient) for gradient in truth.values()])
    for key, gradient in mine.items():
        assert gradient.dtype == np.float32
        assert gradient.shape == network.shapes[key]
        # A bias before a norm has none, what is left of it is rounding; and where one is small, a
        # single ReLU or maximum that tips over is much of it.
        error, size = np.linalg.norm(gradient - truth[key]), np.linalg.norm(truth[key])
        assert error < 5e-3 * max(size, 1e-3 * whole), key


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet18"])
def test_steps_of_training_learn_the_batch(name, rng):
    kind, options = OPTIONS[name]
    network = kind.initialised(seed=4, num_classes=4, width=4, **options)
    x, labels = images(rng, 8, h=32, w=32), np.arange(8) % 4
    tape, losses = TapeOps(), []
    network.place(tape)
    optimiser = AdamW(tape.parameters)
    for _ in range(25):
        loss, dlogits = cross_entropy(network.apply(x, tape), labels)
        losses.append(loss)
        optimiser.step(tape.parameters, tape.backward(dlogits), 1e-2)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.3 * losses[0], losses


# ---- parameters


def test_a_seed_gives_the_same_network(name):
    kind, options = OPTIONS[name]
    first, again, other = (
        kind.initialised(seed, width=2, **options).state_dict() for seed in (4, 4, 5)
    )
    key = next(iter(first))
    np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first[key], other[key])


def test_initial_values_are_torchvision_s():
    vgg = VGG16.initialised(seed=6, num_classes=300, width=16).state_dict()
    resnet = ResNet.initialised(seed=6, depth=50, num_classes=300).state_dict()
    for state, key, deviation in (
        (vgg, "features.2.weight", np.sqrt(2 / (16 * 9))),
        (vgg, "classifier.0.weight", 0.01),
        (resnet, "conv1.weight", np.sqrt(2 / (64 * 49))),
        (resnet, "layer2.0.conv3.weight", np.sqrt(2 / 512)),
        (resnet, "fc.weight", 1 / np.sqrt(3 * 2048)),
    ):
        near = 5 / np.sqrt(state[key].size)
        assert abs(state[key].mean()) < near * deviation, key
        assert state[key].std() == pytest.approx(deviation, rel=near), key
    assert np.abs(resnet["fc.weight"]).max() <= 1 / np.sqrt(2048)
    assert 0 < np.abs(resnet["fc.bias"]).max() <= 1 / np.sqrt(2048)
    assert not any(array.any() for key, array in vgg.items() if key.endswith("bias"))
    assert (resnet["layer1.0.bn3.weight"] == 1).all()
    assert resnet["bn1.num_batches_tracked"].dtype == np.int64


def test_a_state_goes_over_to_another_network(name, network, rng):
    twin = MAKE[name](num_classes=7, width=4)
    twin.load_state_dict(network.state_dict())
    x, ops = images(rng), BlasOps()
    np.testing.assert_array_equal(twin.forward(x, ops), network.forward(x, ops))
    assert repr(twin) == repr(network)
    assert eval(repr(twin), {"VGG16": VGG16, "ResNet": ResNet}).shapes == network.shapes


def test_another_network_s_state_is_refused():
    states = {name: small(name).state_dict() for name in MAKE}
    for one, other in itertools.permutations(MAKE, 2):
        network = small(one)
        who = type(network).__name__
        with pytest.raises(ValueError, match=rf"{who}\.load_state_dict: \d+ faults: .* a {who}\("):
            network.load_state_dict(states[other])
    with pytest.raises(ValueError, match=r"fc.bias has shape \(7,\), expected \(8,\)"):
        ResNet(18, 8, width=4).load_state_dict(states["resnet18"])


def test_no_parameters(name):
    network = MAKE[name](width=1)
    who = type(network).__name__
    with pytest.raises(RuntimeError, match=rf"{who}: it has no parameters; .* {who}\.initialised"):
        network.forward(np.zeros((1, 3, 32, 32), np.float32), BlasOps())


# ---- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResNet(34), "ResNet: depth is 34; choose 18 or 50"),
        (lambda: ResNet("50"), "ResNet: depth is '50'"),
        (lambda: ResNet(18.0), "ResNet: depth is 18.0; choose 18 or 50"),
        (lambda: ResNet([18]), r"ResNet: depth is \[18\]; choose 18 or 50"),
        (lambda: VGG16(True), "VGG16: num_classes must be an integer of at least 1, got True"),
        (lambda: ResNet(18, 0), "ResNet: num_classes must be an integer of at least 1, got 0"),
        (lambda: ResNet(18, width=2.0), "ResNet: width must be an integer of at least 1, got 2.0"),
        (lambda: VGG16(num_classes=-1), "VGG16: num_classes must be an integer of at least 1"),
        (lambda: VGG16(batch_norm="yes"), "VGG16: batch_norm must be True or False, got 'yes'"),
        (lambda: VGG16().layers(31, 64), r"VGG16\.layers: an image of 31 x 64 is too small"),
        (lambda: ResNet().layers("a", 1), r"ResNet\.layers: H and W must be integers, got 'a'"),
        (lambda: ResNet().layers(0, 1), "0 x 1 is too small for the network; H and W must be at"),
    ],
)
def test_arguments_that_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda x: x.tolist(), TypeError, "NumPy array, got list; use np.asarray"),
        (lambda x: x.astype(np.float64), TypeError, "float32, got float64; use .astype"),
        (lambda x: x[0], ValueError, r"rank 4 \(N, C, H, W\)"),
        (lambda x: x[:, :2], ValueError, "has 2 channels .* takes 3; pass"),
        (lambda x: x[:0], ValueError, "holds no image"),
        (lambda x: x[:, :, ::-1], ValueError, "C-contiguous, .* use np.ascontiguousarray"),
        (lambda x: np.where(x == x.max(), np.nan, x), ValueError, "holds NaN or infinity"),
    ],
)
def test_images_that_are_refused(network, spoil, error, words, rng):
    with pytest.raises(error, match=f"{type(network).__name__}: .*{words}"):
        network.forward(spoil(images(rng)), BlasOps())


def test_a_network_must_say_all_of_itself():
    with pytest.raises(TypeError, match="abstract"):
        Network(3, {})


# ---- PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )


def torch_network(torch, name, **sizes):
    if name.startswith("vgg"):
        return torch_vgg16(torch, batch_norm=name.endswith("bn"), **sizes)
    return torch_resnet(torch, int(name[-2:]), **sizes)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 224, 224), (2, 45, 61), (1, 300, 250)])
def test_pytorch_agrees(name, network, torch, n, h, w, rng):
    theirs = torch_network(torch, name, num_classes=7, width=4)
    assert list(theirs.state_dict()) == list(network.shapes)
    theirs.load_state_dict({k: torch.from_numpy(a) for k, a in network.state_dict().items()})
    x = images(rng, n, h=h, w=w)
    with torch.inference_mode():
        truth = theirs.double()(torch.from_numpy(x).double()).numpy()
    assert tolerance.relative_error(network.forward(x, TWIN), truth) < 1e-12
    tolerance.assert_close(network.forward(x, BlasOps()), truth, *network.terms())


def test_pytorch_finds_the_same_gradients_and_statistics(name, network, torch, rng):
    theirs = torch_network(torch, name, num_classes=7, width=4).double().train()
    theirs.load_state_dict({k: torch.from_numpy(a) for k, a in network.state_dict().items()})
    x, dy = images(rng, 3, h=49, w=64), rng.standard_normal((3, 7))
    tape = TapeOps(TWIN)
    network.apply(tape.to_device(x), tape)
    found = tape.backward(dy)
    theirs(torch.from_numpy(x).double()).backward(torch.from_numpy(dy))
    for key, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        if np.linalg.norm(expected) > 1e-10:
            assert tolerance.relative_error(found[key], expected) < 1e-8, key
    for key, buffer in theirs.named_buffers():
        if "num_batches" not in key:
            np.testing.assert_allclose(tape.parameters[key], buffer.numpy(), rtol=1e-9)


def test_torchvision_s_own_networks_agree(name, torch, rng):
    """At full width, with its random weights, taken and given back."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    theirs = getattr(models, name)(weights=None).eval()
    network = MAKE[name]()
    network.load_state_dict(theirs.state_dict())
    for h, w in ((224, 224), (97, 131)):
        x = images(rng, h=h, w=w)
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(x)).numpy()
        tolerance.assert_close(network.forward(x, BlasOps()), expected, *network.terms())
    theirs.load_state_dict({k: torch.from_numpy(a) for k, a in network.state_dict().items()})
