# SPDX-License-Identifier: MIT
"""What a step costs on so many GPUs, cut in this way or that: FLOPs, and bytes over links.

Nothing here runs anything. A GPU is a rate of arithmetic, a bandwidth of memory and what a call
takes at least; a link is a bandwidth and a latency. Computing on one GPU is fitted to what was
measured there; what several GPUs add to it is predicted.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from convstudy.models.unet import LEVELS
from convstudy.parallel.buckets import BUCKET_BYTES, LAST_BYTES, Buckets

# Of a forward pass; both gradients of a convolution are as much work each as the convolution.
_BACKWARD = 2
# Numbers moved for one that a convolution puts out: written once, read for the statistics, read
# and written by norm and ReLU.
_PASSES = 4
# Numbers that AdamW reads and writes for one weight.
_UPDATE = 7
_FLOAT = 4


@dataclass(frozen=True)
class Link:
    """What carries bytes from GPU to GPU.

    Attributes
    ----------
    bytes_per_s : float
        As NCCL's own tests count the bandwidth of the bus: of a ring, in one direction.
    latency_s : float
        Of one message; collectives take a tree of them.
    """

    bytes_per_s: float
    latency_s: float

    def all_reduce_s(self, size, ranks):
        """Return the seconds in which `ranks` GPUs add up `size` bytes of each."""
        return 2 * self.gather_s(size, ranks)

    def gather_s(self, size, ranks):
        """Return the seconds in which each of them gets all parts of `size` bytes in all.

        To add up, and leave each a part, takes as long.

        Examples
        --------
        >>> Link(100e9, 1e-6).gather_s(1e9, 4)
        0.007502
        """
        if ranks == 1:
            return 0.0
        steps = math.ceil(math.log2(ranks))
        return (ranks - 1) / ranks * size / self.bytes_per_s + steps * self.latency_s

    def send_s(self, size):
        """Return the seconds that `size` bytes take from one GPU to another."""
        return size / self.bytes_per_s + self.latency_s


@dataclass(frozen=True)
class Cluster:
    """Machines with several GPUs each.

    Attributes
    ----------
    inside, across : Link
        Between the GPUs of one machine, and for each GPU to those of other machines.
    gpus : int
        In each machine.
    """

    inside: Link
    across: Link
    gpus: int = 8

    def all_reduce_s(self, size, ranks, apart=1):
        """Return the seconds of an all-reduce over `ranks` GPUs.

        Parameters
        ----------
        size : float
            Bytes on each.
        ranks : int
        apart : int
            Every how many-th GPU takes part.
        """
        return 2 * self.gather_s(size, ranks, apart)

    def gather_s(self, size, ranks, apart=1):
        """Return the seconds of a gather; as `all_reduce_s`, with `size` bytes in all.

        Each GPU first gets its share of what other machines have, and then those of its
        neighbours.
        """
        here = max(1, self.gpus // apart)
        if ranks <= here:
            return self.inside.gather_s(size, ranks)
        machines = math.ceil(ranks / here)
        return self.across.gather_s(size / here, machines) + self.inside.gather_s(size, here)


# What data sheets promise of an H200's links, and what NCCL makes of NVLink on such GPUs; to be
# replaced by what was measured.
H200 = Cluster(inside=Link(370e9, 5e-6), across=Link(45e9, 15e-6), gpus=8)


@dataclass(frozen=True)
class Processor:
    """One GPU.

    Attributes
    ----------
    flops_per_s, bytes_per_s : float
        That it comes to, of arithmetic and of its memory.
    call_s : float
        What a layer takes at least, whatever it does.
    """

    flops_per_s: float
    bytes_per_s: float
    call_s: float = 0.0

    def seconds(self, flops, moved):
        """Return how long so many FLOPs with so many bytes take."""
        return self.call_s + max(flops / self.flops_per_s, moved / self.bytes_per_s)

    @classmethod
    def fitted(cls, peak, layers, points, training=True, item=_FLOAT):
        """Return the processor that takes as long as was measured.

        Parameters
        ----------
        peak : Processor
            What the data sheet says; one share of both its rates is what it comes to.
        layers : sequence of Layer
        points : sequence of (int, float)
            Images, and the seconds that one GPU took for them; at least two sizes.
        training : bool
            Whether these are of training steps.
        item : int
            Bytes of an activation.
        """
        if len({images for images, _ in points}) < 2:
            raise ValueError(
                "Processor.fitted: it takes times of at least two batch sizes; measure another"
            )
        # A time is what the data sheet makes of it, over that share, and so many calls: two
        # unknowns. Each time counts by its own size, or small batches would count for nothing.
        free, called = replace(peak, call_s=0.0), cls(math.inf, math.inf, 1.0)
        terms = np.array(
            [
                [
                    predict(layers, images, Cut(), each, training=training, item=item).seconds
                    / seconds
                    for each in (free, called)
                ]
                for images, seconds in points
            ]
        )
        (slower, call_s), *_ = np.linalg.lstsq(terms, np.ones(len(points)), rcond=None)
        if call_s < 0:
            slower, call_s = 1 / terms[:, 0].mean(), 0.0
        return cls(peak.flops_per_s / slower, peak.bytes_per_s / slower, float(call_s))


@dataclass(frozen=True)
class Layer:
    """A convolution, or a transposed one, with what is done to each of its outputs.

    Attributes
    ----------
    name : str
    level : int
        That it works at; of a transposed convolution, that it leads to.
    below : int
        The level of its input.
    flops, inputs, outputs : int
        Of one image: operations, and numbers read and written.
    weights : int
    norms : bool
        Whether batch norm follows.
    """

    name: str
    level: int
    below: int
    flops: int
    inputs: int
    outputs: int
    weights: int
    norms: bool = True

    def work(self, images, share=1, item=_FLOAT):
        """Return (FLOPs, bytes) of one of `share` ranks that have the same images."""
        passing = images * (self.inputs + _PASSES * self.outputs / share)
        return self.flops * images / share, item * (passing + self.weights / share)


def layers(network, h, w):
    """Return the layers of a U-Net for images of `h` x `w`, in the order in which they run."""
    problems = dict(network.layers(h, w))

    def block(each):
        for layer, c, k in ((one.layer, one.c, one.k) for one in each.convolutions):
            problem = problems[layer]
            pixels = problem.p * problem.q
            yield Layer(
                *(layer, each.level, each.level, problem.flops),
                *(c * pixels, k * pixels, 9 * c * k + 2 * k),
            )

    found = [layer for each in network.encoder for layer in block(each)]
    for up in network.decoder:
        level = up.block.level
        pixels = (h >> level + 1) * (w >> level + 1)
        if not network.bilinear:
            found.append(
                Layer(
                    f"up{level}",
                    level,
                    level + 1,
                    8 * up.c * up.k * pixels,
                    up.c * pixels,
                    4 * up.k * pixels,
                    4 * up.c * up.k + up.k,
                    norms=False,
                )
            )
        found += block(up.block)
    classes, width = network.n_classes, network.decoder[-1].block.k
    found.append(
        Layer(
            *("head", 0, 0, 2 * width * classes * h * w, width * h * w, classes * h * w),
            width * classes + classes,
            norms=False,
        )
    )
    return found


@dataclass(frozen=True)
class Cut:
    """How a batch and a network are cut among GPUs: the table of `grid.Grid`.

    Attributes
    ----------
    gpus, model : int
        In all, and those that share layers.
    cut_from : int
        The level from which layers are cut; 5 for none.
    """

    gpus: int = 1
    model: int = 1
    cut_from: int = LEVELS

    @property
    def columns(self):
        """GPUs that share no layer: the number of rows."""
        return self.gpus // self.model

    @property
    def images(self):
        """GPUs that have different images."""
        return self.columns if self.cut_from == 0 else self.gpus

    def __str__(self):
        if self.model == 1:
            return f"{self.gpus} data"
        last = LEVELS - 1
        levels = f"levels {self.cut_from} to {last}" if self.cut_from < last else f"level {last}"
        kind = f"{self.model} model ({levels})"
        return f"{kind} x {self.columns} data" if self.columns > 1 else kind


@dataclass(frozen=True)
class Cost:
    """What a step is predicted to take.

    Attributes
    ----------
    seconds : float
    compute_s : float
        Of it, what the GPU computes.
    waits_s : float
        Activations and statistics on their way, and parameters that others have changed: nothing
        is computed meanwhile.
    exposed_s : float
        Gradients on their way when the backward pass is done.
    sent_bytes : float
        That one GPU hands to collectives.
    """

    seconds: float
    compute_s: float
    waits_s: float
    exposed_s: float
    sent_bytes: float


def predict(
    layers,
    batch,
    cut,
    processor,
    cluster=H200,
    training=True,
    synchronised=False,
    item=_FLOAT,
    gradient_item=_FLOAT,
    bucket_bytes=BUCKET_BYTES,
    shared_update=False,
):
    """Return the `Cost` of one step.

    Parameters
    ----------
    layers : sequence of Layer
    batch : int
        Images of all GPUs together; the GPU with most of them is waited for.
    cut : Cut
    processor : Processor
    cluster : Cluster
    training : bool
        Forward, backward and update; else forward alone.
    synchronised : bool
        Batch norm's statistics are added up over all: a message each way for each norm.
    item, gradient_item : int
        Bytes of an activation, and of a gradient on its way.
    bucket_bytes : int
    shared_update : bool
        Where no layer is cut, each GPU changes a part of the parameters and gathers the others, as
        `owners` has it; parameters are gathered as activations are stored.

    Raises
    ------
    ValueError
        If a GPU would have no image.
    """
    if batch < cut.images:
        raise ValueError(
            f"a batch of {batch} images is too small for {cut}: {cut.images} GPUs each need one"
        )
    step = _Step(cut, math.ceil(batch / cut.images), processor, cluster, item, synchronised)
    for layer in layers:
        step.wait(layer, layer is layers[0])
        step.forward(layer)
    if training:
        shared_update &= 1 == cut.model < cut.gpus
        queue = _Gradients(layers, cut, cluster, gradient_item, bucket_bytes, shared_update)
        for layer in reversed(layers):
            step.backward(layer)
            queue.ready(layer, step.now)
            step.wait(layer, layer is layers[0])
        step.sent += queue.sent
        exposed = max(0.0, queue.free_at - step.now)
        own = sum(la.weights / (cut.model if _is_cut(la, cut) else 1) for la in layers)
        others = sum(queue.scattered) * (1 - 1 / cut.gpus)
        step.compute += _update_s(processor, own - others)
        step.gather(queue.scattered)
    else:
        exposed = 0.0
    return Cost(
        step.compute + step.waits + exposed, step.compute, step.waits, exposed, float(step.sent)
    )


class _Step:
    """One GPU's way through the layers: what it computes, and what it waits for."""

    def __init__(self, cut, images, processor, cluster, item, synchronised):
        self.cut, self.images, self.processor = cut, images, processor
        self.cluster, self.item, self.synchronised = cluster, item, synchronised
        self.compute = self.waits = self.sent = 0.0

    @property
    def now(self):
        return self.compute + self.waits

    def forward(self, layer):
        self._compute(layer, 1)

    def backward(self, layer):
        self._compute(layer, _BACKWARD)

    def _compute(self, layer, times):
        work = layer.work(self._rows_images(layer), self._share(layer), self.item)
        self.compute += times * self.processor.seconds(*work)

    def wait(self, layer, is_first):
        """Wait for a layer's input, or for the sum of its input's gradients, and for norms."""
        needs = _is_cut(layer, self.cut) or _is_cut_at(layer.below, self.cut)
        if needs and not (is_first and self.cut.cut_from == 0):
            row = self.images * (1 if self.cut.cut_from == 0 else self.cut.model)
            size = layer.inputs * row * self.item
            self.waits += self.cluster.gather_s(size, self.cut.model)
            self.sent += size / self.cut.model
        if self.synchronised and layer.norms:
            ranks, apart = _sharing(layer, self.cut)
            self.waits += self.cluster.all_reduce_s(0, ranks, apart)

    def gather(self, buckets):
        """Wait for the norm of gradients that each GPU has a part of, and for parameters."""
        for numbers in (0, *buckets) if buckets else ():
            size = numbers * self.item
            self.waits += self.cluster.gather_s(size, self.cut.gpus)
            self.sent += size / self.cut.gpus

    def _rows_images(self, layer):
        whole_row = _is_cut(layer, self.cut) and self.cut.cut_from > 0
        return self.images * (self.cut.model if whole_row else 1)

    def _share(self, layer):
        return self.cut.model if _is_cut(layer, self.cut) else 1


