# SPDX-License-Identifier: MIT
"""The cost of a step: cases that can be worked out by hand, and what must hold for every case."""

import itertools
import math

import pytest

from convstudy.models.unet import UNet
from convstudy.parallel import cost
from convstudy.parallel.buckets import Buckets
from convstudy.parallel.cost import Cluster, Cut, Layer, Link, Processor

# A second moves 1000 bytes from GPU to GPU, and a message takes 10 ms.
LINK = Link(1000.0, 0.01)
# Two GPUs a machine, and between machines a tenth of the bandwidth and ten times the latency.
CLUSTER = Cluster(LINK, Link(100.0, 0.1), gpus=2)
# A FLOP a second; memory costs nothing.
GPU = Processor(1.0, math.inf)

OUTER = Layer("outer", 0, 0, flops=2, inputs=10, outputs=20, weights=100)
INNER = Layer("inner", 4, 4, flops=4, inputs=5, outputs=10, weights=1000)
LAST = Layer("last", 0, 4, flops=1, inputs=10, outputs=10, weights=50, norms=False)
NET = [OUTER, INNER, LAST]


def test_a_ring_moves_all_but_ones_own():
    assert LINK.gather_s(1000, 1) == 0
    assert LINK.gather_s(1000, 2) == pytest.approx(0.5 + 0.01)
    assert LINK.gather_s(1000, 4) == pytest.approx(0.75 + 0.02)
    assert LINK.gather_s(1000, 5) == pytest.approx(0.8 + 0.03)
    assert LINK.all_reduce_s(1000, 4) == pytest.approx(2 * 0.77)
    assert LINK.send_s(1000) == pytest.approx(1.01)


def test_beyond_a_machine_each_gpu_sends_its_share():
    assert CLUSTER.all_reduce_s(1000, 2) == LINK.all_reduce_s(1000, 2)
    # 500 bytes of each GPU over 3 machines at 100 bytes/s, then 1000 bytes within.
    beyond = 2 / 3 * 5 + 2 * 0.1
    assert CLUSTER.gather_s(1000, 6) == pytest.approx(beyond + 0.51)
    # Of every second GPU there is one in each machine: all of its bytes leave it.
    assert CLUSTER.gather_s(1000, 3, apart=2) == pytest.approx(2 / 3 * 10 + 2 * 0.1)


def test_one_gpu_computes_and_waits_for_nobody():
    found = cost.predict(NET, 3, Cut(), GPU, CLUSTER)
    # Forward, and twice that backward; the update moves bytes alone, which cost nothing here.
    assert found.compute_s == found.seconds == 3 * 3 * (2 + 4 + 1)
    assert found.waits_s == found.exposed_s == found.sent_bytes == 0
    assert cost.predict(NET, 3, Cut(), GPU, training=False).seconds == 3 * 7


def test_the_gpu_with_most_images_is_waited_for():
    assert cost.predict(NET, 3, Cut(2), GPU, CLUSTER, training=False).seconds == 2 * 7


def test_gradients_that_are_ready_early_are_hidden():
    """Two buckets: of the last and the inner layer, and of the outer one."""
    found = cost.predict(NET, 2, Cut(2), GPU, CLUSTER, bucket_bytes=4200)
    first, second = 4 * 1050 / 1000 + 0.02, 4 * 100 / 1000 + 0.02
    # On one image: forward 7, backward 2 and 8 until the first bucket is whole, then 4 more.
    assert first > 4
    assert found.exposed_s == pytest.approx(first + second - 4)
    assert found.seconds == pytest.approx(21 + found.exposed_s)
    assert found.sent_bytes == 4 * 1150
    # On more images the backward pass is long enough, and only the last bucket is seen.
    found = cost.predict(NET, 4, Cut(2), GPU, CLUSTER, bucket_bytes=4200)
    assert found.exposed_s == pytest.approx(second)
    # bf16 gradients are half the bytes.
    found = cost.predict(NET, 2, Cut(2), GPU, CLUSTER, bucket_bytes=4200, gradient_item=2)
    assert found.sent_bytes == 2 * 1150


