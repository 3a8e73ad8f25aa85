# SPDX-License-Identifier: MIT
"""U-Net: its structure, its parameters, its forward pass, and what it refuses."""

import gc
import math

import numpy as np
import pytest
from originals import torch_unet

from convstudy import tolerance
from convstudy.models.unet import UNet
from convstudy.nn.blas import BlasOps
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps

VARIANTS = {"transposed": False, "bilinear": True}
LAYERS = [f"enc{i}{ab}" for i in range(5) for ab in "ab"]
LAYERS += [f"dec{i}{ab}" for i in (3, 2, 1, 0) for ab in "ab"]


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
    network = UNet.initialised(seed=1, bilinear=VARIANTS[request.param])
    network.randomise_statistics(seed=2)
    return network


@pytest.fixture
def fresh():
    """A network that a test may spoil."""
    return UNet.initialised(seed=3, n_channels=1, n_classes=1, bilinear=True)


def images(rng, n=1, c=3, h=17, w=19):
    return rng.random((n, c, h, w), dtype=np.float32)


# ---- structure


def test_parameter_count(network):
    assert network.parameter_count == (17_263_042 if network.bilinear else 31_037_698)


def test_names_and_shapes(network):
    shapes = network.shapes
    assert len(shapes) == (110 if network.bilinear else 118)
    assert list(shapes)[:7] == [
        "inc.double_conv.0.weight",
        "inc.double_conv.1.weight",
        "inc.double_conv.1.bias",
        "inc.double_conv.1.running_mean",
        "inc.double_conv.1.running_var",
        "inc.double_conv.1.num_batches_tracked",
        "inc.double_conv.3.weight",
    ]
    deepest = 512 if network.bilinear else 1024
    assert shapes["down4.maxpool_conv.1.double_conv.3.weight"] == (deepest, deepest, 3, 3)
    assert shapes["up1.conv.double_conv.0.weight"] == (512, 1024, 3, 3)
    assert ("up1.up.weight" in shapes) is not network.bilinear
    assert shapes["up4.conv.double_conv.3.weight"] == (64, 64, 3, 3)
    assert shapes["outc.conv.weight"] == (2, 64, 1, 1)


def test_layers_at_the_paper_s_size():
    layers = dict(UNet().layers(128, 191))
    assert list(layers) == LAYERS
    assert sum(problem.macs for problem in layers.values()) == 16_826_277_888
    assert layers["enc0a"].x_shape == (1, 3, 128, 191)
    assert layers["enc4b"].x_shape == (1, 1024, 8, 11)
    assert layers["dec0a"].w_shape == (64, 128, 3, 3)


class Recorder(BlasOps):
    """Notes the convolutions that it is asked for."""

    def __init__(self):
        super().__init__()
        self.problems = []

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        y = super().conv2d(x, w, padding, stride, bias)
        self.problems.append((x.shape, w.shape, y.shape, padding))
        return y


def test_layers_are_those_that_run(network, rng):
    recorder = Recorder()
    network.forward(images(rng, n=2, h=23, w=31), recorder)
    expected = [
        (problem.x_shape, problem.w_shape, problem.y_shape, problem.padding)
        for _, problem in network.layers(23, 31, n=2)
    ]
    assert recorder.problems == expected


def test_terms_are_one_for_each_layer_that_sums(network):
    convolutions = [problem.terms for _, problem in network.layers(16, 16)]
    enlarging = [4] * 4 if network.bilinear else [1024, 512, 256, 128]
    assert network.terms() == [*convolutions, *enlarging, 64]


# ---- forward


