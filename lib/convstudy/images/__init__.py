# SPDX-License-Identifier: MIT
"""Images with masks: the committed composites, the Carvana set, and any picture of yours."""

from convstudy.images.carvana import CarvanaSet
from convstudy.images.composite import CompositeSet, load_sample
from convstudy.images.load import load_image

__all__ = ["CarvanaSet", "CompositeSet", "load_image", "load_sample"]
