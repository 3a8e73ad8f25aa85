# SPDX-License-Identifier: MIT
"""A training step as one program: forward, backward and the optimiser's, on fixed memory."""

import contextlib
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from convstudy.conv.algorithm import count_tiles
from convstudy.conv.epilogue import PLAIN, Epilogue, Source
from convstudy.nn import (
    channels_nhwc,
    head_nhwc,
    norm_nhwc,
    pool_nhwc,
    relu_nhwc,
    upsample_nhwc,
)
from convstudy.nn.pixels import part_rows
from convstudy.nn.transpose import launch_transpose
from convstudy.program import fuse
from convstudy.program.lowering import Lowering
from convstudy.program.program import Buffer, Tensor
from convstudy.program.shares import IMAGES, ROW, Shares
from convstudy.program.weights import Layout
from convstudy.train import flat, loss_nhwc
from convstudy.train.optimizers import OPTIMIZERS

# Marks: the loss is taken; all gradients are there; all is done.
LOSS, SUMS, END = "loss", "sums", "end"

_MOMENTUM = 0.1
# From so many on, a convolution takes the statistics of what it writes, by precision. On an H200
# that takes 0.7 to 0.9% off a TF32 step of 1, 16 or 64 images; it changes an fp32 step by less than
# the 0.4% that repeats differ by, and makes a bf16 step of 16 or 64 longer, by 0.5 to 1.6%: a tile
# is soon multiplied there, and the next one probably waits for its statistics.
_MANY_BYTES = {"fp32": math.inf, "tf32": 2**20, "bf16": math.inf}
# Filters' gradients are computed beside what leads on to the next layer back. That takes 11% off a
# step of one image on an H200, in TF32 and in bf16, and 1 to 3% off one of 16 or 64. Up to so many
# bytes a tensor, they may be late until the end of the backward pass: the memory that they read is
# kept as long. Larger ones have to be there before those of the next layer begin.
_FEW_BYTES = 16e6


@dataclass(eq=False)
class _Kept:
    """What a convolution's forward pass leaves for its backward pass."""

    y: Tensor  # what the norm read
    statistics: Buffer
    factors: Buffer


@dataclass(frozen=True, eq=False)
class Talk:
    """What ranks say to each other at a mark: the parts of all, one rank's after the other's.

    Attributes
    ----------
    group : str
        Who: one of those that `Shares` names.
    scatters : bool
        Whether each gets the ranks' sum of its own part; else each gets the parts of all.
    part, every : Buffer or (Buffer, int)
        One part, and those of all ranks, or from which number on.
    size : int
        Numbers of a part.
    waits : bool
        Whether all is there before the program goes on; else at `END`.
    """

    group: str
    scatters: bool
    part: object
    every: object
    size: int
    waits: bool