def written_out(state, x, bilinear):
    """Return the network's result with every step spelt out, in float64."""
    state = {name: array.astype(float) for name, array in state.items()}
    twin = ReferenceOps()

    def double_conv(x, prefix):
        for convolution, norm in ((0, 1), (3, 4)):
            x = twin.conv2d(x, state[f"{prefix}.double_conv.{convolution}.weight"], (1, 1))
            weight, bias, mean, var = (
                state[f"{prefix}.double_conv.{norm}.{kind}"]
                for kind in ("weight", "bias", "running_mean", "running_var")
            )
            x = np.maximum(twin.batch_norm(x, weight, bias, mean, var, 1e-5), 0)
        return x

    def down(x, name):
        return double_conv(twin.max_pool2d(x), f"{name}.maxpool_conv.1")

    def up(x, skip, name):
        if bilinear:
            x = twin.upsample_bilinear(x)
        else:
            x = twin.conv_transpose2d(x, state[f"{name}.up.weight"], state[f"{name}.up.bias"])
        return double_conv(twin.pad_concat(skip, x), f"{name}.conv")

    x1 = double_conv(x.astype(float), "inc")
    x2 = down(x1, "down1")
    x3 = down(x2, "down2")
    x4 = down(x3, "down3")
    x5 = down(x4, "down4")
    y = up(x5, x4, "up1")
    y = up(y, x3, "up2")
    y = up(y, x2, "up3")
    y = up(y, x1, "up4")
    return twin.head(y, state["outc.conv.weight"], state["outc.conv.bias"])


def test_the_network_written_out_gives_the_same(network, rng):
    x = images(rng, n=2, h=21, w=35)
    expected = written_out(network.state_dict(), x, network.bilinear)
    assert tolerance.relative_error(network.forward(x, ReferenceOps()), expected) < 1e-12


@pytest.mark.parametrize(
    ("n", "h", "w"), [(1, 16, 16), (1, 17, 19), (1, 23, 31), (3, 17, 19), (1, 33, 16)]
)
def test_executions_agree_with_float64(network, n, h, w, rng):
    x = images(rng, n, h=h, w=w)
    truth = network.forward(x, ReferenceOps())
    assert truth.shape == (n, 2, h, w)
    for ops in (PlainOps(), BlasOps(), ReferenceOps(np.float32)):
        output = network.forward(x, ops)
        assert output.dtype == np.float32
        tolerance.assert_close(output, truth, *network.terms())


def test_an_image_s_result_does_not_depend_on_its_batch(network, rng):
    x = images(rng, n=3)
    together = network.forward(x, BlasOps())
    for i in range(3):
        alone = network.forward(x[i : i + 1], BlasOps())
        tolerance.assert_close(together[i : i + 1], alone, *network.terms())


def test_forward_changes_neither_image_nor_parameters(network, rng):
    x = images(rng)
    before = x.copy()
    first = network.forward(x, BlasOps())
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(network.forward(x, BlasOps()), first)


@pytest.mark.parametrize("bilinear", [False, True])
def test_every_parameter_reaches_the_result(bilinear, rng):
    network = UNet.initialised(seed=0, bilinear=bilinear, width=8)
    network.randomise_statistics(1)
    x, ops = images(rng, h=16, w=16), BlasOps()
    truth = network.forward(x, ops)
    limit = tolerance.tolerance(np.float32, *network.terms())
    for name, array in network.place(ops).items():
        kept = array.copy()
        array *= 2
        error = tolerance.relative_error(network.apply(x, ops), truth)
        array[...] = kept
        assert error > limit, name


def test_an_image_of_other_channels_and_classes(rng):
    network = UNet.initialised(seed=0, n_channels=1, n_classes=5, bilinear=True)
    x = images(rng, c=1)
    truth = network.forward(x, ReferenceOps())
    assert truth.shape == (1, 5, 17, 19)
    tolerance.assert_close(network.forward(x, BlasOps()), truth, *network.terms())


class Far(BlasOps):
    """Counts what is brought to it."""

    def __init__(self):
        super().__init__()
        self.brought = []

    def to_device(self, array):
        self.brought.append(array.shape)
        return array


def test_parameters_are_brought_once_and_again_when_they_change(fresh, rng):
    ops, x = Far(), images(rng, c=1)
    first = fresh.forward(x, ops)
    count = len(ops.brought)
    fresh.forward(x, ops)
    assert ops.brought[count:] == [x.shape]
    fresh.randomise_statistics(0)
    second = fresh.forward(x, ops)
    assert len(ops.brought) == 2 * count + 1
    assert tolerance.relative_error(second, first) > 0.01


