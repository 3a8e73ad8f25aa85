# SPDX-License-Identifier: MIT
"""Where a convolution's input comes from, what becomes of its result, and where that goes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where the pixels of x lie, if it is a part of a wider and larger array.

    Attributes
    ----------
    pitch, line, image : int
        Numbers from one pixel to the next, from line to line and from image to image: multiples of
        16 bytes, as is where x begins.
    """

    pitch: int
    line: int
    image: int

    @property
    def constants(self):
        """The constants by which a kernel that walks by itself knows it."""
        return (
            *(("SOURCE", 1), ("SOURCE_PITCH", self.pitch)),
            *(("SOURCE_LINE", self.line), ("SOURCE_IMAGE", self.image)),
        )


@dataclass(frozen=True)
class Scatter:
    """Where a transposed convolution of 2 x 2 at stride 2 puts its results.

    It is the matrix product of a convolution of 1 x 1 with filters in the order (r, s, k): what
    it gives for pixel (h, w) and filter (r, s, k) belongs to pixel (2 h + r, 2 w + s), channel k.

    Attributes
    ----------
    line, image : int
        Numbers from one line of the larger image to the next, and from image to image.
    """

    line: int
    image: int


@dataclass(frozen=True)
class Epilogue:
    """What a kernel does before and after convolving; by default nothing.

    Attributes
    ----------
    relu : bool
        After the bias.
    pitch : int, optional
        Numbers from pixel to pixel of the result, where it is some channels of a wider array;
        what is passed begins with the first of them, at a multiple of 16 bytes.
    scatter : Scatter, optional
        With a `pitch`; the bias has a quarter as many numbers as there are filters.
    wide : bool
        The result is float32 though operands are bfloat16: of gradients of filters.
    source : Source, optional
        Where x comes from; by default it is an array of its own.
    residual : bool
        Whether another array of y's shape and dtype, the last that is passed, is added after the
        bias and before the ReLU. It lies at a multiple of 16 bytes; y is not read.
    statistics : bool
        Whether an array behind y takes the moments of each tile of it, float32: (tiles, 2, K), the
        mean and the sum of squared distances from it, and (tiles,), of how many pixels.
    """

    relu: bool = False
    pitch: int | None = None
    scatter: Scatter | None = None
    wide: bool = False
    source: Source | None = None
    residual: bool = False
    statistics: bool = False

    @property
    def constants(self):
        """The constants by which a kernel knows it."""
        view = 2 if self.scatter else 1 if self.pitch else 0
        return (
            *((("RELU", 1),) if self.relu else ()),
            *((("VIEW", view),) if view else ()),
            *((("WIDE", 1),) if self.wide else ()),
            *((("SUMMAND", 1),) if self.residual else ()),
            *((("STATISTICS", 1),) if self.statistics else ()),
        )

    @property
    def sizes(self):
        """What follows a kernel's other scalars."""
        if self.scatter:
            return self.pitch, self.scatter.line, self.scatter.image
        return (self.pitch,) if self.pitch else ()


PLAIN = Epilogue()


def fits(epilogue, problem, which):
    """Return (ok, reason): whether a kernel that knows epilogues takes this one."""
    p = problem
    vector = 16 // (4 if epilogue.wide else p.itemsize)
    if (epilogue.pitch or epilogue.relu or epilogue.scatter) and which != "fprop":
        return False, f"only fprop has an epilogue; this is {which}"
    if epilogue.statistics and (which != "fprop" or epilogue.pitch):
        return False, "statistics are of what fprop gives, in an array of its own"
    if epilogue.residual and (which != "fprop" or epilogue.pitch or epilogue.statistics):
        return False, "a residual is added to what fprop gives, in an array of its own"
    if epilogue.residual and p.k % vector:
        return False, f"it adds {vector} numbers at once: K must be a multiple"
    if epilogue.source:
        if which == "dgrad":
            return False, "its operands are whole arrays"
        source = epilogue.source
        if any(size % (16 // p.itemsize) for size in (source.pitch, source.line, source.image)):
            return False, f"{source} must have multiples of 16 bytes"
    if epilogue.wide and (which != "wgrad" or p.dtype != "bfloat16"):
        return False, "only gradients of filters of bfloat16 are kept wider"
    if epilogue.pitch and (epilogue.pitch % vector or p.k % vector):
        return False, f"it stores {vector} numbers at once: pitch and K must be multiples"
    if epilogue.scatter:
        if (p.r, p.s, p.stride, p.padding) != (1, 1, (1, 1), (0, 0)) or p.k % (4 * vector):
            return False, "scattered are the results of filters of 1 x 1, a multiple of 4 vectors"
        if not epilogue.pitch:
            return False, "what is scattered needs a pitch"
        if epilogue.scatter.image >= 2**31:
            return False, "an image has 2^31 numbers or more; cut it"
    return True, ""