class Step:
    """A training step for batches of one shape, in one precision.

    Parameters
    ----------
    network : Network
    shape : (N, C, H, W)
    precision : {"fp32", "tf32", "bf16"}
        Of products, as `Inference` has it. Parameters, their gradients, statistics and sums are
        fp32 in each.
    optimizer : str
        One of `train.optimizers.OPTIMIZERS`.
    options : dict of str to float
        The optimiser's.
    clip : float or None
        The most that the norm of all gradients may be.
    device : Device
    shares : Shares
        Who trains on one batch together, each with a step like this one. The loss is that of them
        all, and gradients are what this rank's images add to it; of layers that are cut, the whole
        row's images to this rank's parameters.

    Attributes
    ----------
    program : Program
        At the mark ``ready <name>`` the gradient of that parameter is complete; at `SUMS` all
        are, and from there on this rank's are taken for the sums over all ranks, as `Shares.runs`
        has it. Forward ends at `LOSS`, and all at `END`.
    talks : dict of str to Talk
        By mark, what is taken to have been said when the program goes on.
    layout, running : Layout
        Of the trained parameters, and of the norms' running statistics.
    runs : list of (str or None, slice)
        Of the trained parameters, as `Shares.runs` has it.
    weights, gradients, statistics : Buffer
        As these say.
    slots : dict of str to Buffer
        What the optimiser remembers, by its name, as `layout` says. Of this, of weights and of
        gradients, what is another rank's according to `Shares.own` is out of date here; products
        need it in `operands` alone.
    control, steps, loss, images, masks : Buffer
        As `train.flat` and `train.loss_nhwc` have them; a batch, (N, C, H, W) float32, and its
        classes, int32,
    masks_shape : tuple of int
        of (N, H, W), or (N,) of images that are classified.
    """

    def __init__(
        self,
        network,
        shape,
        precision,
        optimizer,
        options,
        clip,
        device,
        shares=None,
    ):
        shares = self.shares = shares or Shares()
        recorder = shares.recorder(shape[0])
        low = self._low = Lowering(network, shape, precision, device, recorder=recorder)
        builder = self._builder = low.builder
        self.images = low.images
        self.layout = Layout(
            {name: shares.shape(name, network.shapes[name]) for name in network.trained},
            {op.w.name: op.shape for op in low.operations if isinstance(op, fuse.Linear)},
            self._first(network),
        )
        self.running = Layout(
            {
                name: shares.shape(name, each)
                for name, each in network.shapes.items()
                if "running_" in name
            }
        )
        self.runs = shares.runs(self.layout)
        self.weights = builder.buffer(self.layout.size, kept=True)
        self.gradients = builder.buffer(self.layout.size, kept=True)
        self.statistics = builder.buffer(self.running.size, kept=True)
        self._operands = self.weights
        if low.is_bf16:
            self._operands = builder.buffer(self.layout.size, low.dtype, kept=True)
        n, _, *size = low.trace.output.shape
        self.masks_shape = (n, *size)
        self.masks = builder.buffer(math.prod(self.masks_shape), np.int32, kept=True)
        self.loss = builder.buffer(loss_nhwc.LOSS_SIZE, kept=True)
        self._dtype = low.dtype.name
        self._kept, self._arrives, self._sums = {}, defaultdict(list), {}
        self.talks = {}

        with builder.beside():
            self._turned = {
                operation: self._turn(operation)
                for operation in low.operations
                if isinstance(operation, fuse.Enlargement) and operation.w is not None
            }
        for operation in low.operations:
            builder.function = operation.function
            _FORWARD[type(operation)](self, operation)
        self._take_loss()
        builder.mark(LOSS)
        for operation in reversed(low.operations):
            builder.function = operation.function
            _BACKWARD[type(operation)](self, operation)
        builder.join()
        builder.mark(SUMS)
        self._optimise(optimizer, options, clip)
        builder.mark(END)
        self.program = builder.finish()

    @property
    def operands(self):
        """The buffer of parameters as products take them: `weights`, or a copy in bf16."""
        return self._operands

    # ---- where parameters lie --------------------------------------------------------------------
    def _first(self, network):
        """Return the parameters that are read as fp32 in each precision: `_weight` is for these.

        All are small. Together they lie where all ranks change them, and those of which ranks
        change a part each are gathered as products read them, and so in no other way. Where
        layers are cut, no rank changes a part, and the network's order has as neighbours what the
        same ranks add up.
        """
        if self.shares.axes:
            return ()
        heads = {op.w.name for op in self._low.operations if isinstance(op, fuse.Head)}
        return {name for name in network.trained if len(network.shapes[name]) == 1} | heads

    def _weight(self, parameter):
        return self.weights, self.layout.slots[parameter.name].offset

    def _filters(self, parameter):
        return self._operands, self.layout.slots[parameter.name].offset

    def _gradient(self, parameter):
        return self.gradients, self.layout.slots[parameter.name].offset

    def _running(self, parameter):
        return self.statistics, self.running.slots[parameter.name].offset

    def _ready(self, *parameters):
        for parameter in parameters:
            self._builder.mark(f"ready {parameter.name}")

    @contextlib.contextmanager
    def _beside(self, problem):
        """Let a layer's own gradients be computed beside those that lead to the next one."""
        largest = max(math.prod(problem.x_shape), math.prod(problem.y_shape))
        if largest * problem.itemsize > _FEW_BYTES:
            self._builder.join()
        with self._builder.beside():
            yield

    def _rows(self, count, channels):
        """Return how many pixels (or cells) are a part of sums, and how many parts there are."""
        rows = part_rows(count, channels, self._dtype, self._low.device)
        return rows, math.ceil(count / rows)

    def _even_rows(self, count, channels, together):
        """Return the same, of parts that are as large on every rank: the last one, too."""
        rows, _ = self._rows(count, channels)
        if together > 1:
            rows = next((each for each in range(rows, count) if count % each == 0), count)
        return rows, math.ceil(count / rows)

    def _say(self, group, part, every, size, scatters=False, waits=True):
        """Have the ranks of a group say something here."""
        name = f"talk {len(self.talks)}"
        buffers = (each[0] if isinstance(each, tuple) else each for each in (part, every))
        self._builder.mark(name, *buffers)
        self.talks[name] = Talk(group, scatters, part, every, size, waits)

    def _gathered(self, parts, group):
        """Return where the parts of a group's ranks come to lie, one rank's after the other's."""
        ranks = self.shares.size(group)
        if ranks == 1:
            return parts
        every = self._builder.buffer(ranks * parts.size)
        self._say(group, parts, every, parts.size)
        return every

    # ---- forward ---------------------------------------------------------------------------------
    def _convolution(self, op):
        low, run = self._low, self._builder.run
        x, z = low.lies[op.x], low.lies[op.y]
        k, _, r, s = op.w.shape
        problem = low.problem(x.shape, k, (r, s), padding=op.padding, stride=op.stride)
        given = x, self._filters(op.w), self._weight(op.bias) if op.bias else None
        residual = low.lies[op.residual] if op.residual else None
        if op.norm is None:
            if residual:
                low.convolve_and_add(problem, *given, residual, z, op.relu)
            else:
                epilogue = Epilogue(relu=op.relu)
                low.convolve("fprop", problem, *given, z, epilogue=epilogue)
            return
        kept = self._kept[op] = _Kept(
            self._builder.tensor(z.shape, low.dtype),
            self._builder.buffer(2 * k),
            self._builder.buffer(2 * k),
        )
        tiles = self._tiles_with_statistics(op, problem)
        taken = [self._builder.buffer(tiles * (2 * k + 1))] if tiles else []
        epilogue = Epilogue(statistics=tiles > 0)
        low.convolve("fprop", problem, *given, kept.y, *taken, epilogue=epilogue)
        weight, bias, mean, var = op.norm
        own = self._weight(weight), self._weight(bias), self._running(mean), self._running(var)
        own += kept.statistics, kept.factors
        pooled = low.lies[op.pooled] if op.pooled else None
        options = {
            "relu": op.relu,
            "residual": residual is not None,
            "pool": pooled is not None,
            "pitch_y": z.pitch,
            "pitch_pooled": pooled.pitch if pooled else None,
        }
        together = self.shares.together(weight.name)
        if self._are_small(op):
            launch = norm_nhwc.launch_norm_whole(
                z.shape, self._dtype, eps=op.eps, momentum=_MOMENTUM, **options
            )
            run(launch, kept.y, *own, residual, z, pooled)
            return
        if tiles:
            launch = norm_nhwc.launch_counted_statistics(z.pixels, k, tiles, op.eps, _MOMENTUM)
            run(launch, *taken, *own)
        else:
            rows, count = self._even_rows(z.pixels, k, together)
            parts = self._builder.buffer(count * 2 * k)
            run(norm_nhwc.launch_statistics_parts(z.shape, self._dtype, rows), kept.y, parts)
            if together > 1:
                parts = self._gathered(parts, self.shares.group(weight.name))
            launch = norm_nhwc.launch_statistics(together * z.pixels, k, rows, op.eps, _MOMENTUM)
            run(launch, parts, *own)
        if not self._is_made_by_head(op):
            launch = norm_nhwc.launch_norm(z.shape, self._dtype, **options)
            run(launch, kept.y, kept.factors, residual, z, pooled)

    def _pooling(self, op):
        x, y = self._low.lies[op.x], self._low.lies[op.y]
        winners = self._kept[op] = self._builder.buffer(math.prod(y.shape), np.uint8)
        self._low.pool(x, y, op.window, op.stride, op.padding, winners)

    def _linear(self, op):
        self._low.multiply(op, self._filters(op.w), self._weight(op.bias))
        if op.y is self._low.trace.output:
            self._logits = self._low.lies[op.y]

    def _tiles_with_statistics(self, op, problem):
        """Return of how many tiles the convolution writes a norm's statistics, or 0 for none.

        None where a pass of its own is as fast, and where other ranks have more of the norm's
        pixels: the parts of theirs come without how many pixels they have.
        """
        size = math.prod(problem.y_shape) * problem.itemsize
        alone = self.shares.together(op.norm[0].name) == 1
        if not alone or size < _MANY_BYTES[self._low.precision] or self._are_small(op):
            return 0
        return count_tiles(problem, self._low.device)

    def _are_small(self, op):
        """Whether one launch does a whole norm, which has no place for what others have."""
        alone = self.shares.together(op.norm[0].name) == 1
        return alone and norm_nhwc.are_small(self._low.lies[op.y].shape)

    def _is_made_by_head(self, op):
        """Whether the head, which alone takes what `op` gives, makes it of what the norm reads."""
        takers = [
            each
            for each in self._low.operations
            if op.y in (getattr(each, "x", None), getattr(each, "skip", None))
        ]
        alone = [type(each) for each in takers] == [fuse.Head]
        return alone and op.relu and not self._are_small(op)

    def _norm_before(self, head):
        """Return what the convolution before the head has kept, if the head makes its output."""
        before = next(each for each in self._low.operations if each.y is head.x)
        made = isinstance(before, fuse.Convolution) and self._is_made_by_head(before)
        return (before, self._kept[before]) if made else (None, None)

    def _enlargement(self, op):
        self._builder.join()
        bias = self._weight(op.bias) if op.w else None
        self._low.enlarge(op, self._turned.get(op), bias)

    def _turn(self, op):
        """Return filters of a transposed convolution in the order in which it takes them."""
        c, k, r, s = op.w.shape
        self._builder.function = op.function
        turned = self._builder.buffer(c * k * r * s, self._low.dtype)
        launch = launch_transpose(c, k * r * s, self._dtype)
        self._builder.run(launch, self._filters(op.w), turned)
        return turned

    def _head(self, op):
        x, classes = self._low.lies[op.x], op.w.shape[0]
        self._logits = self._builder.buffer(x.pixels * classes)
        _, kept = self._norm_before(op)
        read, factors = (kept.y, kept.factors) if kept else (x, None)
        launch = head_nhwc.launch_head(
            x.shape, self._dtype, classes, norm=kept is not None, pitch=read.pitch
        )
        own = map(self._weight, (op.w, op.bias))
        self._builder.run(launch, read, factors, *own, self._logits)

    def _exchange(self, op):
        x, y = self._low.lies[op.x], self._low.lies[op.y]
        if op.kind == op.IMAGES:
            # Images lie one rank's after the other's already.
            self._say(ROW, x.buffer, y.buffer, x.buffer.size)
            return
        every = self._builder.buffer(self.shares.row * x.buffer.size, x.dtype)
        self._say(ROW, x.buffer, every, x.buffer.size)
        first = self.shares.rank * y.pixels * x.pitch if op.kind == op.OWN else 0
        for launch, apart, joined in self._sides(op, y, x.buffer.size, is_back=False):
            self._builder.run(launch, (every, first + apart), (y.buffer, joined))

    def _sides(self, op, joined, size, is_back):
        """Yield what moves each side of an exchange, and where it begins apart, and joined.

        Apart, every rank has a part of `size` numbers; joined, it is in each pixel of a tensor.
        """
        ranks, pitch, at = self.shares.row, sum(op.sides), 0
        for side in op.sides:
            steps = [(pitch, size), (joined.pitch, side)]
            launch = channels_nhwc.launch_blocks(
                *((*joined.shape[:3], side), self._dtype, ranks),
                *(reversed(steps) if is_back else steps),
            )
            yield launch, at, ranks * at
            at += side

    def _take_loss(self):
        run = self._builder.run
        n, classes, *size = self._low.trace.output.shape
        pixels = n * math.prod(size)
        if not size:
            # Of the images' classes; the gradient takes the place of the logits.
            parts = self._builder.buffer(3 * n)
            every = self.shares.images * n
            launch = loss_nhwc.launch_entropy(n, classes, self._dtype, every)
            run(launch, self._logits, self.masks, self._logits, parts)
            run(loss_nhwc.launch_loss(every, every), self._gathered(parts, IMAGES), self.loss)
            self._arrives[self._low.trace.output] = [self._logits]
            return
        rows, count = self._rows(pixels, classes)
        parts = self._builder.buffer(3 * count)
        given = self._logits, self.masks
        run(loss_nhwc.launch_loss_parts(pixels, classes, rows, "int32"), *given, parts)
        ranks, every = self.shares.images, self._gathered(parts, IMAGES)
        run(loss_nhwc.launch_loss(ranks * pixels, ranks * count), every, self.loss)
        launch = loss_nhwc.launch_loss_dgrad(pixels, classes, "int32")
        run(launch, *given, self.loss, self._logits)

    # ---- backward --------------------------------------------------------------------------------
    def _arriving(self, value):
        """Return a new tensor for a gradient of a value that is a whole array."""
        tensor = self._builder.tensor(self._low.lies[value].shape, self._low.dtype)
        self._arrives[value].append(tensor)
        return tensor

    def _arrived(self, value):
        """Return the gradient of a value, added up where it was used several times, or None."""
        tensors = self._arrives.get(value)
        if not tensors:
            return None
        while len(tensors) > 1:
            # Whoever else had to read what came first has done so: later layers go back earlier.
            self._low.add(tensors[0], tensors.pop(), tensors[0])
        return tensors[0]

    def _back_through_head(self, op):
        z, (classes, c, _, _) = self._low.lies[op.x], op.w.shape
        rows, count = self._rows(z.pixels, c)
        columns = classes * c + classes
        parts = self._builder.buffer(count * columns)
        before, kept = self._norm_before(op)
        if kept:
            sums = self._sums[before] = self._builder.buffer(count * 2 * c)
            launch = head_nhwc.launch_head_norm_dgrad_parts(z.shape, self._dtype, classes, rows)
            given = kept.y, kept.factors, kept.statistics, self._weight(op.w)
            self._builder.run(launch, self._logits, *given, parts, sums)
        else:
            launch = head_nhwc.launch_head_dgrad_parts(
                z.shape, self._dtype, classes, rows, pitch_z=z.pitch
            )
            dz = self._arriving(op.x)
            self._builder.run(launch, self._logits, z, self._weight(op.w), dz, parts)
        given = parts, self._gradient(op.w), self._gradient(op.bias)
        self._builder.run(relu_nhwc.launch_sums(count, columns, classes * c), *given)
        self._ready(op.w, op.bias)

    def _back_through_convolution(self, op):
        low = self._low
        dy = self._back_through_norm(op) if op.norm else self._back_through_relu(op)
        x, k = low.lies[op.x], op.w.shape[0]
        if op.bias and op.norm:
            self._take_bias(dy, op.bias)
        options = {"padding": op.padding, "stride": op.stride}
        problem = low.problem(x.shape, k, op.w.shape[2:], **options)
        with self._beside(problem):
            self._take_wgrad(problem, x, dy, op.w)
            bias, norm = (op.bias,) if op.bias else (), op.norm[:2] if op.norm else ()
            self._ready(op.w, *bias, *norm)
        if op.x is not low.trace.input:
            low.convolve("dgrad", problem, dy, self._filters(op.w), self._arriving(op.x))

    def _back_through_residual(self, op):
        """Return the gradient of a sum with a residual, which is the residual's, too."""
        low, z = self._low, self._low.lies[op.y]
        dz, *others = self._arrives[op.y]
        for other in others[1:]:
            low.add(dz, other, dz)
        other = others[0] if others else None
        if op.relu:
            launch = relu_nhwc.launch_relu_dgrad(z.shape, self._dtype, add=other is not None)
            self._builder.run(launch, dz, other, z, dz)
        elif other:
            low.add(dz, other, dz)
        self._arrives[op.residual].append(dz)
        return dz

    def _back_through_relu(self, op):
        """Return the gradient of what a convolution without a norm, or a product, has made."""
        if getattr(op, "residual", None):
            dy, z = self._back_through_residual(op), None
        else:
            dy, z = self._arrived(op.y), self._low.lies[op.y] if op.relu else None
        if op.bias:
            self._take_bias(dy, op.bias, z)
        elif z:
            launch = relu_nhwc.launch_relu_dgrad(z.shape, self._dtype)
            self._builder.run(launch, dy, None, z, dy)
        return dy

    def _take_bias(self, dy, bias, z=None):
        """Sum up a bias's gradient; with `z`, that is ReLU's result, dy becomes what passes."""
        run, k = self._builder.run, dy.shape[3]
        rows, count = self._rows(dy.pixels, k)
        parts = self._builder.buffer(count * k)
        launch = relu_nhwc.launch_bias_wgrad_parts(dy.shape, self._dtype, rows, relu=z is not None)
        run(launch, dy, z, dy if z else None, parts)
        run(relu_nhwc.launch_sums(count, k), parts, self._gradient(bias), None)

    def _back_through_norm(self, op):
        run, kept = self._builder.run, self._kept[op]
        y, k, relu = kept.y, op.w.shape[0], op.relu and not op.residual
        dz = self._back_through_residual(op) if op.residual else self._arrived(op.y)
        dpooled = self._arrived(op.pooled)
        options = {"relu": relu, "pool": dpooled is not None, "direct": dz is not None}
        pitches = {
            "pitch_dz": dz.pitch if dz else None,
            "pitch_dpooled": dpooled.pitch if dpooled else None,
        }
        weight, bias, _, _ = op.norm
        own = self._gradient(weight), self._gradient(bias)
        # The gradient of y takes y's place: nobody reads that any more.
        if self._are_small(op):
            launch = norm_nhwc.launch_norm_dgrad_whole(y.shape, self._dtype, **options, **pitches)
            run(launch, dz, dpooled, y, kept.factors, kept.statistics, *own, y)
        else:
            coefficients = self._builder.buffer(2 * k)
            parts, count = self._norm_sums(op, dz, dpooled, options, pitches)
            given = kept.statistics, kept.factors
            launch = norm_nhwc.launch_norm_dgrad_sums(y.pixels, k, count)
            run(launch, parts, *given, *own, coefficients)
            together = self.shares.together(weight.name)
            if together > 1:
                # The norm's own gradients are of these images, as all are; what the statistics
                # take back is of all ranks' images, and its other sums are of no use.
                every = self._gathered(parts, self.shares.group(weight.name))
                sums = self._builder.buffer(2 * k)
                pixels, count = together * y.pixels, together * count
                launch = norm_nhwc.launch_norm_dgrad_sums(pixels, k, count)
                run(launch, every, *given, sums, (sums, k), coefficients)
            if op in self._sums:
                head = self._low.operations[-1]
                launch = head_nhwc.launch_head_norm_dgrad(y.shape, self._dtype, head.w.shape[0])
                given = kept.factors, coefficients, self._weight(head.w)
                run(launch, self._logits, y, *given, y)
            else:
                launch = norm_nhwc.launch_norm_dgrad(y.shape, self._dtype, **options, **pitches)
                run(launch, dz, dpooled, y, kept.factors, coefficients, y)
        return y

    def _back_through_pooling(self, op):
        x, dy = self._low.lies[op.x], self._arrived(op.y)
        sides = ((size, size) for size in (op.window, op.stride, op.padding))
        launch = pool_nhwc.launch_max_pool_dgrad(x.shape, self._dtype, *sides, pitch_dy=dy.pitch)
        self._builder.run(launch, dy, self._kept[op], self._arriving(op.x))

    def _back_through_averaging(self, op):
        x, dy = self._low.lies[op.x], self._arrived(op.y)
        if op.size == 1:
            launch = pool_nhwc.launch_average_pool_dgrad(x.shape, self._dtype)
        else:
            launch = pool_nhwc.launch_average_windows_dgrad(x.shape, self._dtype, op.size)
        self._builder.run(launch, dy, self._arriving(op.x))

    def _back_through_linear(self, op):
        low, dy = self._low, self._back_through_relu(op)
        problem = low.linear(op)
        with self._beside(problem):
            self._take_wgrad(problem, low.lies[op.x], dy, op.w)
            self._ready(op.w, op.bias)
        low.convolve("dgrad", problem, dy, self._filters(op.w), self._arriving(op.x))

    def _norm_sums(self, op, dz, dpooled, options, pitches):
        """Return the sums of parts that a norm's gradient is made of, and how many there are."""
        kept, k = self._kept[op], op.w.shape[0]
        if op in self._sums:
            return self._sums[op], self._rows(kept.y.pixels, k)[1]
        shape = kept.y.shape
        rows, count = self._rows(norm_nhwc.count_cells(shape, options["pool"]), k)
        parts = self._builder.buffer(count * 2 * k)
        launch = norm_nhwc.launch_norm_dgrad_parts(shape, self._dtype, rows, **options, **pitches)
        self._builder.run(launch, dz, dpooled, kept.y, kept.factors, kept.statistics, parts)
        return parts, count

    def _take_wgrad(self, problem, x, dy, w, epilogue=PLAIN):
        source = epilogue.source
        epilogue = Epilogue(wide=self._low.is_bf16, source=source)
        self._low.convolve("wgrad", problem, x, dy, self._gradient(w), epilogue=epilogue)

    def _back_through_concatenation(self, op):
        whole, below = self._arrived(op.y), op.skip.shape[1]
        self._arrives[op.skip].append(whole.part((0, below)))
        part = whole.part((below, op.x.shape[1]), *op.corner, op.x.shape[2:])
        self._arrives[op.x].append(part)

    def _back_through_enlargement(self, op):
        low, run = self._low, self._builder.run
        x, dy = low.lies[op.x], self._arrived(op.y)
        whole, corner = self._around(op)
        if op.w is None:
            launch = upsample_nhwc.launch_upsample_dgrad(
                x.shape, self._dtype, whole.shape[1:3], corner, pitch_dy=whole.pitch
            )
            run(launch, whole, self._arriving(op.x))
            return
        c, k, r, s = op.w.shape
        # It is the transpose of a convolution of what it made, whose gradients these are.
        problem = low.problem(dy.shape, c, (r, s), stride=(2, 2))
        image, line, pitch = dy.strides
        epilogue = Epilogue(source=Source(pitch, line, image))
        with self._beside(problem):
            self._take_wgrad(problem, dy, x, op.w, epilogue)
            rows, count = self._rows(dy.pixels, k)
            parts = self._builder.buffer(count * k)
            launch = relu_nhwc.launch_bias_wgrad_parts(
                whole.shape,
                self._dtype,
                rows,
                part=(*dy.shape[1:3], *corner),
                pitch_dy=whole.pitch,
            )
            run(launch, whole, None, None, parts)
            run(relu_nhwc.launch_sums(count, k), parts, self._gradient(op.bias), None)
            self._ready(op.w, op.bias)
        given = dy, self._filters(op.w), None, self._arriving(op.x)
        low.convolve("fprop", problem, *given, epilogue=epilogue)

    def _around(self, op):
        """Return the gradient of the channels of a concatenation that are `op`'s, and a corner."""
        for other in self._low.operations:
            if isinstance(other, fuse.Concatenation) and other.x is op.y:
                whole, first = self._arrived(other.y), other.skip.shape[1]
                return whole.part((first, other.x.shape[1])), other.corner
        return self._arrived(op.y), (0, 0)

    def _back_through_exchange(self, op):
        x, dy, row = self._low.lies[op.x], self._arrived(op.y), self.shares.row
        own = self.shares.rank * x.shape[3], x.shape[3]
        if op.kind == op.REPLICATED:
            self._arrives[op.x].append(dy.part(own))
        elif op.kind == op.OWN:
            n, h, w, c = dy.shape
            every = self._builder.tensor((row * n, h, w, c), dy.dtype)
            self._say(ROW, dy.buffer, every.buffer, dy.buffer.size)
            self._arrives[op.x].append(every.part(own))
        else:
            dx, parts = self._arriving(op.x).buffer, dy.buffer
            if op.kind == op.CHANNELS:
                parts = self._builder.buffer(row * dx.size, dx.dtype)
                for launch, apart, joined in self._sides(op, dy, dx.size, is_back=True):
                    self._builder.run(launch, (dy.buffer, joined), (parts, apart))
            self._say(ROW, dx, parts, dx.size, scatters=True)

    # ---- the optimiser's step --------------------------------------------------------------------
    # All parameters are changed once all gradients are there, which may have to be clipped. Where
    # they need not be, to change deep layers' beside the rest of the backward pass took an H200 as
    # long (1, 16 and 64 images): products leave no other block room on their multiprocessor. To sum
    # up squares there took up to 1% longer. Ranks with other images may change a part each, and
    # gather them then (S. Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion
    # parameter models", SC 2020).
    def _optimise(self, name, options, clip):
        run, rule = self._builder.run, OPTIMIZERS[name]({}, **options)
        self.slots = {
            slot: self._builder.buffer(self.layout.size, kept=True) for slot in rule.slots
        }
        self.control = self._builder.buffer(len(flat.CONTROL), kept=True)
        self.steps = self._builder.buffer(len(flat.STEPS), np.int32, kept=True)
        sums = self._squares()
        betas = tuple(rule.options.get(beta, 0.0) for beta in ("beta1", "beta2"))
        launch = flat.launch_begin(sums.size, math.inf if clip is None else clip, betas)
        run(launch, sums, self.control, self.steps)
        copy = self._operands if self._low.is_bf16 else None
        slots = [*self.slots.values()] or [None]
        if name == "rmsprop" and len(slots) == 1:
            slots.append(None)
        arrays = self.weights, self.gradients, *slots, copy

        def change(own):
            launch = flat.launch_step(name, own.stop - own.start, rule.options, copy is not None)
            run(launch, *(each and (each, own.start) for each in arrays), self.control)

        shared = [every for group, every in self.runs if group == IMAGES]
        for own in _joined(every for group, every in self.runs if group != IMAGES):
            change(own)
        # Ranks tell each other what each has changed alone, as products will read it, while they
        # change the next. Nothing hides the last one, which is what the backward pass makes last.
        for every in reversed(shared):
            own = self.shares.own(IMAGES, every)
            change(own)
            given = (self._operands, own.start), (self._operands, every.start)
            self._say(IMAGES, *given, own.stop - own.start, waits=False)

    def _squares(self):
        """Return sums of squares of all gradients, of each once: also of those that others have."""
        found = defaultdict(list)
        for group, run in self.runs:
            own = self.shares.own(group, run)
            size = own.stop - own.start
            found[group].append((own.start, size, flat.norm_parts(size, self._low.device)))
        # What ranks say takes as long for one run as for all of them.
        counts = {group: sum(count for *_, count in runs) for group, runs in found.items()}
        ranks = {group: self.shares.size(group) if group else 1 for group in found}
        sums = self._builder.buffer(sum(ranks[group] * counts[group] for group in found))
        at = 0
        for group, runs in found.items():
            parts, first = (self._builder.buffer(counts[group]), 0) if group else (sums, at)
            for start, size, count in runs:
                launch = flat.launch_norm_parts(size, count)
                self._builder.run(launch, (self.gradients, start), (parts, first))
                first += count
            if group:
                self._say(group, parts, (sums, at), counts[group])
            at += ranks[group] * counts[group]
        return sums


def _joined(runs):
    """Return runs, which are in order, with neighbours as one."""
    found = []
    for run in runs:
        if found and found[-1].stop == run.start:
            run = slice(found.pop().start, run.stop)
        found.append(run)
    return found


_FORWARD = {
    fuse.Convolution: Step._convolution,
    fuse.Enlargement: Step._enlargement,
    fuse.Pooling: Step._pooling,
    fuse.Averaging: lambda self, op: self._low.average(op),
    fuse.Linear: Step._linear,
    fuse.Concatenation: lambda self, op: None,
    fuse.Head: Step._head,
    fuse.Exchange: Step._exchange,
}
_BACKWARD = {
    fuse.Convolution: Step._back_through_convolution,
    fuse.Enlargement: Step._back_through_enlargement,
    fuse.Pooling: Step._back_through_pooling,
    fuse.Averaging: Step._back_through_averaging,
    fuse.Linear: Step._back_through_linear,
    fuse.Concatenation: Step._back_through_concatenation,
    fuse.Head: Step._back_through_head,
    fuse.Exchange: Step._back_through_exchange,
}
