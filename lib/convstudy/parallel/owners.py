# SPDX-License-Identifier: MIT
"""Whose optimiser changes which parameters: where ranks share images alone, each changes a part.

Of each bucket but the last a rank gets the sums of a part of the gradients, changes the parameters
there, and gathers what the others have changed: as many bytes on their way as if all had all sums,
or fewer where products read bf16, and the optimiser's time is divided by the ranks (S. Rajbhandari
et al., "ZeRO: Memory optimizations toward training trillion parameter models", SC 2020, stage 1).

Two H200s took 1.27 ms so for a step of one image each in bf16, and 1.33 where all changed all; with
8 images or more as long. In TF32, where fp32 is gathered, they took 1.62 ms, and 1.58 where all
changed all, by kernels that took one GPU 0.05 ms longer.
"""

import itertools
from dataclasses import dataclass

from convstudy.parallel.buckets import BUCKET_BYTES, Buckets
from convstudy.program.shares import IMAGES, Shares


@dataclass(frozen=True)
class BucketShares(Shares):
    """Shares of ranks that add up gradients by buckets, and change what they have the sums of.

    Attributes
    ----------
    bucket_bytes : int
        The most that is added up at once.
    are_apart : bool
        Whether each rank changes a part, where layers are not cut; else all change all.
    """

    bucket_bytes: int = BUCKET_BYTES
    are_apart: bool = True

    @property
    def _sharing(self):
        return 1 if self.axes or not self.are_apart else self.images

    def buckets(self, layout):
        """Return [(group, Buckets), ...]: gradients that are added up over the same ranks."""
        places, most = layout.places, self.bucket_bytes
        *earlier, (group, last) = [
            (group, {name: places[name] for name in names})
            for group, names in itertools.groupby(reversed(layout.slots), self.group)
        ]
        found = [(each, Buckets.lying(run, most, most)) for each, run in earlier]
        # What is read as fp32 is not gathered: all ranks change it.
        how = {"together": layout.first, "ranks": self._sharing}
        return [*found, (group, Buckets.lying(last, most, **how))]

    def runs(self, layout):
        if self._sharing == 1:
            return super().runs(layout)
        bucket_of = {
            name: part
            for _, buckets in self.buckets(layout)
            for part, names, is_scattered in zip(
                *(buckets.parts, buckets.members, buckets.are_scattered), strict=True
            )
            if is_scattered
            for name in names
        }
        runs = layout.runs(bucket_of.get)
        return [(IMAGES if bucket else None, run) for bucket, run in runs]
