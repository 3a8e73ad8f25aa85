# SPDX-License-Identifier: MIT
"""A trained network on a picture of any size."""

import io
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

from convstudy.device import devices, free_bytes
from convstudy.images import load_image, overlay
from convstudy.models.unet import LEAST_SIZE
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import ResidentOps
from convstudy.train import tensors
from convstudy.train.dice import decide
from convstudy.train.memory import forward_bytes
from convstudy.train.weights import load_weights

# Along a side: Pillow's own limit.
_MOST_PIXELS = 2**31
# The narrow side of what is written to see whether it can be; icons have at least as many pixels.
_STRIP = 16


def segment(network, image, ops=None, scale=None, trained_on=None):
    """Return the class of each pixel of a picture.

    Parameters
    ----------
    network : UNet
    image : (3, H, W) float32 array in [0, 1]
        Of any size, as `load_image` gives it.
    ops : Ops, optional
        What executes the network; `BlasOps()` if not given.
    scale : float, optional
        By which the picture is resized for the network, whose result is resized back. If not
        given, a picture is made as large as those trained on, where that is known, and else left as
        it is: a network finds objects of the size that it has seen.
    trained_on : (int, int), optional
        Height and width of those.

    Returns
    -------
    (H, W) uint8 array

    Raises
    ------
    ValueError
        If the scale is not above 0, or too large, or the picture has not the network's channels.
    MemoryError
        If the network's layers need more memory than there is; it says which scale fits.
    """
    channels, height, width = image.shape
    if channels != network.n_channels:
        raise ValueError(
            f"segment: the picture has {channels} channels and the network takes "
            f"{network.n_channels}"
        )
    if scale is None:
        area = math.prod(trained_on) if trained_on else height * width
        scale = math.sqrt(area / (height * width))
    elif not 0 < scale * max(height, width) < _MOST_PIXELS:
        raise ValueError(
            f"segment: scale must be a number above 0 and, for a picture of {height} x {width}, "
            f"below {_MOST_PIXELS / max(height, width):.3g}, got {scale}"
        )
    size = tuple(max(LEAST_SIZE, round(scale * length)) for length in (height, width))
    ops = ops or BlasOps()
    if ops.name.startswith("cpu"):
        _check_memory(network, size, scale)
    logits = network.forward(_resized(image, size)[None], ops)[0]
    return decide(_resized(logits, (height, width))[None])[0]


def draw(weights, picture, output, mask="", scale=None):
    """Draw what a trained network finds in a picture over it, into a file.

    Parameters
    ----------
    weights, picture, output : path-like
    mask : path-like, optional
        Where the bare mask goes: grey levels, one a class, up to white.
    scale : float, optional
        As in `segment`.

    Returns
    -------
    str
        What was found, in a few words.
    """
    image = load_image(picture)
    _check_outputs(image.shape[1:], output, mask, weights, picture)
    network, metadata = load_weights(weights)
    trained_on = _trained_on(weights, metadata)
    ops = ResidentOps() if devices() else BlasOps()
    classes = segment(network, image, ops, scale, trained_on)
    drawn = _encoded(output, Image.fromarray(overlay(image, classes)))
    if mask:
        step = 255 // max(1, network.n_classes - 1)
        tensors.replace(mask, _encoded(mask, Image.fromarray(classes * np.uint8(step))))
    tensors.replace(output, drawn)
    height, width = classes.shape
    return f"{width} x {height} pixels, {(classes > 0).mean():.1%} of them in the mask"


def _trained_on(weights, metadata):
    """Return the height and width of what weights were trained on, or None where nothing tells."""
    size = metadata.get("size", "")
    if not size:
        return None
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", size)
    if not found:
        raise ValueError(
            f"{weights}: its size={size} has to be height x width, such as 128x191; correct its "
            "metadata, or leave that out"
        )
    return tuple(map(int, found.groups()))


def _check_outputs(size, output, mask, *inputs):
    """Raise ValueError unless pictures of a size can be written, and nothing is lost by it."""
    taken = {Path(path).resolve() for path in inputs}
    outputs = [(Path(output), "RGB")]
    if mask:
        outputs.append((Path(mask), "L"))
    for path, mode in outputs:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is not there; make the folder first")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file in it, such as {path / 'mask.png'}")
        if path.resolve() in taken:
            raise ValueError(
                f"{path} is given for another file, too, which would be lost; give another name"
            )
        taken.add(path.resolve())
        # Pillow reads more formats than it writes, and large ones in fewer: only writing tells.
        height, width = size
        for strip in ((width, _STRIP), (_STRIP, height)):
            _encoded(path, Image.new(mode, strip))


def _encoded(path, image):
    """Return the bytes of a picture's file, in the format of the file's name."""
    content = io.BytesIO()
    content.name = str(path)
    try:
        image.save(content)
    except Exception as error:  # of many kinds, such as struct's
        raise ValueError(
            f"{path}: Pillow cannot write such a picture ({error}); end the name as another "
            "picture's, such as .png"
        ) from error
    return content.getbuffer()


def _resized(planes, size):
    """Return planes of float32, resized with all that falls into a pixel taken into account."""
    if planes.shape[1:] == size:
        return planes
    height, width = size
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for plane in planes
    ]
    return np.ascontiguousarray(np.stack(resized))


def _check_memory(network, size, scale):
    needed, free = forward_bytes(network, *size), free_bytes()
    if needed > free:
        # Of a hundred smaller ones; a tenth is left for what the estimate does not see.
        fits = next((i / 100 for i in range(99, 0, -1) if _bytes(network, size, i) < 0.9 * free), 0)
        way_out = f"scale={fits * scale:.2g} fits" if fits else "no scale fits"
        raise MemoryError(
            f"segment: at {size[0]} x {size[1]} the network takes {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; {way_out}"
        )


def _bytes(network, size, percent):
    return forward_bytes(network, *(max(LEAST_SIZE, side * percent // 100) for side in size))
