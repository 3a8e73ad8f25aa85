# SPDX-License-Identifier: MIT
"""The training step as one program, against the tape in float64."""

import numpy as np
import pytest
from taped import check_gradients, network_of, truth

from convstudy import tolerance
from convstudy.conv import algorithm
from convstudy.device import EMULATOR, devices
from convstudy.models.network import Network
from convstudy.models.resnet import ResNet
from convstudy.models.unet import UNet
from convstudy.models.vgg import VGG16
from convstudy.nn import norm_nhwc
from convstudy.nn.reference import ReferenceOps
from convstudy.nn.tape import TapeOps
from convstudy.program import training
from convstudy.program.backend import GpuBackend
from convstudy.program.shares import Shares
from convstudy.program.training import Step
from convstudy.train.backend import CpuBackend
from convstudy.train.losses import cross_entropy

# The smallest level has 2 x 2 pixels: of fewer, batch norm makes nearly nothing but rounding.
SHAPE = (2, 3, 35, 34)


def batch_of(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    n, _, h, w = shape
    return rng.random(shape, np.float32), rng.integers(0, 2, (n, h, w))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bilinear", [False, True])
def test_gradients_are_the_tapes(precision, bilinear):
    network, (images, masks) = network_of(bilinear=bilinear), batch_of()
    backend = GpuBackend(network, SHAPE, precision, device=EMULATOR)
    backend.program.allocate(apart=True)
    backend._put_network(network.state_dict())
    backend.load(images, masks, 0.0)
    # What enlarges without a product has kernels of its own, which are checked for themselves.
    backend.program.run(checked=not bilinear)
    loss, expected = truth(network, images, masks)
    check_gradients(network, backend.gradients(), expected, precision)
    found = backend._get(backend._step.loss)[0]
    assert found == pytest.approx(loss, rel=1e-5 if precision == "fp32" else 0.02)


class Shallow(UNet):
    """The two first levels of a U-Net alone."""

    def __init__(self, width):
        super().__init__(width=width)
        self.encoder, self.decoder = self.encoder[:2], self.decoder[-1:]
        Network.__init__(self, 3, self._shapes())


SHALLOW_SHAPE = (2, 3, 19, 21)


@pytest.mark.parametrize("name", ["unet", "vgg16", "resnet18"])
def test_what_is_read_as_fp32_in_each_precision_lies_first(name, monkeypatch):
    """Ranks that change a part of the parameters each gather the others alone."""
    read, weight = set(), Step._weight

    def noted(self, parameter):
        read.add(parameter.name)
        return weight(self, parameter)

    monkeypatch.setattr(Step, "_weight", noted)
    made = {"unet": lambda width: UNet.initialised(0, width=width)} | CLASSIFIERS
    network, shape = made[name](8), (1, 3, 35, 34)
    layout = Step(network, shape, "bf16", "sgd", {}, None, EMULATOR).layout
    assert read == layout.first
    assert set(list(layout.slots)[: len(read)]) == read
    assert sum(layout.slots[name].size for name in read) * 4 < 2**20


# Which kernel is to write statistics, how exact, and how wide for lines of channels.
WITH_STATISTICS = [
    ("10_wgmma", "fp32", 32),
    ("10_wgmma", "tf32", 32),
    ("11_halo", "tf32", 32),
    ("10_wgmma", "bf16", 64),
    ("11_halo", "bf16", 64),
]


def from_bytes(monkeypatch, count):
    """Have convolutions that write so much take statistics, in whatever precision."""
    monkeypatch.setattr(training, "_MANY_BYTES", dict.fromkeys(training._MANY_BYTES, count))


@pytest.fixture
def prefer(monkeypatch):
    """Has convolutions take statistics, however small, and a kernel for them where it can be."""
    estimated = algorithm._estimated

    def preferring(kernel):
        def first(rows, problem, device):
            known = kernel in [row.id for row in rows] and problem.stride == (1, 1)
            return (kernel, "preferred") if known else estimated(rows, problem, device)

        monkeypatch.setattr(algorithm, "_estimated", first)
        monkeypatch.setattr(algorithm.hopper, "best", whole)
        algorithm.read_again()

    best = algorithm.hopper.best

    def whole(kernel, problem, device):
        """Return the best choice of those that split no sums, forward."""
        found = best(kernel, problem, device)
        return found._replace(splits=1) if "fprop" in kernel else found

    from_bytes(monkeypatch, 0)
    monkeypatch.setattr(norm_nhwc, "_FEW_PIXELS", 0)
    yield preferring
    monkeypatch.undo()
    algorithm.read_again()


def shallow(precision, width, **options):
    """Return a network, a batch, and a backend whose every buffer lies apart."""
    network = Shallow.initialised(0, width)
    network.randomise_statistics(1)
    images, masks = batch_of(SHALLOW_SHAPE)
    backend = GpuBackend(network, SHALLOW_SHAPE, precision, device=EMULATOR, **options)
    backend.program.allocate(apart=True)
    backend._put_network(network.state_dict())
    backend.load(images, masks, 0.0)
    backend.program.run(checked=False)
    return network, images, masks, backend


def writing(program):
    """Return the kernels of a program that write statistics."""
    return [launch.kernel for launch, _ in program.steps if ("STATISTICS", 1) in launch.defines]


@pytest.mark.parametrize(("kernel", "precision", "width"), WITH_STATISTICS)
def test_convolutions_that_take_statistics_change_no_gradient(kernel, precision, width, prefer):
    prefer(f"conv2d_fprop_{kernel}")
    network, images, masks, backend = shallow(precision, width)
    # All but the first convolution, which has three channels.
    assert writing(backend.program) == [f"conv2d_fprop_{kernel}"] * 5
    loss, expected = truth(network, images, masks)
    check_gradients(network, backend.gradients(), expected, precision)
    rounded = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 0.02}[precision]
    assert backend._get(backend._step.loss)[0] == pytest.approx(loss, rel=rounded)


