# SPDX-License-Identifier: MIT
"""The loss and the optimisers as CUDA kernels, against those of NumPy in float64."""

import math

import numpy as np
import pytest
from nhwc_arrays import Bench, close, draw, host, nchw, nhwc, plant, stored

from convstudy.device import EMULATOR
from convstudy.problem import BFLOAT16
from convstudy.train import flat, loss_nhwc
from convstudy.train.losses import cross_entropy, cross_entropy_dice
from convstudy.train.optimizers import OPTIMIZERS, ORIGINAL, clip_gradients


# ---- loss ----------------------------------------------------------------------------------------
def do_loss(bench, classes, rows, target, rng, large=1.0):
    shape = (2, 17, 13)
    logits = draw(rng, (*shape, classes)) * large
    targets = rng.integers(0, max(classes, 2), shape)
    pixels, count = targets.size, math.ceil(targets.size / rows)
    given, answers = bench.array(logits), bench.array(targets, target)
    parts, loss = bench.unwritten(count, 3), bench.unwritten(loss_nhwc.LOSS_SIZE)
    bench.run(loss_nhwc.launch_loss_parts(pixels, classes, rows, target), given, answers, parts)
    bench.run(loss_nhwc.launch_loss(pixels, count), parts, loss)
    bench.run(loss_nhwc.launch_loss_dgrad(pixels, classes, target), given, answers, loss, given)
    value, dlogits, expected = cross_entropy_dice(nchw(logits), targets)
    expected = [value, expected["cross_entropy"], expected["dice"]]
    for actual, true in zip(host(loss)[:3], expected, strict=True):
        assert actual == pytest.approx(true, rel=2e-6)
    close(host(given), nhwc(dlogits), 64)


@pytest.mark.parametrize(
    ("classes", "rows", "target"), [(1, 100, "int32"), (2, 300, "uint8"), (5, 1000, "int32")]
)
def test_the_loss_and_its_gradient(bench, classes, rows, target, rng):
    do_loss(bench, classes, rows, target, rng)


@pytest.mark.parametrize(("classes", "target"), [(1, "int32"), (2, "uint8")])
def test_a_loss_of_large_logits_overflows_nowhere(bench, classes, target, rng):
    do_loss(bench, classes, 300 if classes == 2 else 100, target, rng, large=100.0)


@pytest.mark.parametrize(("classes", "wrong"), [(1, 2), (2, 255), (2, 2)])
def test_a_target_that_is_no_class_makes_the_loss_nan(bench, classes, wrong):
    logits, targets = bench.unwritten(300, classes), np.zeros(300)
    logits[...] = 0
    targets[-1] = wrong
    kind = {1: "int32", 2: "uint8"}[classes]
    parts, loss = bench.unwritten(1, 3), bench.unwritten(loss_nhwc.LOSS_SIZE)
    launch = loss_nhwc.launch_loss_parts(300, classes, 300, kind)
    bench.run(launch, logits, bench.array(targets, kind), parts)
    bench.run(loss_nhwc.launch_loss(300, 1), parts, loss)
    assert np.isnan(host(loss)[0])


def test_a_logit_that_is_nan_makes_the_loss_nan(bench):
    for classes, kind in ((1, "int32"), (2, "uint8")):
        logits, parts = bench.array(np.zeros((300, classes))), bench.unwritten(1, 3)
        logits[7, 0] = np.nan
        launch = loss_nhwc.launch_loss_parts(300, classes, 300, kind)
        bench.run(launch, logits, bench.array(np.zeros(300), kind), parts)
        assert np.isnan(host(parts)[0, 0])


