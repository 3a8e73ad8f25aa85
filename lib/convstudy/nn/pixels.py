# SPDX-License-Identifier: MIT
"""How the kernels on NHWC arrays share out their work: `pixels.cuh`'s constants, and the grid.

An activation is an (N, H, W, C) array of float32 or bfloat16, or a slice of the channels of a wider
one: what was to be concatenated lies side by side from the start. A launch is then told its pitch,
the numbers from pixel to pixel, and run with the array `from_channel` on. What belongs to channels,
to parameters or to sums is float32 always, and whole.
"""

import math
from dataclasses import dataclass

from convstudy.compile import Launch

THREADS = 256
_MOST_BLOCKS = 2**31 - 1
# Room above for the pixels that a block's last rows would be, in an int.
_MOST_PIXELS = 2**30
_VECTOR_BYTES = 16
_ITEMSIZE = {"float32": 4, "bfloat16": 2}
# Blocks of a multiprocessor that write parts of sums: enough to keep memory busy, and few parts.
_BLOCKS_EACH = 4


@dataclass(frozen=True)
class Sharing:
    """The shape of the blocks of one kernel on one kind of array.

    Attributes
    ----------
    who : str
        Whose error it is.
    channels, lanes, vector, threads : int
        A row of a block has `lanes` threads, and each thread `vector` channels.
    bf16 : bool
    """

    who: str
    channels: int
    lanes: int
    vector: int
    threads: int
    bf16: bool

    @property
    def rows(self):
        """Pixels that a block works on at once."""
        return self.threads // self.lanes

    @property
    def chunks(self):
        """Blocks that share one pixel's channels."""
        return math.ceil(self.channels / (self.lanes * self.vector))

    @property
    def defines(self):
        """The constants of ``vectors.cuh`` and ``pixels.cuh``."""
        return (
            *((("BF16", 1),) if self.bf16 else ()),
            ("VECTOR", self.vector),
            ("LANES", self.lanes),
            ("THREADS", self.threads),
        )

    def launch(self, kernel, parts, scalars, defines=()):
        """Return the launch of `parts` blocks along the pixels, for each chunk of channels."""
        return self.launch_blocks(kernel, parts * self.chunks, scalars, defines)

    def launch_blocks(self, kernel, blocks, scalars, defines=()):
        """Return the launch of so many blocks in all."""
        grid = _grid(self.who, blocks)
        return Launch(kernel, grid, (self.threads,), scalars, (*self.defines, *defines))


def share(who, channels, dtype, *pitches, threads=THREADS, vectors=True, line_bytes=128):
    """Return the `Sharing` of arrays of so many channels, of these pitches.

    Vectors of 16 bytes where the channels and every pitch are made of them (and `vectors` are
    wanted), else single numbers. Slices are to start on a vector then. So they do where two arrays
    share a wider one: what is before the second is its pitch less its channels.
    """
    vector = _VECTOR_BYTES // itemsize(who, dtype)
    for pitch in pitches:
        if pitch < channels:
            raise ValueError(f"{who}: a pitch of {pitch} is less than the {channels} channels")
    if not vectors or any(size % vector for size in (channels, *pitches)):
        vector = 1
    # A row of a block is to read so many bytes side by side, or as many as there are.
    most = min(32, line_bytes // (vector * itemsize(who, dtype)))
    lanes = min(most, power_of_two(math.ceil(channels / vector)))
    return Sharing(who, channels, lanes, vector, threads, dtype == "bfloat16")


def share_parts(who, channels, parts):
    """Return the `Sharing` of kernels that put `parts` together, each of so many channels."""
    lanes = min(8, power_of_two(channels))
    # As many rows as there are parts, but whole warps of them.
    threads = min(1024, max(32, lanes * power_of_two(parts)))
    return Sharing(who, channels, lanes, 1, threads, False)


def launch_each(who, kernel, count, scalars, defines=(), each=1):
    """Return the launch of a kernel each of whose threads does `each` of `count` things."""
    grid = _grid(who, math.ceil(count / (THREADS * each)))
    return Launch(kernel, grid, (THREADS,), scalars, (("THREADS", THREADS), *defines))


def launch_tiles(who, kernel, tiles, scalars, dtype):
    """Return the launch of a kernel each of whose blocks does one of so many tiles."""
    itemsize(who, dtype)
    defines = (("BF16", 1),) if dtype == "bfloat16" else ()
    return Launch(kernel, _grid(who, tiles), (THREADS,), scalars, defines)


def part_rows(pixels, channels, dtype, device):
    """Return the pixels of one part, of sums that this many parts are to fill a device with.

    Parameters
    ----------
    pixels, channels : int
        Of all images; or cells for pixels, where a kernel works on cells.
    dtype : str
    device : Device

    Returns
    -------
    int
        All parts have as many pixels but the last: there are ``ceil(pixels / rows)``.
    """
    sharing = share("part_rows", channels, dtype)
    parts = max(1, _BLOCKS_EACH * device.sm_count // sharing.chunks)
    return math.ceil(pixels / parts / sharing.rows) * sharing.rows


def count_pixels(who, shape):
    """Return the pixels of all images of an (N, H, W, C) array, or raise ValueError."""
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{who}: the shape must be (N, H, W, C), each at least 1, got {shape}")
    pixels = math.prod(shape[:3])
    if pixels > _MOST_PIXELS:
        raise ValueError(f"{who}: {pixels} pixels are more than 2^30; cut the batch")
    return pixels


def check_part(who, size, part, top, left):
    """Raise ValueError unless a part of an image lies inside it."""
    if min(*part, top + 1, left + 1) < 1 or top + part[0] > size[0] or left + part[1] > size[1]:
        raise ValueError(
            f"{who}: a part of {part[0]} x {part[1]} at ({top}, {left}) is not inside an image of "
            f"{size[0]} x {size[1]}; pass one that is"
        )


def from_channel(array, channel):
    """Return an array's numbers from a channel of the first pixel on: what a launch is given."""
    return array.reshape(-1)[channel:]


def _grid(who, blocks):
    if blocks > _MOST_BLOCKS:
        raise ValueError(
            f"{who} needs {blocks} blocks and a grid has {_MOST_BLOCKS}; cut the batch"
        )
    return (blocks,)


def itemsize(who, dtype):
    """Return the bytes of a number, or raise ValueError unless the kernels take such."""
    if dtype not in _ITEMSIZE:
        raise ValueError(f"{who}: dtype is {dtype!r}; use {' or '.join(map(repr, _ITEMSIZE))}")
    return _ITEMSIZE[dtype]


def power_of_two(number):
    """Return the least power of two that is no less."""
    return 1 << (number - 1).bit_length()
