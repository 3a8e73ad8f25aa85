# SPDX-License-Identifier: MIT
"""Arrays by name in one .safetensors file: written whole or not at all, and known when damaged."""

import hashlib
import os
from pathlib import Path

import numpy as np

_DIGEST = "sha256"


class DamagedError(ValueError):
    """A file is not what was once written."""


def write(path, arrays, metadata=None):
    """Write arrays by name, so that whatever happens there is the old file or the new one.

    Parameters
    ----------
    path : path-like
    arrays : dict of str to array
    metadata : dict of str to str, optional
        Is kept with them, and a digest of all.
    """
    from safetensors.numpy import save

    # The library takes an array's memory for its elements in order.
    arrays = {name: np.array(array, order="C", ndmin=0) for name, array in arrays.items()}
    metadata = dict(metadata or {})
    metadata[_DIGEST] = _digest(arrays, metadata)
    replace(path, save(arrays, metadata))


def read(path):
    """Return (arrays by name, metadata) of a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamagedError
        If it is no such file, or its digest is not that of its content. A file that others wrote
        has none, and only its form is checked.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; check the name")
    try:
        # Not through memory that is mapped: a file may go while its arrays are still used.
        with safe_open(path, framework="np", backend="pread") as file:
            metadata, arrays = file.metadata() or {}, file.get_tensors()
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedError(f"{path} is no whole .safetensors file: {error}") from error
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest(arrays, metadata):
        raise DamagedError(f"{path} is damaged: its content is not what was written")
    return arrays, metadata


def replace(path, content):
    """Put bytes into a file: first beside it, and down on the disk, then in its place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    # The name is safe when the folder is on the disk, too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(arrays, metadata):
    found = hashlib.sha256()
    for key in sorted(metadata):
        found.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return found.hexdigest()