def test_statistics_are_a_passs_own(prefer, monkeypatch):
    prefer("conv2d_fprop_11_halo")
    *_, ours = shallow("tf32", 32)
    from_bytes(monkeypatch, 2**40)
    *_, other = shallow("tf32", 32)
    assert not writing(other.program)
    assert len(ours.program.steps) == len(other.program.steps) - 5
    found, expected = ours.state(), other.state()
    for name in expected:
        if name.endswith(("running_mean", "running_var")):
            np.testing.assert_allclose(found[name], expected[name], 1e-4, 1e-6, err_msg=name)
    # Where a ReLU's argument is next to nothing, the last bit of a factor decides.
    mine, theirs = ours.gradients(), other.gradients()
    assert gradient_error(mine, theirs) < 1e-2


def test_norms_of_all_ranks_take_statistics_in_a_pass(prefer):
    prefer("conv2d_fprop_11_halo")
    network = Shallow.initialised(0, 64)

    def written(ranks, synchronised):
        shares = Shares(images=ranks, synchronised=synchronised)
        rule = "sgd", {}, None, EMULATOR, shares
        return len(writing(Step(network, SHALLOW_SHAPE, "bf16", *rule).program))

    assert written(2, True) == 0
    assert written(2, False) == written(1, True) == 5


def test_little_is_read_again(prefer, monkeypatch):
    prefer("conv2d_fprop_11_halo")
    # What the first level writes, and the second: (2, 19, 21) and (2, 9, 10) pixels.
    from_bytes(monkeypatch, 2 * 19 * 21 * 64 * 2)
    network = Shallow.initialised(0, 64)
    step = Step(network, SHALLOW_SHAPE, "bf16", "sgd", {}, None, EMULATOR)
    assert len(writing(step.program)) == 3


CLASSIFIERS = {
    "vgg16": lambda width: VGG16.initialised(0, num_classes=10, width=width),
    "vgg16_bn": lambda width: VGG16.initialised(0, 7, batch_norm=True, width=width),
    "resnet18": lambda width: ResNet.initialised(0, 18, num_classes=10, width=width),
    "resnet50": lambda width: ResNet.initialised(0, 50, num_classes=16, width=width),
}