def test_parameters_go_with_the_ops_that_they_were_brought_to(fresh, rng):
    ops = Far()
    fresh.forward(images(rng, c=1), ops)
    assert len(fresh._placed) == 1
    del ops
    gc.collect()
    assert len(fresh._placed) == 0


# ---- parameters


def test_a_seed_gives_the_same_network():
    first, again, other = (UNet.initialised(seed, bilinear=True).state_dict() for seed in (4, 4, 5))
    name = "up1.conv.double_conv.0.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_initial_values():
    state = UNet.initialised(seed=6).state_dict()
    for name, fan_in in (
        ("inc.double_conv.0.weight", 3 * 9),
        ("down4.maxpool_conv.1.double_conv.3.weight", 1024 * 9),
        ("up1.up.weight", 512 * 4),
        ("up1.up.bias", 512 * 4),
        ("outc.conv.weight", 64),
        ("outc.conv.bias", 64),
    ):
        scaled = state[name].ravel() * math.sqrt(fan_in)
        assert np.abs(scaled).max() <= 1 + 1e-6, name
        # The mean and the mean square of a uniform distribution over (-1, 1), within 5 sigma.
        near = 5 / math.sqrt(scaled.size)
        assert abs(scaled.mean()) < near / math.sqrt(3), name
        assert abs(np.mean(scaled**2) - 1 / 3) < near * math.sqrt(4 / 45), name
    for kind, value in (
        ("weight", 1),
        ("bias", 0),
        ("running_mean", 0),
        ("running_var", 1),
        ("num_batches_tracked", 0),
    ):
        assert (state[f"up3.conv.double_conv.4.{kind}"] == value).all()


def test_a_state_goes_over_to_another_network(network, rng):
    twin = UNet(bilinear=network.bilinear)
    twin.load_state_dict(network.state_dict())
    x, ops = images(rng), BlasOps()
    np.testing.assert_array_equal(twin.forward(x, ops), network.forward(x, ops))


def test_states_are_copies(fresh, rng):
    x, ops = images(rng, c=1), BlasOps()
    before = fresh.forward(x, ops)
    taken = fresh.state_dict()
    taken["outc.conv.bias"] += 1
    np.testing.assert_array_equal(fresh.forward(x, ops), before)
    fresh.load_state_dict(taken)
    after = fresh.forward(x, ops)
    assert not np.array_equal(after, before)
    taken["outc.conv.bias"] += 1
    np.testing.assert_array_equal(fresh.forward(x, ops), after)


def test_statistics_keep_the_signal_alive(network, rng):
    """Each channel of the last block must vary, or errors before it would not show."""
    last = {}

    class Watch(BlasOps):
        def head(self, x, w, bias):
            last["x"] = x
            return super().head(x, w, bias)

    network.forward(images(rng, h=32, w=32), Watch())
    assert 0.1 < np.median(last["x"].std(axis=(0, 2, 3))) < 10


def test_random_statistics_lie_where_values_stay_near_one(fresh):
    fresh.randomise_statistics(seed=1)
    drawn = {}
    for name, array in fresh.state_dict().items():
        layer, kind = name.rsplit(".", 1)
        if f"{layer}.running_var" in fresh.shapes:
            drawn.setdefault(kind, []).append(array.ravel())
    for kind, low, high in (
        ("weight", 0.7, 1.3),
        ("bias", -0.5, 0.5),
        ("running_mean", -0.3, 0.3),
        ("running_var", 0.1, 0.25),
    ):
        values = np.concatenate(drawn[kind])
        assert [values.min(), values.max()] == pytest.approx([low, high], abs=0.01), kind


def test_no_parameters():
    with pytest.raises(RuntimeError, match="no parameters; call load_state_dict"):
        UNet().forward(np.zeros((1, 3, 16, 16), np.float32), BlasOps())
    with pytest.raises(RuntimeError, match="no parameters"):
        UNet().state_dict()