class _Gradients:
    """Gradients that are added up beside the backward pass, one bucket after the other.

    Attributes
    ----------
    scattered : list of int
        Numbers of the buckets of which each GPU gets a part of the sum: all but the last, or none.
    """

    def __init__(self, layers, cut, cluster, item, bucket_bytes, scatters=False):
        self.free_at, self.sent, self.scattered, self._scatters = 0.0, 0, [], scatters
        self._cut, self._cluster, self._item = cut, cluster, item
        by_kind = {}
        for layer in reversed(layers):
            share = cut.model if _is_cut(layer, cut) else 1
            kind = by_kind.setdefault(_is_cut(layer, cut), {})
            kind[layer.name] = (math.ceil(layer.weights / share),)
        # `Buckets` counts floats.
        scale = _FLOAT / item
        self._waiting = {
            kind: deque(self._buckets(shapes, scale, bucket_bytes))
            for kind, shapes in by_kind.items()
        }

    @staticmethod
    def _buckets(shapes, scale, bucket_bytes):
        buckets = Buckets.of(shapes, int(bucket_bytes * scale), int(LAST_BYTES * scale))
        for part, names in zip(buckets.parts, buckets.members, strict=True):
            yield part.stop - part.start, set(names)

    def ready(self, layer, now):
        waiting = self._waiting[_is_cut(layer, self._cut)]
        numbers, missing = waiting[0]
        missing.discard(layer.name)
        if missing:
            return
        waiting.popleft()
        ranks, apart = _sharing(layer, self._cut)
        if ranks > 1:
            size, seconds = numbers * self._item, self._cluster.all_reduce_s
            if self._scatters and waiting:
                self.scattered.append(numbers)
                seconds = self._cluster.gather_s
            self.sent += size
            self.free_at = max(self.free_at, now) + seconds(size, ranks, apart)