def classifying(name, shape, width=8):
    """Return a network, images, labels, and loss and gradients in float64, by the tape."""
    network = CLASSIFIERS[name](width)
    network.randomise_statistics(1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal(shape, np.float32)
    labels = rng.integers(0, network.num_classes, shape[0]).astype(np.int32)
    truth = taped(network, images.astype(np.float64), labels, TapeOps(ReferenceOps()))
    return network, images, labels, *truth


class Undecided(TapeOps):
    """A tape that sends gradients the wrong way through ReLUs which float32 could send there."""

    def relu(self, x):
        near = np.abs(x) < 3e-6 * np.sqrt(np.mean(np.square(x)))
        y = self._ops.relu(x)
        passed = (y > 0) ^ near
        return self._record(y, lambda dy: [(x, dy * passed)])


def taped(network, images, labels, tape):
    network.place(tape)
    loss, dlogits = cross_entropy(network.apply(images, tape), labels)
    return loss, tape.backward(dlogits)


@pytest.mark.parametrize(
    ("name", "precision", "width"),
    [
        ("vgg16", "fp32", 4),
        ("resnet18", "fp32", 4),
        ("resnet50", "fp32", 4),
        ("vgg16", "bf16", 8),
        ("resnet18", "bf16", 8),
    ],
)
def test_gradients_of_classifiers_are_the_tapes(name, precision, width):
    shape = (2, 3, 33, 40)
    network, images, labels, loss, expected = classifying(name, shape, width)
    backend = GpuBackend(network, shape, precision, device=EMULATOR)
    backend.program.allocate(apart=True)
    backend._put_network(network.state_dict())
    backend.load(images, labels, 0.0)
    backend.program.run(checked=False)
    # Of ResNet-50's many norms, over few pixels here, one makes more of what another rounded.
    if precision == "fp32" and name != "resnet50":
        check_gradients(network, backend.gradients(), expected, precision)
    else:
        check_all_gradients(network, backend.gradients(), expected, precision)
    found = backend._get(backend._step.loss)[0]
    assert found == pytest.approx(loss, rel=1e-4 if precision == "fp32" else 0.05)
    with pytest.raises(ValueError, match=r"masks of \(2, 33, 40\)"):
        backend.load(images, np.zeros((2, 33, 40), np.int32), 0.0)


def check_all_gradients(network, actual, expected, precision, shown=0.0):
    limit = tolerance.gradient_tolerance(np.float32, *network.terms(), precision=precision)
    assert gradient_error(actual, expected) <= max(limit, shown)


def gradient_error(actual, expected):
    error = np.linalg.norm([np.linalg.norm(actual[name] - g) for name, g in expected.items()])
    return error / np.linalg.norm([np.linalg.norm(g) for g in expected.values()])


def test_classifiers_learn_what_they_are_shown():
    network, images, labels, *_ = classifying("resnet18", (2, 3, 33, 40), 4)
    options = {"optimizer": "sgd", "options": {"momentum": 0.9}}
    backend = GpuBackend(network, images.shape, "fp32", device=EMULATOR, **options)
    losses = [backend.step(images, labels, 0.02).loss for _ in range(4)]
    assert losses[-1] < 0.7 * losses[0]
    scores = backend.predict(images)
    now = network.without_parameters()
    now.load_state_dict(backend.state_dict())
    expected = now.forward(images, ReferenceOps())
    tolerance.assert_close(scores, expected, *network.terms())


def test_a_few_steps_go_as_on_the_cpu():
    """The same optimiser, clipped gradients, running statistics, and the same state to keep."""
    network = network_of(4)
    options = {"optimizer": "adamw", "options": {"weight_decay": 0.1}, "clip": 0.5}
    ours = GpuBackend(network, SHAPE, "fp32", device=EMULATOR, **options)
    theirs = CpuBackend(network, **options)
    for step in range(3):
        images, masks = batch_of(seed=step)
        mine, other = (each.step(images, masks, 1e-3) for each in (ours, theirs))
        np.testing.assert_allclose([*map(float, mine)], [*map(float, other)], rtol=2e-4)
    found, expected = ours.state(), theirs.state()
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        if name.endswith(("running_mean", "running_var", "num_batches_tracked", "steps")):
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    # What has been trained on follows: a rate of 1e-3, three times.
    for name in network.trained:
        close = np.abs(found[f"network.{name}"] - expected[f"network.{name}"]) < 2e-4
        assert close.mean() > 0.98, name


def test_a_state_is_taken_back_and_steps_repeat_to_the_bit():
    network, batch = network_of(), batch_of()
    first = GpuBackend(network, SHAPE, "bf16", "rmsprop", {"momentum": 0.9}, device=EMULATOR)
    first.step(*batch, 1e-3)
    kept = {name: array.copy() for name, array in first.state().items()}
    first.step(*batch, 1e-3)
    second = GpuBackend(network, SHAPE, "bf16", "rmsprop", {"momentum": 0.9}, device=EMULATOR)
    second.load_state(kept)
    second.step(*batch, 1e-3)
    for name, array in first.state().items():
        np.testing.assert_array_equal(second.state()[name], array, err_msg=name)
    with pytest.raises(ValueError, match=r"not of this network.*is missing"):
        second.load_state({})


@pytest.mark.parametrize(
    ("name", "few_bytes"),
    [
        *(("unet", few_bytes) for few_bytes in (0, training._FEW_BYTES)),
        *((name, 0) for name in ("bilinear", "resnet18")),
        *((name, training._FEW_BYTES) for name in ("vgg16", "resnet50")),
    ],
)
def test_what_runs_beside_may_be_early_or_late(name, few_bytes, monkeypatch):
    """In the memory that is shared, at the first moment or at the last, it gives the same bits."""
    monkeypatch.setattr(training, "_FEW_BYTES", few_bytes)
    if name in CLASSIFIERS:
        network, *batch, _, _ = classifying(name, (2, 3, 33, 40), 4)
    else:
        network, batch = network_of(bilinear=name == "bilinear"), batch_of()
    states = []
    for late in (False, True):
        backend = GpuBackend(network, batch[0].shape, "fp32", device=EMULATOR)
        assert sum(is_beside for *_, is_beside in backend.program.course) > 10
        for _ in range(2):
            backend.load(*batch, 1e-3)
            backend.program.run(checked=False, late=late)
        states.append({name: array.copy() for name, array in backend.state().items()})
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array, err_msg=name)


