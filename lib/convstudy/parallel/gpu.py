# SPDX-License-Identifier: MIT
"""What trains a network on several GPUs, a rank each: images are shared, or layers, or both."""

import contextlib
import time

import numpy as np

from convstudy.device import array_module
from convstudy.parallel.backend import check_batch_norm, events
from convstudy.parallel.buckets import BUCKET_BYTES, Reduction
from convstudy.parallel.channels import (
    check_divisible,
    cut_axes,
    gather,
    own_part,
    parameter_of,
)
from convstudy.parallel.cuts import split
from convstudy.parallel.owners import BucketShares
from convstudy.program.backend import GpuBackend
from convstudy.program.lowering import least_channels
from convstudy.program.shares import COLUMN, IMAGES, ROW
from convstudy.program.training import END, LOSS, SUMS


class RankedGpuBackend(GpuBackend):
    """Trains on one GPU among several; what each rank calls, all have to call.

    The whole step is one CUDA graph, and so is what ranks say to each other in it: the loss is of
    the whole batch, norms may be, and gradients are added up bucket by bucket on a stream beside
    while the backward pass goes on. Of layers that a row shares, its ranks exchange what goes in
    and the gradients of that, as `channels.ChannelTape` does; where no layers are shared, the
    optimiser's work is, as `owners` says. From run to run the same ranks do the same, to the bit.

    Parameters
    ----------
    network : UNet
        The same on every rank.
    grid : Grid
        Of the processes.
    gpus : Grid
        The same, for arrays where this rank computes: of `Nccl`.
    shape : (N, C, H, W)
        Of the batches of all ranks together; all who share images have as many.
    precision, optimizer, options, clip
        As of `GpuBackend`.
    batch_norm, bucket_bytes
        As of `RankedBackend`.
    apart : bool, optional
        Whether ranks change a part of the parameters each, as `owners` says, where no layers are
        cut. By default they do in bf16: what they gather is half as large there.
    device : Device, optional
        That of `gpus`, by default; or `device.EMULATOR`, where these carry NumPy arrays.

    Raises
    ------
    ValueError
        Where images or channels cannot be shared evenly, or an option is none that there is.
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
        apart=None,
        device=None,
    ):
        check_batch_norm(batch_norm)
        axes = cut_axes(network, grid.cut_from)
        check_divisible(network, axes, grid.row.size)
        _check_vectors(network, axes, grid, precision)
        n, *rest = shape
        if n < 1 or n % grid.images.size:
            who = "rows of GPUs" if grid.cut_from == 0 else "GPUs"
            raise ValueError(
                f"a batch of {n} images cannot be shared evenly by {grid.images.size} {who}; take "
                f"a multiple of {grid.images.size}"
            )
        self.grid, self.batch_norm = grid, batch_norm
        self._gpus = {IMAGES: gpus.images, ROW: gpus.row, COLUMN: gpus.column}
        self._world = gpus.world
        self._shares = BucketShares(
            *(each.size for each in self._gpus.values()),
            rank=grid.row.rank,
            among=grid.images.rank,
            axes=axes,
            synchronised=batch_norm == "synchronised",
            bucket_bytes=bucket_bytes,
            are_apart=precision == "bf16" if apart is None else apart,
        )
        own = n // grid.images.size, *rest
        super().__init__(
            *(network, own, precision, optimizer, options, clip, device or gpus.world.device)
        )
        self._buckets = self._shares.buckets(self._step.layout)
        self._reductions = self._notes = None
        self._begun, self._awaited = (), []
        self._is_warm = False

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
            self._world.settle()
        return self._outcome()

    def timeline(self, images, masks, rate):
        """Train on a batch as `step` does, but launch by launch; return when this rank did what.

        Returns
        -------
        list of dict
            what : "forward", "backward", "wait" (for gradients that are still on their way),
            "update" (and the gathering of what other ranks have changed), or "all-reduce" (of a
            bucket, beside these, also where each rank gets a part of its sum); start_s, stop_s :
            float, seconds after the step began.
        """
        self.load(images, masks, rate)
        if not self._is_warm:
            self._warm_up()
        self._is_new, self._notes = True, {}
        self._time(True)
        try:
            with self._on_device():
                self._note("start")
                self.program.run(checked=False, reached=self._reached)
                self._world.settle()
                if self.device.is_gpu:
                    self._notes["update"].synchronize()
            return events(self._notes, self._begun, self._seconds)
        finally:
            self._time(False)
            self._notes = None

    def predict(self, images):
        """Return the scores of images; each rank passes all, and all get all."""
        # Each has the whole network for that, and as many images: without one, nothing to run.
        ranks = self.grid.world
        count = max(len(images), ranks.size)
        padded = images[np.minimum(np.arange(count), len(images) - 1)]
        parts = split(count, ranks.size)
        own = super().predict(np.ascontiguousarray(padded[parts[ranks.rank]]))
        counts = [part.stop - part.start for part in parts]
        return gather(ranks, own, 0, counts)[: len(images)]

    def state(self):
        """Return what `Backend.state` says, of all ranks; all have to ask."""
        found = super().state().items()
        return {name: self._whole(parameter_of(name), array) for name, array in found}

    def gradients(self):
        """Return the last step's gradients by name, of all ranks; all have to ask."""
        return {name: self._whole(name, array) for name, array in super().gradients().items()}

    def close(self):
        """Give back the memory that ranks have together; what is closed is of no more use.

        All have to, when they are done with what they have asked for.
        """
        self.program = self._step = self._replay = None
        self._gpus[IMAGES].give_back(self._lent)

    def _room(self, count):
        self._lent = self._gpus[IMAGES].room(count)
        return self._lent

    def _unpacked(self, buffer):
        """Return by name what is held of each trained parameter: also of those others change."""
        flat, ranks = self.program.array(buffer), self._gpus[IMAGES]
        with self._on_device():
            for group, run in self._step.runs:
                if group == IMAGES:
                    every = flat[run].reshape(ranks.size, -1)
                    ranks.all_gather(every[ranks.rank], every)
            self._world.settle()
        return super()._unpacked(buffer)

    def _whole(self, name, array):
        axis = self._shares.axes.get(name)
        return array if axis is None else gather(self.grid.row, array, axis)

    def _part(self, name, array):
        axis = self._shares.axes.get(name)
        return array if axis is None else own_part(self.grid.row, array, axis)

    def _reached(self, name):
        """Do what ranks do together where the program has come to."""
        step = self._step
        if self._reductions is None:
            flat = self.program.array(step.gradients)
            self._reductions = [
                Reduction(buckets, flat, self._gpus[group]) for group, buckets in self._buckets
            ]
        if name in step.talks:
            self._say(step.talks[name])
        elif name == SUMS:
            self._note("backward")
            for reduction in self._reductions:
                reduction.finish()
            self._level()
            self._note("wait")
        elif name == END:
            self._await()
            self._note("update")
            self._begun = [
                request
                for (group, _), reduction in zip(self._buckets, self._reductions, strict=True)
                # Of a rank alone nothing was on its way.
                if self._gpus[group].size > 1
                for request in reduction.requests
            ]
            self._reductions = None
        elif name == LOSS:
            self._note("forward")
            # Nothing reads them before the next step.
            self._awaited += self._begin_means(self.program.array(step.statistics))
        else:
            name = name.removeprefix("ready ")
            for (_, buckets), reduction in zip(self._buckets, self._reductions, strict=True):
                if name in buckets.places:
                    reduction.ready(name)

    def _say(self, talk):
        ranks = self._gpus[talk.group]
        part = self.program.array(talk.part)[: talk.size]
        every = self.program.array(talk.every)[: ranks.size * talk.size]
        every = every.reshape(ranks.size, talk.size)
        if talk.scatters:
            ranks.reduce_scatter(every, part)
        elif talk.waits:
            ranks.all_gather(part, every)
        else:
            self._awaited.append(ranks.start_all_gather(part, every))

    def _await(self):
        """Let what follows begin after all that nothing before had to wait for."""
        while self._awaited:
            self._awaited.pop().wait()

    def _level(self):
        """Give all ranks of a row the bits of one, of what they all have but none else added up.

        A column adds up for itself, and two may do so in two orders.
        """
        if self.grid.cut_from > 0:
            return
        flat = self.program.array(self._step.gradients)
        for group, buckets in self._buckets:
            if group == IMAGES:
                for part in buckets.parts:
                    self._gpus[ROW].broadcast(flat[part])

    def _begin_means(self, flat):
        """Begin to make local running statistics the mean over those who have the same of them."""
        if self.batch_norm != "local":
            return []
        return [
            self._gpus[group].start_all_reduce(flat[run], "mean")
            for group, run in self._step.running.runs(self._shares.group)
        ]

    def _warm_up(self):
        """Do once what ranks do together: NCCL connects them when it first does such a thing.

        Within a capture it could not.
        """
        step = self._step
        flat = self.program.array(step.gradients)
        with self._on_device():
            for group, buckets in self._buckets:
                for number in range(len(buckets.parts)):
                    buckets.start(number, flat, self._gpus[group]).wait()
            for talk in step.talks.values():
                self._say(talk)
            self._level()
            self._awaited += self._begin_means(flat)
            self._await()
            self._world.settle()
        self._is_warm = True

    def _time(self, timed):
        for ranks in self._gpus.values():
            ranks.timed = timed

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


def _check_vectors(network, axes, grid, precision):
    """Raise ValueError unless transposed convolutions that are cut write whole vectors."""
    least = least_channels(precision)
    for name, axis in axes.items():
        channels = network.shapes[name][axis]
        own = channels // grid.row.size
        if axis == 1 and own % least:
            raise ValueError(
                f"{name} has {channels} output channels, {own} for each of {grid.row.size} GPUs, "
                f"which take multiples of {least} in {precision}; take "
                f"cut_from={grid.cut_from + 1}, fewer GPUs for a layer, or a wider network"
            )
