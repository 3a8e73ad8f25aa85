# SPDX-License-Identifier: MIT
"""Checkpoints: all that a training needs to go on as if it had never stopped.

A folder holds the last two. A kill at any moment leaves at least one of them whole.
"""

import re
import sys
import tempfile
from pathlib import Path

from convstudy.train import tensors

KEPT = 2
_NAME = "step-{:08d}.safetensors"
_NEEDED = ("options", "seconds")
_PATTERN = re.compile(r"step-(\d{8,})\.safetensors")


class Checkpoints:
    """The checkpoints in one folder.

    Parameters
    ----------
    folder : path-like
        Is made by `prepare`, or when the first is saved.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def prepare(self):
        """Make the folder, or raise OSError unless files can be written into it."""
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(
                f"folder={self.folder} cannot be written: {error.strerror}; give another folder="
            ) from error

    def steps(self):
        """Return the steps after which there is a checkpoint, in order."""
        names = (path.name for path in self.folder.glob("step-*.safetensors"))
        return sorted(int(match[1]) for name in names if (match := _PATTERN.fullmatch(name)))

    def path(self, step):
        """Return the file of the checkpoint after `step` steps."""
        return self.folder / _NAME.format(step)

    def save(self, step, arrays, metadata):
        """Write a checkpoint; only then remove those before the last two.

        Parameters
        ----------
        step : int
        arrays : dict of str to array
        metadata : dict of str to str
            ``options`` and ``seconds`` at least: by these a checkpoint is known.
        """
        tensors.write(self.path(step), arrays, metadata)
        for old in self.steps()[:-KEPT]:
            self.path(old).unlink(missing_ok=True)
        for left in self.folder.glob(".step-*.part"):  # by a kill
            left.unlink(missing_ok=True)

    def load(self):
        """Return (step, arrays, metadata) of the newest that is whole, or None without any.

        A damaged one is said on standard error, and passed over.

        Raises
        ------
        DamagedError
            If there are checkpoints, and none is whole.
        """
        faults = []
        for step in reversed(self.steps()):
            try:
                found = (step, *self._read(step))
            except tensors.DamagedError as error:
                faults.append(str(error))
            else:
                for fault in faults:
                    print(f"{fault}; going on from step {step} instead", file=sys.stderr)
                return found
        if faults:
            raise tensors.DamagedError(
                f"{'; '.join(faults)}; begin anew (anew=yes), or train in another folder"
            )
        return None

    def _read(self, step):
        arrays, metadata = tensors.read(self.path(step))
        missing = [name for name in _NEEDED if name not in metadata]
        if missing:
            raise tensors.DamagedError(
                f"{self.path(step)} is no checkpoint: it does not say {' or '.join(missing)}"
            )
        return arrays, metadata

    def clear(self):
        """Remove every checkpoint."""
        for step in self.steps():
            self.path(step).unlink(missing_ok=True)
