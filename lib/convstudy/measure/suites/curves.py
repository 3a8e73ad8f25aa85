# SPDX-License-Identifier: MIT
"""The same training twice, by us and by PyTorch: does the loss go the same way?"""

import functools

from convstudy.images import CompositeSet
from convstudy.measure import pytorch, pytorch_unet
from convstudy.measure.suite import Case, Suite, result
from convstudy.measure.suites.network import HEIGHT, WIDTH, no_gpu
from convstudy.models.unet import UNet
from convstudy.program.backend import GpuBackend
from convstudy.train.data import Batches, Kept

RATE, SEED = 1e-4, 0
# PyTorch's two layouts are summed by different algorithms: how far apart they drift is how far
# rounding alone takes two trainings that are the same.
SIDES = ("ours", "pytorch NCHW", "pytorch NHWC")


def cases(options):
    """Yield a training for each side: same start, same batches in the same order."""
    for side in SIDES:
        labels = {"side": side, "precision": "fp32", "batch": options["batch"]}
        skip = no_gpu() or (None if side == "ours" else pytorch.why_not())
        yield Case(
            side, lambda side=side, own=labels: _trained(side, own, options["steps"]), labels, skip
        )


@functools.cache
def _batches(batch):
    return Batches(Kept(CompositeSet("train", 32 * batch, HEIGHT, WIDTH, seed=SEED)), batch, SEED)


def _trained(side, labels, steps):
    network, batches = UNet.initialised(SEED), _batches(labels["batch"])
    if side == "ours":
        backend = GpuBackend(network, batches.at(0)[0].shape, "fp32")

        def step(images, masks):
            return backend.step(images, masks, RATE).loss
    else:
        step = pytorch_unet.Trainer(network, RATE, channels_last=side.endswith("NHWC")).step
    loss = [float(f"{float(step(*batches.at(i))):.7g}") for i in range(steps)]
    return [result(side, labels, values={"steps": steps, "rate": RATE, "loss": loss})]


SUITE = Suite(
    "curves",
    "200 steps from one start, ours and PyTorch's: the loss, step by step",
    cases,
    gpus=1,
    options={"batch": 8, "steps": 200},
    quick={"batch": 2, "steps": 20},
)