def pipeline_s(layers, batch, stages, micro, processor, cluster=H200, item=_FLOAT):
    """Return the seconds of a training step on a network cut into stages, level by level.

    The first stage has the outermost levels of encoder and decoder, so that skips stay where they
    are, and the last one the deepest; between two, one array goes down and one up, and gradients
    of both go back. Micro-batches follow one another: the slowest stage sets the pace, and the
    first one's way through all others is not hidden.

    Parameters
    ----------
    layers : sequence of Layer
    batch : int
    stages : sequence of int
        The first level of each: ``(0, 2)`` are two stages, of levels 0 and 1, and of 2 to 4.
    micro : int
        Micro-batches; each is normalised by itself, so this is no more the step of one GPU.
    processor, cluster, item
        As of `predict`.
    """
    images = batch / micro
    work = [0.0] * len(stages)
    for layer in layers:
        stage = sum(layer.level >= first for first in stages) - 1
        work[stage] += (1 + _BACKWARD) * processor.seconds(*layer.work(images, item=item))
    sent = 0.0
    for first in stages[1:]:
        down = next(la for la in layers if la.level == first)
        up = next((la for la in layers if la.below == first > la.level), None)
        for layer in (down, up):
            size = layer.inputs * images * item if layer else 0
            sent += 2 * cluster.inside.send_s(size)
    weights = [0] * len(stages)
    for layer in layers:
        weights[sum(layer.level >= first for first in stages) - 1] += layer.weights
    update = _update_s(processor, max(weights))
    return (micro - 1) * max(work) + sum(work) + sent + update