def test_gpus_that_share_the_update_send_half_beside_and_gather_what_changed():
    gpu = Processor(1e3, 1e4)  # memory takes time, and too little is computed to hide a bucket
    nets = [
        Layer(*(each.name, each.level, each.below, each.flops, 0, 0, each.weights)) for each in NET
    ]
    apart, shared = (
        cost.predict(nets, 2, Cut(2), gpu, CLUSTER, item=2, bucket_bytes=4200, shared_update=each)
        for each in (False, True)
    )
    # Of 1150 weights the outer layer's 100 are in the last bucket, which all have and change.
    assert apart.compute_s - shared.compute_s == pytest.approx(7 * 4 * 1050 / 2 / 1e4)
    assert apart.exposed_s - shared.exposed_s == pytest.approx(4 * 1050 / 2 / 1000 + 0.01)
    # The norm's parts, and bf16 parameters.
    assert shared.waits_s - apart.waits_s == pytest.approx(0.01 + 2 * 1050 / 2 / 1000 + 0.01)
    assert shared.sent_bytes - apart.sent_bytes == 2 * 1050 / 2
    for cut in (Cut(), Cut(2, 2, 4), Cut(4, 2, 4)):
        one, other = (
            cost.predict(NET, 4, cut, GPU, CLUSTER, shared_update=each) for each in (False, True)
        )
        assert one == other


def test_statistics_are_a_message_each_way_for_each_norm():
    apart = cost.predict(NET, 2, Cut(2), GPU, CLUSTER)
    together = cost.predict(NET, 2, Cut(2), GPU, CLUSTER, synchronised=True)
    assert together.waits_s - apart.waits_s == pytest.approx(2 * 2 * LINK.all_reduce_s(0, 2))


def test_a_cut_layer_waits_for_its_input_and_so_does_what_follows_it():
    found = cost.predict(NET, 4, Cut(2, 2, 4), GPU, CLUSTER)
    # Two images each; the inner layer has all four, and half of its channels.
    assert found.compute_s == pytest.approx(3 * (2 * 2 + 4 * 4 / 2 + 2 * 1))
    inner, last = (4 * 4 * layer.inputs / 1000 * 0.5 + 0.01 for layer in (INNER, LAST))
    assert found.waits_s == pytest.approx(2 * (inner + last))
    # The inner layer's gradients stay where they are.
    weights = 4 * 150
    assert found.exposed_s == pytest.approx(LINK.all_reduce_s(weights, 2))
    assert found.sent_bytes == 2 * 4 * 4 * (5 + 10) / 2 + weights


def test_where_every_layer_is_cut_one_image_is_enough():
    found = cost.predict(NET, 1, Cut(2, 2, 0), GPU, CLUSTER)
    assert found.compute_s == pytest.approx(3 * 7 / 2)
    # All have the image itself.
    inner, last = (4 * layer.inputs / 1000 * 0.5 + 0.01 for layer in (INNER, LAST))
    assert found.waits_s == pytest.approx(2 * (inner + last))
    assert found.exposed_s == 0
    with pytest.raises(ValueError, match="2 GPUs each need one"):
        cost.predict(NET, 1, Cut(2, 2, 4), GPU)


def test_rows_of_ranks_add_up_what_they_share():
    """Two rows of two: the row's machine has both, so columns lead from machine to machine."""
    found = cost.predict(NET, 4, Cut(4, 2, 4), GPU, CLUSTER, bucket_bytes=10**6)
    inner = CLUSTER.all_reduce_s(4 * 500, 2, apart=2)
    whole = CLUSTER.all_reduce_s(4 * 150, 4)
    assert inner == pytest.approx(2 * (10.0 + 0.1))
    # The inner gradients are whole before the inner layer's input is waited for.
    last_wait = 4 * 2 * 5 / 1000 * 0.5 + 0.01
    assert found.exposed_s == pytest.approx(inner - last_wait - 2 * 2 + whole)


def test_a_pipeline_goes_at_the_pace_of_its_slowest_stage():
    found = cost.pipeline_s(NET, 4, (0, 4), 4, GPU, CLUSTER)
    # Of one image: 9 in the outer stage, 12 in the inner one; each array of 4 bytes a number
    # goes forwards, and its gradient back.
    sent = 2 * (4 * 5 / 1000 + 0.01) + 2 * (4 * 10 / 1000 + 0.01)
    assert found == pytest.approx(3 * 12 + 21 + sent)


def test_a_processor_is_fitted_to_what_was_measured():
    layers = cost.layers(UNet(), 128, 191)
    peak = Processor(400e12, 4e12)
    true = Processor(100e12, 1e12, 20e-6)
    for training in (True, False):
        points = [
            (n, cost.predict(layers, n, Cut(), true, training=training).seconds)
            for n in (1, 4, 16, 64)
        ]
        found = Processor.fitted(peak, layers, points, training)
        for n in (2, 8, 32):
            expected, ours = (
                cost.predict(layers, n, Cut(), each, training=training).seconds
                for each in (true, found)
            )
            assert ours == pytest.approx(expected, rel=0.05)
    with pytest.raises(ValueError, match="two batch sizes"):
        Processor.fitted(peak, layers, [(1, 1.0), (1, 1.1)])


