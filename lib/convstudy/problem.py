# SPDX-License-Identifier: MIT
"""One convolution: its sizes, and what they cost.

The letters are cuDNN's: N images, C input channels, H x W pixels, K output channels, R x S filter
taps, P x Q output pixels.
"""

import operator
from dataclasses import dataclass, replace

import ml_dtypes  # makes bfloat16 a type of NumPy's
import numpy as np

# Of each dtype's precisions, the first is its own.
_PRECISIONS = {"float32": ("fp32", "tf32"), "bfloat16": ("bf16",)}
_LAYOUTS = ("NCHW", "NHWC")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class ConvProblem:
    """One two-dimensional convolution (cross-correlation, as every framework has it).

    Parameters
    ----------
    n, c, h, w : int
        Images, channels, height and width of the input.
    k, r, s : int
        Filters, and their height and width.
    stride, padding : (int, int)
        Along H and W. Padding is zeros on both sides.
    groups : int
        1; other values are refused until an algorithm takes them.
    dtype : str
        "float32" or "bfloat16": of x, w and y, and of their gradients.
    layout : str
        How arrays lie: "NCHW" (filters K C R S), or "NHWC" (filters K R S C), which PyTorch calls
        channels_last.
    precision : str, optional
        How exact products have to be at least. Of float32: "fp32", or "tf32" (operands of 10
        fraction bits). Of bfloat16: "bf16" alone (operands as they are, of 7 fraction bits; sums
        in fp32, rounded once). By default the dtype's own: fp32 or bf16.

    Raises
    ------
    ValueError, TypeError
        Where a size is no positive integer, the filter is larger than the padded input, or a
        value is not one that this study's algorithms know.

    Examples
    --------
    >>> problem = ConvProblem(n=1, c=3, h=128, w=191, k=64, r=3, s=3, padding=(1, 1))
    >>> problem.y_shape
    (1, 64, 128, 191)
    >>> problem.flops
    84492288
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    precision: str | None = None

    def __post_init__(self):
        for name in "nchwkrs":
            object.__setattr__(self, name, _integer(name, getattr(self, name), least=1))
        for name, least in (("stride", 1), ("padding", 0)):
            object.__setattr__(self, name, _pair(name, getattr(self, name), least))
        if self.groups != 1:
            raise ValueError(f"ConvProblem: groups={self.groups} is not supported; use groups=1")
        _check_known("dtype", self.dtype, _PRECISIONS)
        _check_known("layout", self.layout, _LAYOUTS)
        own = _PRECISIONS[self.dtype]
        if self.precision is None:
            object.__setattr__(self, "precision", own[0])
        _check_known("precision", self.precision, own, f" of {self.dtype}")
        for size, taps, pad, letters in (
            (self.h, self.r, self.padding[0], "H R"),
            (self.w, self.s, self.padding[1], "W S"),
        ):
            if taps > size + 2 * pad:
                raise ValueError(
                    f"ConvProblem: the filter is larger than the padded input: "
                    f"{letters[2]}={taps}, {letters[0]}={size} with {pad} on each side; "
                    f"pad more or filter less"
                )

    @classmethod
    def of(cls, x, w, stride=(1, 1), padding=(0, 0), layout="NCHW", precision=None):
        """Return the problem that convolves `x` with `w`, arrays that lie as `layout` says."""
        shapes = {}
        for name, array, letters in (("x", x, "NCHW"), ("w", w, "KCRS")):
            letters = ", ".join(_in_layout(letters, layout))
            if getattr(array, "ndim", None) != 4:
                raise ValueError(
                    f"conv2d: {name} must be an array of rank 4 ({letters}), "
                    f"got {_describe(array)}; reshape it"
                )
            shapes[name] = channels_first(array.shape, layout)
        if x.dtype != w.dtype:
            raise TypeError(
                f"conv2d: x is {x.dtype} and w is {w.dtype}; convert one with .astype()"
            )
        (n, c, h, width), (k, expected, r, s) = shapes["x"], shapes["w"]
        if c != expected:
            wanted = _in_layout(("N", str(expected), "H", "W"), layout)
            raise ValueError(
                f"conv2d: x has {c} channels and w expects {expected}; "
                f"pass x of shape ({', '.join(wanted)})"
            )
        dtype = str(x.dtype)
        return cls(n, c, h, width, k, r, s, stride, padding, 1, dtype, layout, precision)

    def with_batch(self, n):
        """Return the same convolution of `n` images."""
        return replace(self, n=n)

    @property
    def p(self):
        """Height of the output."""
        return (self.h + 2 * self.padding[0] - self.r) // self.stride[0] + 1

    @property
    def q(self):
        """Width of the output."""
        return (self.w + 2 * self.padding[1] - self.s) // self.stride[1] + 1

    def _shape(self, outer, channels, height, width):
        return _in_layout((outer, channels, height, width), self.layout)

    @property
    def x_shape(self):
        return self._shape(self.n, self.c, self.h, self.w)

    @property
    def w_shape(self):
        return self._shape(self.k, self.c, self.r, self.s)

    @property
    def y_shape(self):
        return self._shape(self.n, self.k, self.p, self.q)

    @property
    def terms(self):
        """Products summed for one output: C R S."""
        return self.c * self.r * self.s

    @property
    def macs(self):
        """Multiply-adds: N K P Q C R S, those with padding included."""
        return self.n * self.k * self.p * self.q * self.terms

    @property
    def flops(self):
        """Floating-point operations: two a multiply-add."""
        return 2 * self.macs

    @property
    def itemsize(self):
        """Bytes of one number."""
        return np.dtype(self.dtype).itemsize

    @property
    def bytes(self):
        """Fewest bytes that must move: input and filters read once, output written once."""
        elements = sum(int(np.prod(shape)) for shape in (self.x_shape, self.w_shape, self.y_shape))
        return elements * self.itemsize

    @property
    def intensity(self):
        """FLOPs for each byte of `bytes`."""
        return self.flops / self.bytes


def _in_layout(nchw, layout):
    """Return four things that are given in the order N, C, H, W in that of `layout`."""
    n, c, h, w = nchw
    return (n, h, w, c) if layout == "NHWC" else (n, c, h, w)


def channels_first(shape, layout):
    """Return a shape of `layout` in the order N, C, H, W."""
    return (shape[0], shape[3], *shape[1:3]) if layout == "NHWC" else tuple(shape)


def _check_known(name, value, known, of=""):
    if value not in known:
        raise ValueError(
            f"ConvProblem: {name}={value!r}{of} is not supported; "
            f"use {' or '.join(map(repr, known))}"
        )


def _describe(array):
    shape = getattr(array, "shape", None)
    return f"shape {tuple(shape)}" if shape is not None else type(array).__name__


def _integer(name, value, least):
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"ConvProblem: {name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"ConvProblem: {name} must be at least {least}, got {number}")
    return number


def _pair(name, value, least):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(
            f"ConvProblem: {name} takes one integer or two (along H and W), got {value!r}"
        )
    return tuple(_integer(name, each, least) for each in pair)