@pytest.mark.parametrize(
    ("images", "classes", "dtype", "large"),
    [(5, 1000, "float32", 1.0), (9, 7, "bfloat16", 1.0), (1, 33, "float32", 100.0)],
)
def test_the_loss_of_classes_and_its_gradient(bench, images, classes, dtype, large, rng):
    logits = stored(draw(rng, (images, classes), dtype) * large, dtype)
    targets = rng.integers(0, classes, images)
    given = bench.array(logits, BFLOAT16 if dtype == "bfloat16" else np.float32)
    parts, loss = bench.unwritten(images, 3), bench.unwritten(loss_nhwc.LOSS_SIZE)
    launch = loss_nhwc.launch_entropy(images, classes, dtype)
    bench.run(launch, given, bench.array(targets, np.int32), given, parts)
    bench.run(loss_nhwc.launch_loss(images, images), parts, loss)
    value, dlogits = cross_entropy(logits, targets)
    assert host(loss)[:3] == pytest.approx([value, value, 1.0], rel=2e-6)
    close(host(given), dlogits, 64, dtype)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_target_that_is_no_class_of_an_image_makes_the_loss_nan(bench, wrong):
    logits, dlogits = bench.array(np.zeros((3, 4))), bench.unwritten(3, 4)
    parts = bench.unwritten(3, 3)
    targets = bench.array([0, wrong, 1], np.int32)
    bench.run(loss_nhwc.launch_entropy(3, 4, "float32"), logits, targets, dlogits, parts)
    np.testing.assert_array_equal(np.isnan(host(parts)[:, 0]), [False, True, False])


# ---- optimisers ----------------------------------------------------------------------------------
SLOTS = {"sgd": ("momentum",), "rmsprop": ("square", "momentum"), "adamw": ("mean", "square")}


class Flat:
    """An optimiser's arrays on a device, and the launches of its steps."""

    def __init__(self, bench, name, parameters, options, copy=True, most=math.inf, parts=3):
        self.bench, size = bench, parameters.size
        self.parameters = bench.array(parameters)
        remembered = OPTIMIZERS[name]({"p": parameters}, **options).slots
        self.slots = [bench.array(np.zeros(size)) if s in remembered else None for s in SLOTS[name]]
        self.copy = bench.array(np.full(size, np.nan), BFLOAT16) if copy else None
        self.control = bench.array(np.full(len(flat.CONTROL), np.nan))
        self.steps = bench.array(np.zeros(len(flat.STEPS)), np.int32)
        self.parts = bench.unwritten(parts) if parts else None
        betas = options.get("beta1", 0.9), options.get("beta2", 0.999)
        self.norm = flat.launch_norm_parts(size, parts) if parts else None
        self.begin = flat.launch_begin(parts, most, betas if name == "adamw" else (0.0, 0.0))
        self.rule = flat.launch_step(name, size, options, copy)

    def step(self, gradients, rate):
        gradients = self.bench.array(gradients)
        self.control[flat.CONTROL.index("rate")] = rate
        if self.norm:
            self.bench.run(self.norm, gradients, self.parts)
        self.bench.run(self.begin, self.parts, self.control, self.steps)
        arrays = (self.parameters, gradients, *self.slots, self.copy, self.control)
        self.bench.run(self.rule, *arrays)

    def found(self, name):
        return host(self.control)[flat.CONTROL.index(name)]


def do_steps(bench, name, options, size, rng, most=math.inf, steps=3, **more):
    parameters = draw(rng, size)
    own = Flat(bench, name, parameters, options, most=most, **more)
    truth = {"p": parameters.copy()}
    rule = OPTIMIZERS[name](truth, **options)
    for step in range(steps):
        gradients, rate = draw(rng, size) * 10.0**-step, float(np.float32(0.03 / (step + 1)))
        own.step(gradients, rate)
        clipped = {"p": gradients.copy()}
        norm = clip_gradients(clipped, most)
        rule.step(truth, clipped, rate)
        if more.get("parts", 3):
            assert own.found("norm") == pytest.approx(norm, rel=1e-6)
            assert own.found("finite") == 1
    # Of a parameter, what the steps changed is to be right, not only what it was.
    change = 64 * np.finfo(np.float32).eps * np.abs(truth["p"] - parameters).max()
    room = change + 4 * np.finfo(np.float32).eps * np.abs(parameters)
    assert (np.abs(host(own.parameters) - truth["p"]) <= room).all()
    for slot, array in zip(SLOTS[name], own.slots, strict=True):
        if array is not None:
            close(host(array), rule.state[f"{slot}.p"], 64)
    if own.copy is not None:
        expected = np.asarray(host(own.parameters), np.float32).astype(BFLOAT16)
        np.testing.assert_array_equal(host(own.copy), expected.astype(float))
    assert host(own.steps).tolist() == [steps, 0]
    return own


