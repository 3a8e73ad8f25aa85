# SPDX-License-Identifier: MIT
"""The optimisers of `optimizers` as CUDA kernels, on all parameters in one float32 array.

A step is three launches, of which the first may be left out: sums of squares of the gradients
(`launch_norm_parts`), the step's beginning (`launch_begin`), and the rule (`launch_step`). They
tell each other what they found in ``control``, float32 numbers that `CONTROL` names, of which the
host writes the learning rate alone, and in ``steps``, int32, the steps taken and those skipped
because a gradient was not finite. So a graph of them can be replayed as it is.
"""

import functools
import math

import numpy as np

from convstudy.nn.pixels import THREADS, launch_each
from convstudy.train.optimizers import OPTIMIZERS

KERNELS = (
    "gradient_norm_1_parts",
    "gradient_norm_2_combine",
    "sgd_step_1_flat",
    "rmsprop_step_1_flat",
    "adamw_step_1_flat",
)
CONTROL = ("rate", "norm", "factor", "finite", "correction1", "correction2")
STEPS = ("taken", "skipped")
_VECTOR = 4
_BLOCKS_EACH = 4


def norm_parts(size, device):
    """Return how many parts the norm of `size` gradients is to come in, to fill a device."""
    most = math.ceil(size / (THREADS * _VECTOR))
    return min(most, _BLOCKS_EACH * device.sm_count)


@functools.cache
def launch_norm_parts(size, parts):
    """Return the launch that takes (gradients, parts), for a float32 array of `parts` sums."""
    scalars, defines = (np.int64(size),), (("VECTOR", _vector(size)),)
    kernel = "gradient_norm_1_parts"
    return launch_each("gradient_norm", kernel, parts * THREADS, scalars, defines)


@functools.cache
def launch_begin(parts, most=math.inf, betas=(0.0, 0.0)):
    """Return the launch that takes (parts, control, steps), changes the last two, and is a step.

    Parameters
    ----------
    parts : int
        With 0 (and None for the array), no gradient is looked at.
    most : float
        The largest norm that is not clipped.
    betas : (float, float)
        AdamW's.
    """
    if not most > 0:
        raise ValueError(f"launch_begin: cannot clip gradients to {most}; use a number above 0")
    logarithms = (math.log(beta) if beta else -math.inf for beta in betas)
    scalars = (parts, float(most), *logarithms)
    return launch_each("gradient_norm", "gradient_norm_2_combine", 1, scalars)


def launch_step(name, size, options=None, copy=False):
    """Return the launch that changes the parameters, unless a gradient was not finite.

    Parameters
    ----------
    name : {"sgd", "rmsprop", "adamw"}
        It takes (parameters, gradients, *slots, copy, control). Slots are what the rule remembers,
        each of the parameters' size and 0 at first: momenta; squares and momenta; means and
        squares. Without momentum, momenta are None.
    size : int
        Parameters. Multiples of 4 take the fewest instructions.
    options : dict of str to float, optional
        As the rule of `optimizers` has them; by default its own.
    copy : bool
        Whether parameters are written as bfloat16 too, to an array of their size; else it is None.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimiser {name!r}; there are {', '.join(OPTIMIZERS)}")
    chosen = OPTIMIZERS[name]({}, **(options or {})).options
    return _launch_step(name, size, tuple(chosen.items()), copy)


@functools.cache
def _launch_step(name, size, options, copy):
    options = dict(options)
    defines = (("VECTOR", _vector(size)), ("COPY", int(copy)))
    if not options.get("momentum", 1):
        defines += (("MOMENTUM", 0),)
    scalars = (np.int64(size), *map(float, _numbers(name, **options)))
    return launch_each(name, f"{name}_step_1_flat", size, scalars, defines, _vector(size))


def _numbers(name, weight_decay, eps=0, momentum=0, alpha=0, beta1=0, beta2=0):
    """Return a rule's options as its kernel takes them."""
    if name == "sgd":
        return momentum, weight_decay
    # What is left of 1 is taken off here: in float32, most of its digits would be lost.
    if name == "rmsprop":
        return alpha, 1 - alpha, eps, momentum, weight_decay
    return 1 - beta1, beta2, 1 - beta2, eps, weight_decay


def _vector(size):
    if size < 1:
        raise ValueError(f"an optimiser needs at least one parameter, got {size}")
    return 1 if size % _VECTOR else _VECTOR
