# SPDX-License-Identifier: MIT
"""All parameters in one array."""

import itertools

import numpy as np

from convstudy.models.unet import UNet
from convstudy.program.weights import Layout


def test_what_is_packed_comes_back(rng):
    shapes = {"a.weight": (5, 3, 3, 2), "b": (7,), "c.weight": (4, 6), "d": (1, 2, 1, 1)}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    layout = Layout(shapes)
    packed = layout.pack(state)
    assert packed.shape == (layout.size,)
    for name, array in layout.unpack(packed).items():
        np.testing.assert_array_equal(array, state[name])
    slot = layout.slots["a.weight"]
    lying = packed[slot.offset : slot.offset + slot.size].reshape(5, 3, 2, 3)
    np.testing.assert_array_equal(lying, state["a.weight"].transpose(0, 2, 3, 1))
    assert all(slot.offset % 32 == 0 for slot in layout.slots.values())
    # Nothing but parameters is there.
    assert np.count_nonzero(packed) == sum(map(np.count_nonzero, state.values()))


def test_some_lie_before_all_others_and_come_back_in_their_order(rng):
    shapes = {"a": (40, 2), "b": (7,), "c": (4, 6), "d": (9,)}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    layout = Layout(shapes, first={"d", "b"})
    assert list(layout.slots) == ["b", "d", "a", "c"]
    assert list(layout.places.values()) == list(
        itertools.starmap(slice, itertools.pairwise((0, 32, 64, 160, 192)))
    )
    back = layout.unpack(layout.pack(state))
    assert list(back) == list(shapes)
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])


def test_unet_comes_back():
    network = UNet.initialised(0)
    state = {k: v for k, v in network.state_dict().items() if v.dtype == np.float32}
    layout = Layout({name: array.shape for name, array in state.items()})
    for name, array in layout.unpack(layout.pack(state)).items():
        np.testing.assert_array_equal(array, state[name])