RULES = [
    ("sgd", {"momentum": 0.0, "weight_decay": 0.1}, 1000, {"copy": False}),
    ("sgd", {"weight_decay": 0.1}, 1028, {"most": 0.5}),
    ("rmsprop", ORIGINAL, 1028, {"most": 1.0}),
    ("rmsprop", {"weight_decay": 0.2}, 1001, {}),
    ("adamw", {}, 1028, {"most": 2.0, "parts": 1}),
    ("adamw", {"beta1": 0.5, "weight_decay": 0.3}, 7, {"parts": 0}),
]


@pytest.mark.parametrize(("name", "options", "size", "more"), RULES)
def test_steps_agree_with_the_rules(bench, name, options, size, more, rng):
    do_steps(bench, name, options, size, rng, **more)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bench, bad, rng):
    own = do_steps(bench, "adamw", {}, 1028, rng, steps=1)
    arrays = (own.parameters, *own.slots, own.copy)
    before = [host(a) for a in arrays]
    gradients = draw(rng, 1028)
    gradients[-1] = bad
    own.step(gradients, 0.1)
    assert own.found("finite") == 0
    assert host(own.steps).tolist() == [1, 1]
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(host(array), kept)


def test_corrections_keep_their_digits(bench):
    """After one step 1 - 0.999 is left, of which float32 would lose the last digits."""
    control, steps = bench.array(np.zeros(len(flat.CONTROL))), bench.array([0, 0], np.int32)
    for step in (1, 2, 3):
        bench.run(flat.launch_begin(0, betas=(0.9, 0.999)), None, control, steps)
        expected = [1 - beta**step for beta in (0.9, 0.999)]
        np.testing.assert_allclose(host(control)[4:], expected, rtol=3e-7)
    assert host(control)[flat.CONTROL.index("factor")] == 1


# ---- faults and errors ---------------------------------------------------------------------------
FAULTS = {
    "loss_fprop_2_combine": ("fmaf(2.0f", "fmaf(1.0f"),
    "loss_dgrad_1_pixels": ("slope[k] - dot", "slope[k]"),
    "gradient_norm_1_parts": ("base + mine_first + i * stride < size ?", "true ?"),
    "adamw_step_1_flat": ("rate / control[CORRECTION1]", "rate"),
    "rmsprop_step_1_flat": ("fmaf(decay, p[i], factor * g[i])", "factor * g[i]"),
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_in_a_kernel_is_seen(kernel, monkeypatch, rng):
    plant(monkeypatch, kernel, *FAULTS[kernel])
    bench, name = Bench(EMULATOR), kernel.split("_")[0]
    options = {"weight_decay": 0.1} if name == "rmsprop" else {}
    with pytest.raises(AssertionError):
        do_loss(bench, 2, 300, "uint8", rng) if name == "loss" else do_steps(
            bench, name if name in OPTIMIZERS else "adamw", options, 1028, rng
        )


BAD = {
    "targets": (lambda: loss_nhwc.launch_loss_parts(9, 2, 9, "int64"), "'uint8' or 'int32'"),
    "classes": (lambda: loss_nhwc.launch_loss_dgrad(9, 40), "40 classes"),
    "rule": (lambda: flat.launch_step("adam", 8), "no optimiser 'adam'; there are sgd, rmsprop"),
    "option": (lambda: flat.launch_step("sgd", 8, {"alpha": 1}), "SGD: no option 'alpha'"),
    "nothing": (lambda: flat.launch_step("sgd", 0), "at least one parameter"),
    "clip": (lambda: flat.launch_begin(1, 0.0), "cannot clip gradients to 0.0"),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_calls_are_refused_in_words(title):
    do, message = BAD[title]
    with pytest.raises(ValueError, match=message):
        do()
