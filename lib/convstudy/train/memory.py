# SPDX-License-Identifier: MIT
"""How much memory training takes on the CPU, and how much there is."""

import bisect

from convstudy.conv import cpu

# Beside what the tape holds: gradients on their way, in images of the widest layer of a batch.
_PASSING = 4
_FLOAT = 4


def tape_bytes(network, n, h, w, slots):
    """Return the most bytes that a step takes on the tape, for `n` images of `h` x `w`.

    Parameters
    ----------
    network : UNet
    n, h, w : int
    slots : int
        Arrays that the optimiser keeps of each parameter.
    """
    held, widest = network.n_channels * h * w, 0
    for layer, problem in network.layers(h, w):
        outputs = problem.k * problem.p * problem.q
        # The convolution's result, and the norm's, which ReLU overwrites; the block's input, be it
        # pooled or joined, is an array of its own.
        held += 2 * outputs + (problem.c * problem.h * problem.w if layer.endswith("a") else 0)
        widest = max(widest, outputs, problem.c * problem.h * problem.w)
    for up in network.decoder:
        held += up.k * (h >> up.block.level) * (w >> up.block.level)
    parameters = (2 + slots) * network.parameter_count
    return _FLOAT * (n * (held + _PASSING * widest) + parameters)


def host_bytes(network, n, h, w, batches):
    """Return about the bytes that steps take on this machine, where a GPU executes them.

    Of so many batches are the images here at once; weights are as they were at first and are now.
    """
    return _FLOAT * (2 * network.parameter_count + batches * n * network.n_channels * h * w)


def forward_bytes(network, h, w):
    """Return about the most bytes that the result of one image of `h` x `w` takes on the CPU."""
    # At the first level: what is handed over to the decoder, two arrays of its width before the
    # last block, joined in a third, and what comes of that.
    skips = sum(block.k * (h >> block.level) * (w >> block.level) for block in network.encoder)
    numbers = skips + 5 * network.width * h * w + network.parameter_count
    unfolded = (cpu.unfolded_bytes(problem) for _, problem in network.layers(h, w))
    return _FLOAT * numbers + max(unfolded)


def check(needs, batch, free, where):
    """Raise MemoryError unless a batch fits, and say how large a batch would.

    Parameters
    ----------
    needs : callable
        From a batch's images to bytes; more images take no less.
    batch : int
    free : float
        Bytes.
    where : str
        Whose memory it is, such as "this machine".
    """
    if needs(batch) <= free:
        return
    fits = bisect.bisect_right(range(1, batch), free, key=needs)
    way_out = f"batch={fits} fits" if fits else "not even one image fits: take smaller ones"
    raise MemoryError(
        f"training on {batch} images at once takes {_gib(needs(batch))}, and {where} has "
        f"{_gib(free)} free; {way_out}, or a narrower network"
    )


def _gib(size):
    return f"{size / 2**30:.2g} GiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