def test_a_wrong_state_is_refused_with_every_fault_named(fresh, rng):
    x, ops = images(rng, c=1), BlasOps()
    before = fresh.forward(x, ops)
    state = fresh.state_dict()
    del state["inc.double_conv.0.weight"]
    state["module.extra"] = np.zeros(3)
    state["outc.conv.weight"] = state["outc.conv.weight"][:, :32]
    state["outc.conv.bias"] = state["outc.conv.bias"].astype(np.float64)
    state["inc.double_conv.1.bias"][5] = np.nan
    state["inc.double_conv.4.running_var"][0] = -1
    state["up4.conv.double_conv.0.weight"] += 1  # faultless, but must not be taken either
    with pytest.raises(ValueError, match=r"UNet\.load_state_dict: 6 faults") as caught:
        fresh.load_state_dict(state)
    for words in (
        "inc.double_conv.0.weight is missing",
        "module.extra is unknown",
        "outc.conv.weight has shape (1, 32, 1, 1), expected (1, 64, 1, 1)",
        "outc.conv.bias is float64, expected float32",
        "inc.double_conv.1.bias holds NaN or infinity",
        "inc.double_conv.4.running_var is negative",
        "UNet(1, 1, bilinear=True) gives",
    ):
        assert words in str(caught.value)
    np.testing.assert_array_equal(fresh.forward(x, ops), before)


def test_a_channel_without_variance_is_taken(fresh):
    state = fresh.state_dict()
    state["inc.double_conv.1.running_var"][0] = 0
    fresh.load_state_dict(state)


def test_the_other_variant_s_state_is_refused():
    state = UNet.initialised(0, n_channels=1, n_classes=1).state_dict()
    with pytest.raises(ValueError, match=r"up1\.up\.weight is unknown"):
        UNet(1, 1, bilinear=True).load_state_dict(state)


# ---- refusals


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda x: x.tolist(), TypeError, "NumPy array, got list; use np.asarray"),
        (lambda x: x.astype(np.float64), TypeError, "float32, got float64; use .astype"),
        (lambda x: x[0], ValueError, r"rank 4 \(N, C, H, W\), got shape \(1, 16, 20\)"),
        (lambda x: np.concatenate([x, x], axis=1), ValueError, "has 2 channels .* takes 1; pass"),
        (lambda x: x[:0], ValueError, "holds no image"),
        (lambda x: x[:, :, :15], ValueError, "15 x 20 is too small .* H and W must be at least 16"),
        (lambda x: x[:, :, :, :15], ValueError, "16 x 15 is too small"),
        (lambda x: x[:, :, :, ::-1], ValueError, "C-contiguous, .* use np.ascontiguousarray"),
        (lambda x: np.where(x == x.max(), np.nan, x), ValueError, "holds NaN or infinity"),
        (lambda x: np.where(x == x.max(), np.inf, x), ValueError, "holds NaN or infinity"),
    ],
)
def test_images_that_are_refused(fresh, spoil, error, words, rng):
    with pytest.raises(error, match=f"UNet: .*{words}"):
        fresh.forward(spoil(images(rng, c=1, h=16, w=20)), BlasOps())


