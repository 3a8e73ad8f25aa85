# SPDX-License-Identifier: MIT
"""What trains a network on several GPUs, a rank each: images shared, gradients added up."""

import contextlib
import time

import numpy as np

from convstudy.device import array_module
from convstudy.parallel.backend import check_batch_norm, events
from convstudy.parallel.buckets import BUCKET_BYTES, Buckets, Reduction
from convstudy.parallel.channels import gather
from convstudy.program.backend import GpuBackend
from convstudy.program.training import END, LOSS, SUMS


class RankedGpuBackend(GpuBackend):
    """Trains on one GPU among several; what each rank calls, all have to call.

    The whole step is one CUDA graph, and so is what ranks say to each other in it: the loss is of
    the whole batch, norms may be, and gradients are added up bucket by bucket on a stream beside
    while the backward pass goes on. From run to run the same ranks do the same, to the bit.

    Parameters
    ----------
    network : UNet
        The same on every rank.
    grid : Grid
        Of the processes, which share no layer.
    gpus : Communicator
        Of the same ranks, for arrays where this one computes: `Nccl`.
    shape : (N, C, H, W)
        Of the batches of all ranks together; each has as many images.
    precision, optimizer, options, clip
        As of `GpuBackend`.
    batch_norm, bucket_bytes
        As of `RankedBackend`.
    device : Device, optional
        That of `gpus`, by default; or `device.EMULATOR`, where these carry NumPy arrays.

    Raises
    ------
    ValueError
        Where the images cannot be shared evenly, or an option is none that there is.
    """

    name = "gpu ranks"

    def __init__(
        self,
        network,
        grid,
        gpus,
        shape,
        precision="bf16",
        optimizer="adamw",
        options=None,
        clip=None,
        batch_norm="synchronised",
        bucket_bytes=BUCKET_BYTES,
        device=None,
    ):
        check_batch_norm(batch_norm)
        n, *rest = shape
        if n < 1 or n % gpus.size:
            raise ValueError(
                f"a batch of {n} images cannot be shared evenly by {gpus.size} GPUs; take a "
                f"multiple of {gpus.size}"
            )
        self.grid, self._gpus, self.batch_norm = grid, gpus, batch_norm
        own = n // gpus.size, *rest
        super().__init__(
            *(network, own, precision, optimizer, options, clip, device or gpus.device)
        )
        self._buckets = Buckets.lying(_places(self._step.layout, network), bucket_bytes)
        self._reduction = self._notes = None
        self._begun = ()
        self._is_warm = False

    def _sharing(self):
        return {"ranks": self._gpus.size, "synchronised": self.batch_norm == "synchronised"}

    def run(self):
        """Train on what was loaded; on a GPU, return before it is done.

        Raises
        ------
        RanksError, OverdueError
            At the next `step`, where other ranks are lost.
        """
        if not self._is_warm:
            self._warm_up()
        super().run()

    def step(self, images, masks, rate):
        self.load(images, masks, rate)
        self.run()
        # Whoever waits for a GPU that waits for a lost rank would wait for ever.
        with self._on_device():
            self._gpus.settle()
        return self._outcome()

    def timeline(self, images, masks, rate):
        """Train on a batch as `step` does, but launch by launch; return when this rank did what.

        Returns
        -------
        list of dict
            what : "forward", "backward", "wait" (for gradients that are still on their way),
            "update", or "all-reduce" (of a bucket, beside these); start_s, stop_s : float,
            seconds after the step began.
        """
        self.load(images, masks, rate)
        if not self._is_warm:
            self._warm_up()
        self._is_new, self._notes = True, {}
        self._gpus.timed = True
        try:
            with self._on_device():
                self._note("start")
                self.program.run(checked=False, reached=self._reached)
                self._gpus.settle()
                if self.device.is_gpu:
                    self._notes["update"].synchronize()
            return events(self._notes, self._begun, self._seconds)
        finally:
            self._gpus.timed, self._notes = False, None

    def predict(self, images):
        """Return the scores of images; each rank passes all, and all get all."""
        ranks = self.grid.world
        # A rank without an image would have nothing to run.
        count = max(len(images), ranks.size)
        padded = images[np.minimum(np.arange(count), len(images) - 1)]
        own = super().predict(np.ascontiguousarray(padded[self.grid.share(count)]))
        return gather(ranks, own, 0, self.grid.counts(count))[: len(images)]

    def _reached(self, name):
        """Do what ranks do together where the program has come to."""
        step, gpus = self._step, self._gpus
        if self._reduction is None:
            flat = self.program.array(step.gradients)
            self._reduction = Reduction(self._buckets, flat, gpus)
        if name in step.gathers:
            gpus.all_gather(*self._gathered(name))
        elif name == SUMS:
            self._note("backward")
            self._reduction.finish()
            self._note("wait")
        elif name == END:
            if self.batch_norm == "local":
                gpus.all_reduce(self.program.array(step.statistics), "mean")
            self._note("update")
            # Of a rank alone nothing was on its way.
            self._begun = self._reduction.requests if gpus.size > 1 else ()
            self._reduction = None
        elif name == LOSS:
            self._note("forward")
        else:
            self._reduction.ready(name.removeprefix("ready "))

    def _gathered(self, name):
        """Return this rank's array of a gather, and that of all."""
        own, every = (self.program.array(each) for each in self._step.gathers[name])
        return own, every.reshape(self._gpus.size, -1)

    def _warm_up(self):
        """Do once what ranks do together: NCCL connects them when it first does such a thing.

        Within a capture it could not.
        """
        step, gpus = self._step, self._gpus
        flat = self.program.array(step.gradients)
        with self._on_device():
            for part in self._buckets.parts:
                gpus.all_reduce(flat[part])
            for name in step.gathers:
                gpus.all_gather(*self._gathered(name))
            if self.batch_norm == "local":
                gpus.all_reduce(flat[: step.statistics.size], "mean")
            gpus.settle()
        self._is_warm = True

    def _seconds(self, start, stop):
        if not self.device.is_gpu:
            return stop - start
        return 1e-3 * array_module(self.device).cuda.get_elapsed_time(start, stop)

    def _on_device(self):
        if not self.device.is_gpu:
            return contextlib.nullcontext()
        return array_module(self.device).cuda.Device(self.device.index)

    def _note(self, what):
        """Take note, for a timeline, that this is done; on a GPU, that it was asked for."""
        if self._notes is None:
            return
        if self.device.is_gpu:
            self._notes[what] = array_module(self.device).cuda.Event()
            self._notes[what].record()
        else:
            self._notes[what] = time.perf_counter()


def _places(layout, network):
    """Return where each gradient lies in a step's, in the order in which they become complete."""
    starts = [slot.offset for slot in layout.slots.values()]
    stops = dict(zip(layout.slots, [*starts[1:], layout.size], strict=True))
    return {
        name: slice(layout.slots[name].offset, stops[name]) for name in reversed(network.trained)
    }
