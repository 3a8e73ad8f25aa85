# SPDX-License-Identifier: MIT
"""What trains a network on several ranks: each with some of the images, or of the layers."""

import itertools
import math
import time

import numpy as np

from convstudy.conv.cpu import limit_threads
from convstudy.nn.tape import TapeOps
from convstudy.parallel.buckets import BUCKET_BYTES, Buckets, Reduction
from convstudy.parallel.channels import ChannelTape, gather, own_part, parameter_of
from convstudy.train import memory
from convstudy.train.backend import CpuBackend
from convstudy.train.optimizers import square

BATCH_NORMS = ("synchronised", "local")


def check_batch_norm(word):
    """Raise ValueError unless norms can be taken so."""
    if word not in BATCH_NORMS:
        raise ValueError(f"batch_norm={word}: take {' or '.join(BATCH_NORMS)}")


class RankedBackend(CpuBackend):
    """Trains on the CPU, on the ranks of a `Grid`; what each of them calls, all have to call.

    With synchronised batch norm a step is that of one rank on the whole batch, but for the order
    in which float32 sums are taken: losses agree to some 1e-6 at first, and drift apart as any
    two such orders do. From run to run the same ranks do the same, to the bit.

    Parameters
    ----------
    network : UNet
        The same on every rank.
    grid : Grid
    batch : int
        Images that all ranks train on together at each step.
    optimizer, options, clip
        As of `CpuBackend`.
    batch_norm : {"synchronised", "local"}
        Normalise by the statistics of all images, or by those of each rank's own; the running
        statistics are then the mean over the ranks.
    bucket_bytes : int
        Gradients are added up by so many at once, while the backward pass goes on.
    """

    name = "cpu ranks"

    def __init__(
        self,
        network,
        grid,
        batch,
        optimizer="adamw",
        options=None,
        clip=None,
        batch_norm="synchronised",
        bucket_bytes=BUCKET_BYTES,
    ):
        check_batch_norm(batch_norm)
        self.grid, self.batch, self.batch_norm = grid, batch, batch_norm
        self._counts_of_batch = grid.counts(batch)
        self.network = network
        super().__init__(network, optimizer, options, clip)
        self._notes, self._begun = None, ()
        # Those of cut layers are whole in the row already, and have their buckets to themselves.
        shapes = {name: self._trained[name].shape for name in reversed(network.trained)}
        self._reduced = []
        for communicator, is_cut in ((grid.images, False), (grid.column, True)):
            own = {name: s for name, s in shapes.items() if (name in self._axes) == is_cut}
            buckets = Buckets.of(own, bucket_bytes)
            flat = np.zeros(buckets.size, np.float32)
            views = {name: flat[buckets.places[name]].reshape(s) for name, s in own.items()}
            self._reduced.append((buckets, flat, views, communicator))

    def _open(self):
        synchronised = self.batch_norm == "synchronised"
        total = self.grid.images.all_reduce if synchronised else None
        if self.grid.row.size == 1:
            self._axes = {}
            return TapeOps(total=total)
        column_total = self.grid.column.all_reduce if synchronised else None
        tape = ChannelTape(self.network, self.grid, total, column_total)
        self._axes = tape.axes
        return tape

    def _total(self, sums):
        return self.grid.images.all_reduce(sums)

    def step(self, images, masks, rate):
        """Train on this rank's images of a batch, ``grid.share(batch)``."""
        own = self._counts_of_batch[self.grid.images.rank]
        if len(images) != own:
            raise ValueError(
                f"rank {self.grid.world.rank} has {own} images of a batch of {self.batch}, "
                f"got {len(images)}; pass those of grid.share(batch)"
            )
        self._begin(self.batch)
        outcome = super().step(images, masks, rate)
        if self.batch_norm == "local":
            self._mean_statistics()
        return outcome

    def timeline(self, images, masks, rate):
        """Train as `step` does, and return when this rank did what.

        Returns
        -------
        list of dict
            what : "forward", "backward", "wait" (for gradients that are still on their way),
            "update", or "all-reduce" (of a bucket, beside these, until it was seen to be done);
            start_s, stop_s : float, seconds after the step began.
        """
        self._notes = {"start": time.perf_counter()}
        try:
            self.step(images, masks, rate)
            self._note("update")
            return events(self._notes, self._begun, lambda start, stop: stop - start)
        finally:
            self._notes = None

    def _note(self, what):
        if self._notes is not None:
            self._notes[what] = time.perf_counter()

    def _begin(self, batch):
        if self._axes:
            self._tape.counts = self.grid.row_counts(batch)

    def _gradients(self, dlogits):
        self._note("forward")
        reductions, gradients = [], {}
        for buckets, flat, views, communicator in self._reduced:
            reductions.append((views, Reduction(buckets, flat, communicator)))
            gradients |= views

        def ready(name, gradient):
            views, reduction = reductions[name in self._axes]
            views[name][...] = gradient
            reduction.ready(name)

        self._tape.backward(dlogits, ready)
        self._note("backward")
        for _, reduction in reductions:
            reduction.finish()
        self._begun = [each for _, reduction in reductions for each in reduction.requests]
        self._note("wait")
        return gradients, self._norm(gradients) if self._axes else None

    def _norm(self, gradients):
        """Return the norm of all gradients, those that other ranks have parts of, too."""
        parts = {name: array for name, array in gradients.items() if name in self._axes}
        whole = {name: array for name, array in gradients.items() if name not in self._axes}
        (others,) = self.grid.row.all_reduce(np.array([square(parts)], np.float64))
        return math.sqrt(others + square(whole))

    def _mean_statistics(self):
        """Make the running statistics the mean over the ranks, by their images."""
        names = [n for n in self._tape.parameters if n.endswith(("running_mean", "running_var"))]
        row = sum(self.grid.row_counts(self.batch))
        own = self._counts_of_batch[self.grid.images.rank]
        for communicator, count, is_cut in (
            (self.grid.images, own, False),
            (self.grid.column, row, True),
        ):
            arrays = [self._tape.parameters[n] for n in names if (n in self._axes) == is_cut]
            if arrays:
                together = np.concatenate(arrays) * np.float32(count / self.batch)
                communicator.all_reduce(together)
                for array in arrays:
                    array[...], together = together[: array.size], together[array.size :]

    def predict(self, images):
        """Return the logits of images; each rank passes all, and all get all."""
        grid = self.grid
        # A rank without an image would have nothing to say where others wait for it.
        count = max(len(images), grid.images.size)
        padded = images[np.minimum(np.arange(count), len(images) - 1)]
        self._begin(count)
        self._tape.training = self._tape.recording = False
        with limit_threads(1):
            own = self.network.apply(np.ascontiguousarray(padded[grid.share(count)]), self._tape)
        return gather(grid.images, own, 0, grid.counts(count))[: len(images)]

    def state(self):
        return {name: self._whole(name, array) for name, array in self._held().items()}

    def _whole(self, name, array):
        axis = self._axis(name)
        return array if axis is None else gather(self.grid.row, array, axis)

    def _part(self, name, array):
        axis = self._axis(name)
        return array if axis is None else own_part(self.grid.row, array, axis)

    def _axis(self, name):
        """Return along which axis an array of `state` is cut, or None."""
        return self._axes.get(parameter_of(name))

    def needs_bytes(self, n, h, w):
        slots = len(self.optimizer.slots)
        return memory.tape_bytes(self.network, n * self.grid.row.size, h, w, slots)


def events(notes, requests, seconds):
    """Return the events of a timeline.

    Parameters
    ----------
    notes : dict of str to object
        What was done, and when; the first is the beginning.
    requests : sequence of Request
    seconds : callable
        ``seconds(start, stop)`` is the time between two notes.
    """
    names = list(notes)
    spans = [(name, notes[before], notes[name]) for before, name in itertools.pairwise(names)]
    spans += [("all-reduce", *request.span) for request in requests]
    first = notes[names[0]]
    return [
        {"what": what, "start_s": seconds(first, start), "stop_s": seconds(first, stop)}
        for what, start, stop in spans
    ]