def cuts(gpus):
    """Yield every `Cut` for so many GPUs whose rows are powers of 2."""
    yield Cut(gpus)
    model = 2
    while model <= gpus:
        if gpus % model == 0:
            for level in range(LEVELS):
                yield Cut(gpus, model, level)
        model *= 2


def choose(layers, batch, gpus, processor, cluster=H200, **options):
    """Return (cut, cost) of the fastest way to train on so many GPUs.

    Parameters
    ----------
    layers, batch, processor, cluster, **options
        As of `predict`.
    gpus : int
    """
    possible = [cut for cut in cuts(gpus) if batch >= cut.images]
    if not possible:
        raise ValueError(
            f"{gpus} GPUs have nothing to do for a batch of {batch}; take fewer of them"
        )
    priced = [(cut, predict(layers, batch, cut, processor, cluster, **options)) for cut in possible]
    return min(priced, key=lambda each: each[1].seconds)


def pays_from(layers, gpus, processor, cluster=H200, gain=1.1, most=4096, **options):
    """Return the least batch from which on `gpus` GPUs are `gain` times as fast as one, or None.

    Parameters
    ----------
    layers, processor, cluster, **options
        As of `predict`.
    gpus : int
    gain : float
    most : int
        The largest batch that is looked at.
    """
    found = None
    for batch in range(gpus, most + 1):
        one, many = (
            predict(layers, batch, Cut(count), processor, cluster, **options).seconds
            for count in (1, gpus)
        )
        if one < gain * many:
            found = None
        elif found is None:
            found = batch
        if found is not None and batch >= 4 * found:
            break
    return found


def _is_cut_at(level, cut):
    return cut.model > 1 and level >= cut.cut_from


def _is_cut(layer, cut):
    return layer.name != "head" and _is_cut_at(layer.level, cut)


def _sharing(layer, cut):
    """Return how many GPUs have the same weights of a layer and other images; and how far apart."""
    if _is_cut(layer, cut) or cut.cut_from == 0:
        return cut.columns, cut.model
    return cut.gpus, 1


def _update_s(processor, weights):
    return processor.seconds(0, _UPDATE * _FLOAT * weights)
