# SPDX-License-Identifier: MIT
"""A network at inference as one program: norms are in the filters, nothing is joined or padded."""

import math

import numpy as np

from convstudy.conv.epilogue import Epilogue
from convstudy.device import get_device
from convstudy.nn import head_nhwc
from convstudy.program import fuse
from convstudy.program.capture import Replay
from convstudy.program.lowering import Lowering


class Inference:
    """A network for batches of one shape, in one precision, on one device.

    Parameters
    ----------
    network : Network
        Its parameters are taken as they are now; `reload` takes them again.
    shape : (N, C, H, W)
        Of the batches; make another for another.
    precision : {"fp32", "tf32", "bf16"}
        fp32 has fp32 accuracy. TF32 rounds the operands of products to 10 bits of fraction; bf16
        keeps filters, and values between layers, in bfloat16. Sums are fp32 in each.
    device : Device, optional
        A GPU, by default the first; `device.EMULATOR` runs the same launches on NumPy arrays.
    loaded : bool
        Whether to allocate memory and take the parameters now; else `reload` is to be called.

    Attributes
    ----------
    program : Program

    Raises
    ------
    ValueError, RuntimeError
        Where the shape or the precision is none that the network takes, or there is no GPU.
    """

    def __init__(self, network, shape, precision="fp32", device=None, loaded=True):
        self.network, self.shape = network, tuple(shape)
        network.check(np.zeros(self.shape, np.float32))
        self.device = device or get_device(0, "Inference")
        self._low = Lowering(network, self.shape, precision, self.device, keeps_filters=True)
        self._loads = []
        for operation in self._low.operations:
            self._low.builder.function = operation.function
            _LOWER[type(operation)](self, operation)
        self.program = self._low.builder.finish()
        self._replay = Replay(self.program)
        if loaded:
            self.reload()

    def __call__(self, images):
        """Return the network's result for images (N, C, H, W), NumPy arrays."""
        self.load(images)
        self.run()
        return self.scores()

    def reload(self):
        """Take the network's parameters as they are now."""
        state = self.network.state_dict()
        for buffer, make in self._loads:
            self._put(buffer, make(state).ravel())
        self._replay.run_beforehand()

    def load(self, images):
        """Put a batch where `run` reads it."""
        self.network.check(images)
        if images.shape != self.shape:
            raise ValueError(
                f"Inference: it was made for batches of {self.shape}, got {images.shape}; make "
                f"another Inference for those"
            )
        self._put(self._low.images, images.ravel())

    def run(self):
        """Compute the scores of the batch that was loaded; on a GPU, return before it is done."""
        self._replay.run()

    def run_on(self, images):
        """Compute the scores of images that lie on the device, and do not wait.

        Parameters
        ----------
        images : (N, C, H, W) float32 array

        Returns
        -------
        (N, H, W, n_classes) float32 array
            On the device; the next run writes over it.
        """
        n, _, h, w = self.shape
        self.program.array(self._low.images)[: images.size] = images.reshape(-1)
        self.run()
        return self.program.array(self._scores).reshape(n, h, w, -1)

    def scores(self):
        """Return the last run's result as a NumPy array, float32.

        (N, n_classes, H, W) of a network that scores pixels, (N, num_classes) of a classifier.
        """
        shape = self._low.trace.output.shape
        scores = self.program.array(self._scores)
        scores = (scores.get() if self.device.is_gpu else scores).astype(np.float32)
        lying = scores.reshape(shape[0], *shape[2:], shape[1])
        return np.ascontiguousarray(np.moveaxis(lying, -1, 1))

    @property
    def predicted_bytes(self):
        """Memory that the program was planned to take: shared, and kept."""
        return self.program.arena_bytes + self.program.kept_bytes

    def _put(self, buffer, values):
        array = self.program.array(buffer)
        values = np.ascontiguousarray(values).astype(buffer.dtype)
        if self.device.is_gpu:
            array.set(values)
        else:
            array[...] = values

    def _parameter(self, size, dtype, make):
        """Return a buffer for what `make` makes of the state_dict."""
        buffer = self._low.builder.buffer(size, dtype, kept=True)
        self._loads.append((buffer, make))
        return buffer

    def _convolution(self, op):
        low = self._low
        x, y = low.lies[op.x], low.lies[op.y]
        k, c, r, s = op.w.shape
        filters = self._parameter(k * c * r * s, low.dtype, lambda state: _folded(op, state)[0])
        bias = None
        if op.norm or op.bias:
            bias = self._parameter(k, np.float32, lambda state: _folded(op, state)[1])
        problem = low.problem(x.shape, k, (r, s), padding=op.padding, stride=op.stride)
        if op.residual:
            residual = low.lies[op.residual]
            low.convolve_and_add(problem, x, filters, bias, residual, y, op.relu)
        else:
            epilogue = Epilogue(relu=op.relu, pitch=None if y.is_whole else y.pitch)
            low.convolve("fprop", problem, x, filters, bias, y, epilogue=epilogue)
        if op.pooled:
            low.pool(y, low.lies[op.pooled])

    def _pooling(self, op):
        x, y = self._low.lies[op.x], self._low.lies[op.y]
        self._low.pool(x, y, op.window, op.stride, op.padding)

    def _enlargement(self, op):
        filters = bias = None
        if op.w is not None:
            c, k, r, s = op.w.shape
            filters = self._parameter(
                c * k * r * s, self._low.dtype, lambda state: state[op.w.name].transpose(2, 3, 1, 0)
            )
            bias = self._parameter(k, np.float32, lambda state: state[op.bias.name])
        self._low.enlarge(op, filters, bias)

    def _linear(self, op):
        def lying(state):
            # Numbers of an image are in its state_dict's order: channel after channel.
            return state[op.w.name].reshape(op.shape).transpose(0, 2, 3, 1)

        filters = self._parameter(math.prod(op.w.shape), self._low.dtype, lying)
        bias = self._parameter(op.w.shape[0], np.float32, lambda state: state[op.bias.name])
        self._low.multiply(op, filters, bias)
        if op.y is self._low.trace.output:
            self._scores = self._low.lies[op.y]

    def _head(self, op):
        x, (classes, c, _, _) = self._low.lies[op.x], op.w.shape
        w = self._parameter(classes * c, np.float32, lambda state: state[op.w.name])
        bias = self._parameter(classes, np.float32, lambda state: state[op.bias.name])
        self._scores = self._low.builder.buffer(x.pixels * classes, kept=True)
        launch = head_nhwc.launch_head(x.shape, x.dtype.name, classes, pitch=x.pitch)
        self._low.builder.run(launch, x, None, w, bias, self._scores)


_LOWER = {
    fuse.Convolution: Inference._convolution,
    fuse.Enlargement: Inference._enlargement,
    fuse.Pooling: Inference._pooling,
    # What is joined was written where it is read.
    fuse.Concatenation: lambda self, op: None,
    fuse.Averaging: lambda self, op: self._low.average(op),
    fuse.Linear: Inference._linear,
    fuse.Head: Inference._head,
}


def _folded(op, state):
    """Return filters (K, R, S, C) and bias of a convolution with the norm behind it, in float64."""
    w = state[op.w.name].astype(np.float64).transpose(0, 2, 3, 1)
    own = state[op.bias.name].astype(np.float64) if op.bias else 0.0
    if op.norm is None:
        return w, own
    weight, bias, mean, var = (state[each.name].astype(np.float64) for each in op.norm)
    scale = weight / np.sqrt(var + op.eps)
    return w * scale[:, None, None, None], bias + (own - mean) * scale
