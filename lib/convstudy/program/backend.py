# SPDX-License-Identifier: MIT
"""Training by a program: what `train.Trainer` needs of a GPU."""

import os

import numpy as np

from convstudy.device import array_module, get_device
from convstudy.program.capture import Replay
from convstudy.program.inference import Inference
from convstudy.program.shares import Shares
from convstudy.program.training import Step
from convstudy.train import flat, loss_nhwc
from convstudy.train.backend import Backend, Outcome
from convstudy.train.optimizers import OPTIMIZERS


class GpuBackend(Backend):
    """Trains on a GPU: the whole step is one CUDA graph.

    Parameters
    ----------
    network : Network
        It keeps its own weights; `state_dict` returns the trained ones.
    shape : (N, C, H, W)
        Of the batches: the program is for these alone.
    precision : {"fp32", "tf32", "bf16"}
        Of products; parameters and sums are fp32 in each.
    optimizer : str
        One of `OPTIMIZERS`.
    options : dict of str to float, optional
        The optimiser's.
    clip : float, optional
        The most that the norm of all gradients may be.
    device : Device, optional
        A GPU, by default the first; `device.EMULATOR` runs the same launches on NumPy arrays.

    Raises
    ------
    ValueError, RuntimeError
        Where an option is none that there is, or there is no GPU.
    """

    name = "gpu"
    # One thread makes some 300 composites a second, and a GPU trains on thousands.
    ahead = min(8, os.cpu_count() or 1)

    def __init__(
        self,
        network,
        shape,
        precision="bf16",
        optimizer="adamw",
        options=None,
        clip=None,
        device=None,
    ):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"no optimiser {optimizer!r}; take {' or '.join(OPTIMIZERS)}")
        if clip is not None and not 0 < clip < np.inf:
            raise ValueError(f"clip must be a number above 0, or None, got {clip!r}")
        self.network, self.shape, self.precision = network, tuple(shape), precision
        self.device = device or get_device(0, "GpuBackend")
        network.check(np.zeros(self.shape, np.float32))
        rule = optimizer, dict(options or {}), clip
        own = self.device, self._shares
        self._make = lambda n, h, w: Step(
            *(network, (n, network.n_channels, h, w), precision, *rule, *own)
        )
        n, _, h, w = self.shape
        self._step = self._make(n, h, w)
        self.program = self._step.program
        room = self._room(self._step.gradients.size)
        if room is not None:
            self.program.allocate(given={self._step.gradients: room})
        self._replay = Replay(self.program, self._reached)
        # Predictions are another program's, of the weights as they were when it was last asked.
        self._shadow = network.without_parameters()
        self._predictors, self._is_new = {}, True
        state = network.state_dict()
        self._counts = {k: a for k, a in state.items() if k.endswith("num_batches_tracked")}
        self._put_network(state)

    # What ranks do otherwise, who have only some of the images, or of the network.

    _reached = None
    _shares = Shares()

    def _room(self, count):
        """Return memory for so many gradients, or None where any is as good."""

    def _part(self, name, array):
        """Return what is held here of a parameter, or of what the optimiser remembers of it."""
        return array

    def step(self, images, masks, rate):
        self.load(images, masks, rate)
        self.run()
        return self._outcome()

    def _outcome(self):
        """Return what came of the step that was run, and count it."""
        for count in self._counts.values():
            count += 1
        loss, norm = self._get(self._step.loss), self._get(self._step.control)
        parts = dict(zip(loss_nhwc.LOSS, loss.tolist(), strict=False))
        return Outcome(parts["loss"], parts["dice"], float(norm[flat.CONTROL.index("norm")]))

    def load(self, images, masks, rate):
        """Put a batch and the learning rate where `run` reads them.

        Masks (N, H, W) are of a network that scores pixels; of a classifier they are the images'
        classes, (N,).
        """
        wanted = self._step.masks_shape
        if images.shape != self.shape or masks.shape != wanted:
            raise ValueError(
                f"GpuBackend: it was made for batches of {self.shape} and {wanted}, got images of "
                f"{images.shape} and masks of {masks.shape}; make another for those"
            )
        self._put(self._step.images, images)
        self._put(self._step.masks, masks)
        self._put(self._step.control, np.array([rate]))

    def run(self):
        """Train on what was loaded; on a GPU, return before it is done."""
        self._is_new = True
        self._replay.run()

    def gradients(self):
        """Return the last step's gradients by name, as NumPy arrays."""
        return self._unpacked(self._step.gradients)

    def predict(self, images):
        if self._is_new:
            self._shadow.load_state_dict(self.state_dict())
            for each in self._predictors.values():
                each.reload()
            self._is_new = False
        if images.shape not in self._predictors:
            self._predictors[images.shape] = Inference(
                self._shadow, images.shape, self.precision, self.device
            )
        return self._predictors[images.shape](images)

    def state(self):
        step = self._step
        network = self._unpacked(step.weights)
        if step.running.size:
            network |= step.running.unpack(self._get(step.statistics)) | self._counts
        found = {f"network.{name}": network[name] for name in self.network.shapes}
        for slot, buffer in step.slots.items():
            kept = self._unpacked(buffer).items()
            found |= {f"optimizer.{slot}.{name}": array for name, array in kept}
        taken = self._get(step.steps)[flat.STEPS.index("taken")]
        return found | {"optimizer.steps": np.array(taken, np.int64)}

    def load_state(self, state):
        self.check_state(state)
        self._put_network({name: state[f"network.{name}"] for name in self.network.shapes})
        for name in self._counts:
            self._counts[name] = np.array(state[f"network.{name}"])
        for slot, buffer in self._step.slots.items():
            kept = {name: state[f"optimizer.{slot}.{name}"] for name in self.network.trained}
            self._put(buffer, self._packed(self._step.layout, kept))
        self._put(self._step.steps, np.array([state["optimizer.steps"], 0]))

    def needs_bytes(self, n, h, w):
        program = self._make(n, h, w).program
        return program.arena_bytes + program.kept_bytes

    def free_bytes(self):
        if not self.device.is_gpu:
            return float("inf")
        cuda = array_module(self.device).cuda
        with cuda.Device(self.device.index):
            free, _ = cuda.runtime.memGetInfo()
        # What this program has taken already is its own.
        return free + self.program.arena_bytes + self.program.kept_bytes

    def _put_network(self, state):
        step = self._step
        weights = self._packed(step.layout, state)
        self._put(step.weights, weights)
        if step.operands is not step.weights:
            self._put(step.operands, weights)
        if step.running.size:
            self._put(step.statistics, self._packed(step.running, state))
        self._is_new = True

    def _unpacked(self, buffer):
        """Return by name what is held of each trained parameter."""
        return self._step.layout.unpack(self._get(buffer))

    def _packed(self, layout, state):
        return layout.pack({name: self._part(name, state[name]) for name in layout.slots})

    def _put(self, buffer, values):
        values = np.ascontiguousarray(values, buffer.dtype).reshape(-1)
        array = self.program.array(buffer)[: values.size]
        if self.device.is_gpu:
            array.set(values)
        else:
            array[...] = values

    def _get(self, buffer):
        array = self.program.array(buffer)
        return array.get() if self.device.is_gpu else array.copy()