# ---- U-Net


@pytest.fixture(scope="module")
def unet():
    return cost.layers(UNet(), 128, 191)


H200 = Processor(300e12, 3e12, 4e-6)


@pytest.mark.parametrize("bilinear", [False, True])
def test_layers_are_the_networks(bilinear):
    network = UNet(bilinear=bilinear)
    layers = cost.layers(network, 128, 191)
    assert sum(layer.weights for layer in layers) == network.parameter_count
    convolutions = [layer for layer in layers if layer.norms]
    assert [layer.name for layer in convolutions] == [name for name, _ in network.layers(128, 191)]
    assert sum(layer.flops for layer in convolutions) == sum(
        problem.flops for _, problem in network.layers(128, 191)
    )
    assert sum(layer.name.startswith("up") for layer in layers) == 4 * (not bilinear)


def test_more_gpus_are_never_slower_on_more_images(unet):
    for gpus, n in itertools.product((2, 4, 8, 16, 32, 64), (1, 16)):
        one = cost.predict(unet, n, Cut(), H200).seconds
        many = cost.predict(unet, n * gpus, Cut(gpus), H200)
        assert one <= many.seconds
        assert many.seconds == pytest.approx(many.compute_s + many.waits_s + many.exposed_s)


def test_a_link_that_costs_nothing_gives_all_of_each_gpu(unet):
    free = Link(math.inf, 0)
    for gpus in (2, 64):
        one = cost.predict(unet, 16, Cut(), H200).seconds
        many = cost.predict(unet, 16 * gpus, Cut(gpus), H200, Cluster(free, free)).seconds
        assert many == pytest.approx(one)


def test_the_choice_is_the_cheapest_and_data_alone_for_large_batches(unet):
    for batch, gpus in itertools.product((1, 2, 8, 64), (1, 2, 4, 8)):
        cut, found = cost.choose(unet, batch, gpus, H200)
        others = [
            cost.predict(unet, batch, each, H200).seconds
            for each in cost.cuts(gpus)
            if each.images <= batch
        ]
        assert found.seconds == min(others)
        assert cut.gpus == gpus
    assert cost.choose(unet, 512, 8, H200)[0] == Cut(8)
    # One image each: nine tenths of the weights stay where they are.
    assert cost.choose(unet, 2, 2, H200)[0] == Cut(2, 2, 3)
    with pytest.raises(ValueError, match="8 GPUs have nothing to do"):
        cost.choose(unet, 0, 8, H200)


def test_from_where_a_second_gpu_pays(unet):
    first = cost.pays_from(unet, 2, H200)
    slow = cost.pays_from(unet, 2, H200, Cluster(Link(5e9, 5e-6), Link(1e9, 1e-5)))
    assert first < slow

    def gain(batch):
        one, two = (cost.predict(unet, batch, Cut(n), H200).seconds for n in (1, 2))
        return one / two

    assert gain(first) >= 1.1
    assert first == 2 or gain(first - 1) < 1.1
    never = Cluster(Link(1e3, 1), Link(1e3, 1))
    assert cost.pays_from(unet, 2, H200, never, most=64) is None


def test_cuts_are_named_as_people_speak_of_them():
    assert str(Cut(4)) == "4 data"
    assert str(Cut(2, 2, 3)) == "2 model (levels 3 to 4)"
    assert str(Cut(8, 2, 4)) == "2 model (level 4) x 4 data"


# ---- buckets


def test_buckets_hold_everything_once_and_the_last_is_small(rng):
    network = UNet(width=16)
    shapes = {name: network.shapes[name] for name in reversed(network.trained)}
    most, last = 200_000, 20_000
    buckets = Buckets.of(shapes, most, last)
    assert [name for members in buckets.members for name in members] == list(shapes)
    sizes = [4 * (part.stop - part.start) for part in buckets.parts]
    assert sum(sizes) == 4 * buckets.size == 4 * network.parameter_count
    assert sizes[-1] <= last
    for size, members in zip(sizes, buckets.members, strict=True):
        assert size <= most or len(members) == 1
    assert buckets.members[-1][-1] == network.trained[0]
    with pytest.raises(ValueError, match="at least one number"):
        Buckets.of(shapes, most, 3)