def test_a_narrow_network_has_every_layer_of_fewer_channels(rng):
    wide, narrow = UNet(), UNet.initialised(seed=0, width=3)
    assert list(narrow.shapes) == list(wide.shapes)
    assert repr(wide) == "UNet(3, 2, bilinear=False)"
    assert repr(narrow) == "UNet(3, 2, bilinear=False, width=3)"
    for name, shape in narrow.shapes.items():
        scaled = tuple(size * 3 // 64 if size >= 64 else size for size in wide.shapes[name])
        assert shape == scaled, name
    assert narrow.terms()[-1] == 3
    x = images(rng)
    truth = narrow.forward(x, ReferenceOps())
    tolerance.assert_close(narrow.forward(x, BlasOps()), truth, *narrow.terms())
    with pytest.raises(ValueError, match=r"expected \(3, 3, 3, 3\).* a UNet\(3, 2, .*width=3\)"):
        narrow.load_state_dict(UNet.initialised(seed=0, width=4).state_dict())


def test_a_parameter_is_named_where_it_is_brought(fresh, rng):
    named = {}

    class Naming(BlasOps):
        def parameter(self, name, array):
            named[name] = array.shape
            return super().parameter(name, array)

    fresh.forward(images(rng, c=1), Naming())
    assert named == {
        name: shape for name, shape in fresh.shapes.items() if "num_batches" not in name
    }
    assert set(fresh.trained) == {name for name in named if "running" not in name}


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None])
def test_sizes_that_are_refused(value):
    with pytest.raises(ValueError, match="width must be an integer of at least 1"):
        UNet(width=value)
    with pytest.raises(ValueError, match="n_channels must be an integer of at least 1"):
        UNet(n_channels=value)
    with pytest.raises(ValueError, match="n_classes must be an integer of at least 1"):
        UNet(n_classes=value)


def test_layers_of_a_small_image_are_refused():
    with pytest.raises(ValueError, match=r"UNet\.layers: an image of 128 x 8 is too small"):
        UNet().layers(128, 8)


# ---- PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )


@pytest.mark.parametrize(("h", "w"), [(16, 16), (17, 19), (47, 38)])
def test_pytorch_agrees(network, torch, h, w, rng):
    theirs = torch_unet(torch, network.bilinear)
    state = network.state_dict()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    x = images(rng, n=2, h=h, w=w)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(x)).numpy()
        truth = theirs.double()(torch.from_numpy(x).double()).numpy()
    tolerance.assert_close(expected, truth, *network.terms())
    tolerance.assert_close(network.forward(x, BlasOps()), truth, *network.terms())
    # Two float64 computations of one network: only the order of summation differs.
    reference = network.forward(x, ReferenceOps())
    assert tolerance.relative_error(reference, truth) < 1e-12


def test_pytorch_s_state_is_taken(network, torch, rng):
    theirs = torch_unet(torch, network.bilinear)
    state = theirs.state_dict()
    assert list(state) == list(network.shapes)
    mine = UNet(bilinear=network.bilinear)
    mine.load_state_dict(state)
    x = images(rng)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(x)).numpy()
    tolerance.assert_close(mine.forward(x, BlasOps()), expected, *network.terms())


def test_initial_values_are_distributed_as_pytorch_s(network, torch):
    theirs = torch_unet(torch, network.bilinear).state_dict()
    mine = UNet.initialised(seed=9, bilinear=network.bilinear).state_dict()
    for name, array in mine.items():
        other = theirs[name].numpy()
        if array.ndim == 4:
            # Uniform: the bound and the mean are known to a few parts in the root of the number.
            near = 6 / math.sqrt(array.size)
            bound = np.abs(other).max()
            assert np.abs(array).max() == pytest.approx(bound, rel=max(near**2 * 3, 1e-5)), name
            assert abs(array.mean()) < near * bound, name
        elif name.startswith("up") and name.endswith("up.bias"):
            assert np.abs(array).max() == pytest.approx(np.abs(other).max(), rel=0.2), name
        elif name != "outc.conv.bias":
            np.testing.assert_array_equal(array, other, err_msg=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(bilinear="yes"), "UNet: bilinear must be True or False, got 'yes'"),
        (lambda: UNet(width=True), "UNet: width must be an integer of at least 1, got True"),
        (lambda: UNet.from_state_dict(None), "UNet.from_state_dict: state must map .* NoneType"),
        (lambda: UNet().load_state_dict([1]), "state must map names to arrays, got list"),
        (lambda: UNet().layers("a", 191), "UNet.layers: H and W must be integers, got 'a' and 191"),
        (
            lambda: UNet.initialised(0).forward(np.zeros((1, 3, 16, 16), np.float32), "cpu"),
            r"UNet: ops must say what executes it, such as BlasOps\(\)",
        ),
        (lambda: BlasOps("two"), "BlasOps: threads must be an integer of at least 1, got 'two'"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_words(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
