# SPDX-License-Identifier: MIT
"""Images with masks: the committed composites, the Carvana set, and any pictures of yours."""

from convstudy.images.carvana import CarvanaSet
from convstudy.images.composite import CompositeSet, load_sample
from convstudy.images.folder import FolderSet
from convstudy.images.load import load_image
from convstudy.images.overlay import overlay

__all__ = ["CarvanaSet", "CompositeSet", "FolderSet", "load_image", "load_sample", "overlay"]
