# SPDX-License-Identifier: MIT
"""A network's weights as files, which milesial/Pytorch-UNet reads and writes too."""

import importlib.util
import io
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from convstudy.models.unet import UNet
from convstudy.train import tensors

ENDINGS = (".safetensors", ".npz", ".pth")
# What is in the original's files beside the parameters, and before their names.
_BESIDE = ("mask_values",)
_PREFIXES = ("module.", "_orig_mod.")


def save_weights(path, network, metadata=None):
    """Write a network's state dict; the name's ending says how.

    Parameters
    ----------
    path : path-like
        Ends in ``.safetensors``, ``.npz``, or, where PyTorch is installed, ``.pth``.
    network : UNet
    metadata : dict of str to str, optional
        Is kept by ``.safetensors`` alone.

    Raises
    ------
    ValueError, ImportError
        If the ending is another, or needs PyTorch.
    """
    state, ending = network.state_dict(), check_ending(path)
    if ending == ".safetensors":
        tensors.write(path, state, metadata)
        return
    content = io.BytesIO()
    if ending == ".npz":
        np.savez(content, **state)
    else:
        torch = _torch(path)
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, content)
    tensors.replace(path, content.getbuffer())


def load_weights(path):
    """Return the network whose weights a file holds: its sizes are those of the weights.

    Parameters
    ----------
    path : path-like
        As `save_weights`, or the original, wrote it. Numbers of other types are converted to
        float32.

    Returns
    -------
    network : UNet
    metadata : dict of str to str
        Empty but for ``.safetensors``.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        If the file is not there, or damaged, or not a U-Net's, or needs PyTorch.
    """
    path, metadata = Path(path), {}
    ending = check_ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; check the name")
    if ending == ".safetensors":
        state, metadata = tensors.read(path)
    elif ending == ".npz":
        state = _read_npz(path)
    else:
        state = _read_pth(path)
    state = {_plain(name): array for name, array in state.items() if name not in _BESIDE}
    try:
        return UNet.from_state_dict({name: _converted(a) for name, a in state.items()}), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_ending(path):
    """Return the ending of a name, or raise ValueError unless it is one of `ENDINGS`."""
    ending = ".pth" if Path(path).suffix == ".pt" else Path(path).suffix
    if ending not in ENDINGS:
        raise ValueError(
            f"{path}: weights are kept in files that end in {' or '.join(ENDINGS)}; name one"
        )
    if ending == ".pth":
        _torch(path)
    return ending


def _read_npz(path):
    try:
        # Opened here: NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, NpzFile(file) as arrays:
            state = dict(arrays)
    except Exception as error:  # of many kinds, such as zlib's
        raise tensors.DamagedError(f"{path} is no whole .npz file: {error}") from error
    for name, array in state.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path} holds {name}, which is no array; save the arrays alone")
    return state


def _read_pth(path):
    torch = _torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, such as pickle's
        reason = str(error).splitlines()[0]
        raise tensors.DamagedError(f"{path} cannot be read by PyTorch: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; save the network's state_dict()")
    return {
        name: value.float().numpy() if value.is_floating_point() else value.numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _torch(path):
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            f"{path}: files that end in .pth need PyTorch, which is not installed: "
            f'run "make setup EXTRAS=torch", or use .safetensors'
        )
    import torch

    return torch


def _plain(name):
    """Return a parameter's name without what wrappers, such as DataParallel, put before it."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _converted(array):
    is_real = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_real else array
