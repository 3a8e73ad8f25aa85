# SPDX-License-Identifier: MIT
"""Optimisers, clipping and schedules: by hand, and step by step beside PyTorch's."""

import math

import numpy as np
import pytest

from convstudy.train import optimizers, schedules
from convstudy.train.optimizers import OPTIMIZERS, SGD, AdamW, RMSprop, clip_gradients


def one_step(rule, p=2.0, g=4.0, steps=1, rate=0.1, **options):
    parameters = {"p": np.array([p])}
    optimizer = rule(parameters, **options)
    for _ in range(steps):
        optimizer.step(parameters, {"p": np.array([g])}, rate)
    return parameters["p"][0]


def test_sgd_by_hand():
    assert one_step(SGD, momentum=0.0) == pytest.approx(2 - 0.1 * 4)
    assert one_step(SGD, momentum=0.0, weight_decay=0.5) == pytest.approx(2 - 0.1 * (4 + 1))
    # v is 4, then 0.5 * 4 + 4.
    assert one_step(SGD, momentum=0.5, steps=2) == pytest.approx(2 - 0.1 * 4 - 0.1 * 6)


def test_rmsprop_by_hand():
    # The root of (1 - 0.75) 16 is 2.
    assert one_step(RMSprop, alpha=0.75, eps=1e-37) == pytest.approx(2 - 0.1 * 4 / 2)
    assert one_step(RMSprop, alpha=0.75, eps=2.0) == pytest.approx(2 - 0.1 * 4 / 4)


def test_adamw_by_hand():
    """Its first step is of the length of the rate, whatever the gradient."""
    for g in (1e-3, 4.0, -1e3):
        step = one_step(AdamW, g=g, weight_decay=0.0, eps=1e-37) - 2
        assert step == pytest.approx(math.copysign(0.1, -g))
    assert one_step(AdamW, g=0.0, weight_decay=0.5) == pytest.approx(2 * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("rule", OPTIMIZERS.values())
def test_a_parameter_without_a_gradient_stays(rule):
    parameters = {"p": np.ones(3, np.float32), "q": np.ones(2, np.float32)}
    optimizer = rule(parameters)
    optimizer.step(parameters, {"p": np.ones(3, np.float32)}, 0.1)
    assert (parameters["q"] == 1).all()
    assert (parameters["p"] != 1).all()
    assert {each.dtype for each in parameters.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("rule", OPTIMIZERS.values())
def test_the_state_is_all_that_an_optimiser_remembers(rule, rng):
    start = {"p": rng.standard_normal((3, 4)).astype(np.float32)}
    gradients = [{"p": rng.standard_normal((3, 4)).astype(np.float32)} for _ in range(6)]
    options = {"momentum": 0.9} if "momentum" in rule.defaults else {}
    whole = {"p": start["p"].copy()}
    optimizer = rule(whole, **options)
    for i, each in enumerate(gradients):
        if i == 3:
            parameters = {"p": whole["p"].copy()}
            state = {name: array.copy() for name, array in optimizer.state.items()}
        optimizer.step(whole, each, 0.01)
    again = rule(parameters, **options)
    assert again.state.keys() == state.keys()
    for name, array in state.items():
        again.state[name][...] = array
    for each in gradients[3:]:
        again.step(parameters, each, 0.01)
    np.testing.assert_array_equal(parameters["p"], whole["p"])


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (SGD, {"nesterov": 1}, "SGD: no option 'nesterov'; there are momentum, weight_decay"),
        (SGD, {"momentum": -0.1}, "SGD: momentum must be a number of at least 0 and below inf"),
        (AdamW, {"beta2": 1.0}, "AdamW: beta2 must be .* below 1, got 1.0"),
        (RMSprop, {"eps": math.nan}, "RMSprop: eps must be a number"),
        (AdamW, {"eps": 0.0}, "AdamW: eps must be a number of at least 1e-37 .* got 0.0"),
        (RMSprop, {"alpha": "0.9"}, "RMSprop: alpha must be a number .* got '0.9'"),
    ],
)
def test_options_that_are_refused(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rule({}, **options)


def test_clipping_scales_all_gradients_as_one_vector(rng):
    gradients = {"p": np.array([[3.0]]), "q": np.array([4.0])}
    assert clip_gradients(gradients, 10) == pytest.approx(5)
    assert (gradients["p"], gradients["q"]) == (3, 4)
    assert clip_gradients(gradients, 1) == pytest.approx(5)
    assert gradients["p"][0, 0] == pytest.approx(0.6, rel=1e-6)
    assert gradients["q"][0] == pytest.approx(0.8, rel=1e-6)
    assert clip_gradients({"p": np.full(3, np.nan)}, 1) != 1


# ---- schedules


def test_warm_up_and_cosine():
    schedule = schedules.WarmupCosine(1.0, steps=110, warmup=10 / 110)
    rates = [schedule.rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert np.diff(rates[10:]).max() < 0
    assert 0 < rates[-1] < 1e-3
    assert schedule.rate(1000) == 0


def test_a_plateau_lowers_the_rate():
    schedule = schedules.Plateau(1.0, patience=2)
    seen = []
    for score in (0.1, 0.2, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3):
        schedule.observe(score)
        seen.append(schedule.rate(0))
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.make("step", 0.1, 10), "there is no schedule 'step'; take constant or"),
        (lambda: schedules.make("cosine", 0.1, 0), "WarmupCosine: steps must be at least 1"),
        (lambda: schedules.make("constant", 0.0, 9), "Constant: rate must be a number above 0"),
        (lambda: schedules.make("plateau", math.nan, 9), "Plateau: rate must be .* got nan"),
    ],
)
def test_schedules_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )


@pytest.mark.parametrize(
    ("rule", "theirs", "options", "translated"),
    [
        (SGD, "SGD", {"momentum": 0.9, "weight_decay": 0.01}, None),
        (SGD, "SGD", {"momentum": 0.0}, None),
        (RMSprop, "RMSprop", optimizers.ORIGINAL, None),
        (RMSprop, "RMSprop", {"alpha": 0.9, "eps": 1e-3}, None),
        (AdamW, "AdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1, "betas": (0.9, 0.999)}),
    ],
)
def test_pytorch_takes_the_same_steps(rule, theirs, options, translated, torch, rng):
    start = rng.standard_normal((4, 5))
    mine = {"p": start.copy()}
    other = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = rule(mine, **options)
    reference = getattr(torch.optim, theirs)([other], lr=0.0, **(translated or options))
    for step in range(20):
        rate = 0.1 / (step + 1)
        gradient = rng.standard_normal((4, 5))
        optimizer.step(mine, {"p": gradient}, rate)
        reference.param_groups[0]["lr"] = rate
        other.grad = torch.from_numpy(gradient.copy())
        reference.step()
        np.testing.assert_allclose(mine["p"], other.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_pytorch_clips_the_same(torch, rng):
    arrays = {"p": rng.standard_normal((4, 5)), "q": rng.standard_normal(3)}
    others = [torch.nn.Parameter(torch.zeros(array.shape)) for array in arrays.values()]
    for other, array in zip(others, arrays.values(), strict=True):
        other.data = other.data.double()
        other.grad = torch.from_numpy(array.copy())
    norm = torch.nn.utils.clip_grad_norm_(others, 1.0)
    assert clip_gradients(arrays, 1.0) == pytest.approx(norm.item(), rel=1e-12)
    for other, array in zip(others, arrays.values(), strict=True):
        np.testing.assert_allclose(array, other.grad.numpy(), rtol=1e-12)


def test_pytorch_finds_the_same_plateaus(torch, rng):
    mine = schedules.Plateau(1.0, patience=3)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(other, "max", patience=3)
    for score in np.concatenate([[0.0, 0.0], 0.5 + 0.1 * rng.standard_normal(60)]):
        mine.observe(score)
        theirs.step(score)
        if mine.rate(0) > 1e-8:  # below, PyTorch stops lowering
            assert mine.rate(0) == pytest.approx(other.param_groups[0]["lr"])
