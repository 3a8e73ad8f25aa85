# SPDX-License-Identifier: MIT
"""Batches: every pair once an epoch, decided by seed and step; and the Dice of what is found."""

import numpy as np
import pytest

from convstudy.images import CompositeSet
from convstudy.images.pairs import Pairs
from convstudy.train.data import Batches, Kept, split
from convstudy.train.dice import decide, dice, evaluate


class Numbered(Pairs):
    """Pairs that say which they are: the image of its number, the mask brighter to the right."""

    def __init__(self, count):
        self.count, self.made = count, 0

    def __len__(self):
        return self.count

    def _pair(self, index):
        self.made += 1
        image = np.full((3, 2, 3), index / 255, np.float32)
        image[0] = [0, 0.2, 1]
        return image, np.array([[0, 1, 1]] * 2, np.uint8)


def numbers(images):
    return np.rint(images[:, 1, 0, 0] * 255).astype(int).tolist()


def test_every_pair_is_taken_once_an_epoch_in_another_order():
    batches = Batches(Numbered(11), 3, seed=4)
    assert batches.steps_per_epoch == 3
    epochs = [
        [n for step in range(3 * epoch, 3 * epoch + 3) for n in numbers(batches.at(step)[0])]
        for epoch in range(8)
    ]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    # What one epoch leaves out another takes.
    assert {n for epoch in epochs for n in epoch} == set(range(11))


def test_a_step_s_batch_depends_on_seed_and_step_alone():
    one, other = (Batches(Numbered(11), 3, seed=4) for _ in range(2))
    for step in range(7):
        one.at(step)
    for step in (8, 2, 8):
        for mine, theirs in zip(one.at(step), other.at(step), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    images, _ = Batches(Numbered(11), 11, seed=5).at(0)
    assert numbers(images) != numbers(Batches(Numbered(11), 11, seed=4).at(0)[0])


def test_about_half_are_mirrored_with_their_masks():
    images, masks = Batches(Numbered(200), 200, seed=0).at(3)
    mirrored = images[:, 0, 0, 0] == 1
    assert 70 < mirrored.sum() < 130
    np.testing.assert_array_equal(masks[:, 0], np.where(mirrored[:, None], [1, 1, 0], [0, 1, 1]))
    images, _ = Batches(Numbered(200), 200, flip=False).at(3)
    assert not (images[:, 0, 0, 0] == 1).any()


def test_the_shape_of_a_batch_is_known_before_it_is_made():
    for pairs in (Numbered(8), CompositeSet("train", 8, 16, 24)):
        batches = Batches(Kept(split(pairs, 2)[0]), 5)
        for share in (slice(0, 5), slice(2, 4), slice(3, 9)):
            batches.share = share
            assert batches.shape == batches.at(0)[0].shape


def test_a_pair_is_made_once_and_kept_as_it_is():
    pairs = Numbered(5)
    kept = Kept(pairs)
    first = [kept[i] for i in range(5)]
    assert pairs.made == 5
    kept[3][0][...] = 7  # a copy
    for i, (image, mask) in enumerate(first):
        again = kept[i]
        np.testing.assert_array_equal(again[0], image)
        np.testing.assert_allclose(again[0], pairs._pair(i)[0], atol=1 / 500)
        np.testing.assert_array_equal(again[1], mask)
    assert pairs.made == 10


def test_composites_are_kept_to_the_bit():
    composites = CompositeSet("train", 3, 24, 32)
    for kept, made in zip(Kept(composites), composites, strict=True):
        np.testing.assert_array_equal(kept[0], made[0])


def test_held_out_composites_show_nothing_that_is_trained_on():
    shown = []
    for which in ("train", "held-out"):
        composites = CompositeSet(which, 300, 16, 16)
        shown.append({row.file for i in range(300) for row in composites.sources(i)})
    assert len(shown[1]) > 30
    assert not shown[0] & shown[1]


def test_a_split_shares_nothing_and_leaves_nothing_out():
    train, held_out = split(Numbered(20), 6, seed=1)
    found = [numbers(part.batch(range(len(part)))[0]) for part in (train, held_out)]
    assert (len(found[0]), len(found[1])) == (14, 6)
    assert sorted(found[0] + found[1]) == list(range(20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Batches(Numbered(3), 4),
            "there are 3 images to train on, fewer than a batch of 4",
        ),
        (lambda: Batches(Numbered(3), 0), "batch must be at least 1"),
        (lambda: split(Numbered(3), 3), "there are 3 images, of which 3 cannot be held out"),
        (lambda: split(Numbered(3), 0), "0 cannot be held out"),
    ],
)
def test_too_few_images_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Dice


def test_dice_by_hand():
    found = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]])
    true = np.array([[[1, 0, 1, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 1]]])
    np.testing.assert_allclose(dice(found, true, 2), [0.5, 1, 0], atol=1e-6)


def test_dice_of_several_classes_is_their_mean_without_the_background():
    found, true = np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 2, 2]]])
    # Class 1: 2 / 3. Class 2: 2 / 3. Class 3: nowhere.
    np.testing.assert_allclose(dice(found, true, 4), [(2 / 3 + 2 / 3 + 1) / 3], atol=1e-6)


def test_what_is_likeliest_is_decided():
    logits = np.array([[3.0, -1], [2, 5], [2.5, 4]]).reshape(1, 3, 1, 2)
    np.testing.assert_array_equal(decide(logits), [[[0, 1]]])
    np.testing.assert_array_equal(decide(logits[:, 1:2] - 3), [[[0, 1]]])


def test_evaluation_takes_every_pair_once():
    seen = []

    def predict(images):
        seen.extend(numbers(images))
        # Right for even numbers: the object where the image is brighter. Else nothing.
        even = (np.array(numbers(images)) % 2 == 0)[:, None, None]
        score = np.where(even, images[:, 0] > 0.1, False)
        return np.stack([0.5 - score, score - 0.5], axis=1)

    score = evaluate(predict, Numbered(7), classes=2, batch=3)
    assert seen == list(range(7))
    assert score == pytest.approx(4 / 7)