def test_what_is_late_keeps_no_more_than_it_may(monkeypatch):
    """Where no gradient may be late beyond the next layer's, nearly no more memory is taken."""
    taken = {}
    for few_bytes in (0, 2**40):
        monkeypatch.setattr(training, "_FEW_BYTES", few_bytes)
        program = Step(network_of(), (2, 3, 96, 96), "bf16", "sgd", {}, None, EMULATOR).program
        taken[few_bytes] = program.arena_bytes
    assert taken[0] < 0.8 * taken[2**40]


def test_predictions_are_of_the_weights_as_they_are():
    network, (images, masks) = network_of(4), batch_of()
    backend = GpuBackend(network, SHAPE, "fp32", "sgd", device=EMULATOR)
    backend.step(images, masks, 1e-2)
    now = UNet.from_state_dict(backend.state_dict())
    expected = now.forward(images[:1], ReferenceOps())
    tolerance.assert_close(backend.predict(images[:1]), expected, *network.terms())


def test_what_does_not_fit_is_refused():
    network, (images, masks) = network_of(), batch_of()
    with pytest.raises(ValueError, match="no optimiser 'adam'"):
        GpuBackend(network, SHAPE, optimizer="adam", device=EMULATOR)
    with pytest.raises(ValueError, match="clip must be"):
        GpuBackend(network, SHAPE, clip=0, device=EMULATOR)
    for precision, width, least in (("bf16", 12, 8), ("fp32", 6, 4)):
        with pytest.raises(ValueError, match=f"{width} output channels.* multiples of {least}"):
            GpuBackend(network_of(width), SHAPE, precision, device=EMULATOR)
    backend = GpuBackend(network, SHAPE, device=EMULATOR)
    with pytest.raises(ValueError, match="make another"):
        backend.step(images[:1], masks[:1], 1e-3)
    assert backend.needs_bytes(4, 32, 32) > backend.needs_bytes(2, 32, 32) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("many_bytes", [0, 2**40])
def test_gradients_are_the_tapes_on_the_gpu(precision, bilinear, many_bytes, monkeypatch):
    from_bytes(monkeypatch, many_bytes)
    network, shape = network_of(width=64, bilinear=bilinear), (2, 3, 49, 66)
    images, masks = batch_of(shape)
    backend = GpuBackend(network, shape, precision, device=devices()[0])
    backend.step(images, masks, 0.0)
    _, expected = truth(network, images, masks)
    check_gradients(network, backend.gradients(), expected, precision)
    again = GpuBackend(network, shape, precision, device=devices()[0])
    again.load(images, masks, 0.0)
    # Nothing runs beside anything there, nor in a graph.
    again.program.run(only=set(range(len(again.program.steps))))
    for name, array in backend.gradients().items():
        np.testing.assert_array_equal(again.gradients()[name], array, err_msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "resnet18"])
def test_gradients_of_classifiers_are_the_tapes_on_the_gpu(name, precision):
    shape = (4, 3, 97, 110)
    network, images, labels, _, expected = classifying(name, shape, width=64)
    backend = GpuBackend(network, shape, precision, device=devices()[0])
    backend.step(images, labels, 0.0)
    # Of millions of ReLUs some are so near to zero that a rounding decides which way they go, and
    # all gradients before them follow: as far as these do if all such go the other way.
    _, other_way = taped(network, images.astype(np.float64), labels, Undecided(ReferenceOps()))
    shown = 1.1 * gradient_error(other_way, expected)
    check_all_gradients(network, backend.gradients(), expected, precision, shown)
